"""The linters of this project, as tests. They are installed beside the interpreter that runs the
tests. If one is missing, its test fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.linters

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent
SCRIPTS = sorted(
    {
        str(path.relative_to(ROOT))
        for path in (
            *ROOT.glob("ci/**/*.sh"),
            *ROOT.glob("guests/**/init*"),
            *ROOT.glob("guests/**/*.sh"),
        )
        if path.is_file()
    }
)


def passes(tool: str, *arguments: str) -> None:
    program = TOOLS / tool
    if not program.exists():
        pytest.fail(f"{program} is missing; ci/setup.sh --tests installs it")
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        pytest.fail(f"{tool} {' '.join(arguments)}:\n{done.stdout}{done.stderr}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    passes("ruff", "check")


def test_code_is_formatted() -> None:
    passes("ruff", "format", "--check", "--diff")


def test_types_are_right() -> None:
    passes("mypy")


def test_imports_go_down_only() -> None:
    passes("lint-imports")


def test_there_are_shell_scripts() -> None:
    assert len(SCRIPTS) >= 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    passes("shellcheck", "--external-sources", script)
