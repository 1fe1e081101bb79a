"""What the command line prints, to a log and to a CI system that reads commands in it."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.streams import CommandsStopped, LogStream, print_commands
from tests.unit.test_printable import has_command

RECORDED = Path(__file__).parents[2] / "fixtures/recorded"
EVIL = "x\x1b]0;owned\x07 ##[error]no \u202e\n::error::no\n  ::warning::no"


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **env},
    )  # fmt: skip


@pytest.mark.parametrize("words", [
    ("plan", EVIL), ("report", EVIL), (EVIL,), ("explain", EVIL), ("schema", EVIL),
    ("run", "fixtures/scenarios/small.toml", "--set", EVIL), ("timeline", EVIL),
])  # fmt: skip
def test_what_the_user_types_is_no_command(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode in (2, 4)
    for text in (done.stdout, done.stderr):
        assert not has_command(text)
        assert "\x1b" not in text
        assert "\u202e" not in text


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A recorded run whose kernels have names that are commands, and whose trial failed so."""
    folder = shutil.copytree(RECORDED / "debian-6.12-vs-7", tmp_path / "run")
    for path in (folder / "plan.json", *folder.glob("trials/*/manifest.json")):
        document = path.read_text()
        evil = json.dumps(EVIL)[1:-1]
        path.write_text(document.replace("7.3.4+deb13-cloud-amd64", evil))
    return folder


@pytest.mark.parametrize("form", [(), ("--table",), ("--mail",), ("--json",), ("--github",)])
def test_a_kernel_whose_name_is_a_command_commands_nothing(
    hostile: Path, form: tuple[str, ...], tmp_path: Path
) -> None:
    done = run("report", str(hostile), *form, GITHUB_STEP_SUMMARY=str(tmp_path / "summary"))
    own = [line for line in done.stdout.splitlines() if line.startswith("::")]
    outside = "\n".join(line for line in done.stdout.splitlines() if line not in own)
    for text in (outside, done.stderr):
        assert not has_command(text)
        assert not {"\x1b", "\u202e", "\x07"} & {*text}
    if form == ("--github",):
        stop, *_ = own
        token = stop.removeprefix("::stop-commands::")
        assert len(token) == 32
        assert own[1] == f"::{token}::"
        assert all(line.startswith(("::error ", "::warning ", "::notice ")) for line in own[2:])
        assert not any("##[" in line for line in own[:2])
    else:
        assert own == []
    if form == ("--json",):
        json.loads(done.stdout)


def test_token_is_another_one_each_time() -> None:
    stream = io.StringIO()
    for _ in range(2):
        with CommandsStopped(stream):
            stream.write("::error::x\n")
    lines = stream.getvalue().splitlines()
    assert len({*lines}) == 5


def test_own_commands_pass_a_guarded_stream() -> None:
    inner = io.StringIO()
    stream = LogStream(inner)
    print("##[x]", file=stream)
    print_commands("::notice::y\n", stream)  # type: ignore[arg-type]
    assert inner.getvalue().splitlines()[1] == "::notice::y"
    assert "##[" not in inner.getvalue()
