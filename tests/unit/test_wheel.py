"""The wheel: what an installation without a checkout has, and what it can do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from tests.unit.recorded import copied_run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    execute("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    execute("-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile",
            "--disable-pip-version-check", "--target", str(folder), str(wheel))  # fmt: skip
    return folder


def execute(*arguments: str, cwd: Path | None = None, path: Path | None = None) -> str:
    """Run this Python, with the program that is installed at `path`. Return what it prints."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-P", *arguments], cwd=cwd, env=environment, capture_output=True,
        text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_holds_one_package_with_all_that_it_needs(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"orchestrator"}
    assert [name.partition("/data/")[2] for name in names if ".data/" in name] == [
        "share/man/man1/barometer.1"
    ]
    assert "orchestrator/py.typed" in names
    for folder, inside in (("guests", "_guests"), ("fixtures/scenarios", "_fixtures/scenarios")):
        there = {
            path.relative_to(ROOT / folder).as_posix()
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        prefix = f"orchestrator/{inside}/"
        assert {n.removeprefix(prefix) for n in names if n.startswith(prefix)} == there


def test_metadata_has_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = message_from_string(archive.read(name).decode())
    assert {"bench", "report"} <= {*metadata.get_all("Provides-Extra", [])}
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not any(line.startswith(("libvirt", "paramiko", "jinja2")) for line in base)
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_installed_program_works_without_a_checkout(installed: Path, tmp_path: Path) -> None:
    place = execute("-c", "import orchestrator; print(orchestrator.__file__)", path=installed)
    assert place.strip() == str(installed / "orchestrator/__init__.py")
    barometer = ("-m", "orchestrator.cli")
    assert "Usage: barometer" in execute(*barometer, "--help", path=installed)
    run = copied_run(tmp_path / "run")
    out = execute(*barometer, "report", str(run), cwd=tmp_path, path=installed)
    assert out.endswith(f"run: {run}\n")
    assert (run / "report.html").exists()
    program = f"import orchestrator; print(orchestrator.load({str(run)!r}).comparison.verdict)"
    assert execute("-c", program, path=installed) == "improved\n"
    program = """
from orchestrator.machine.runner import images
from orchestrator.kernels.source import buildroot
from orchestrator.base.installed import packaged
from orchestrator.scenario.factors import load_scenarios
assert images.GUESTS.parent.name == "orchestrator"
assert (images.GUESTS / "agents/keeper/verbs.py").is_file()
assert (buildroot.KERNEL_FILES / "recipe.toml").is_file()
for path in (packaged("fixtures") / "scenarios").glob("*.toml"):
    load_scenarios(path)
"""
    execute("-c", program, path=installed)


def test_no_message_names_a_file_of_the_checkout() -> None:
    """Docstrings and comments are for who reads the code, in a checkout."""
    of_checkout = re.compile(r"(?<![\w/])(ci|docs|fixtures)/|README|CHANGES|\.venv")
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        nodes = [*ast.walk(ast.parse(path.read_text()))]
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [
            node.value
            for node in nodes
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in docstrings
        ]
        assert [text for text in texts if of_checkout.search(text)] == [], path
    for path in (ROOT / "orchestrator/report/html/templates").iterdir():
        assert not of_checkout.search(path.read_text()), path
