"""What the command line and the library load: help has to be quick, and judging needs no extra."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.base.installed import MODULES
from orchestrator.cli.entry import app
from tests.unit.recorded import copied_run

pytestmark = pytest.mark.slow  # each starts a process
HEAVY = ("google", "jinja2", "libvirt", "numpy", "paramiko", "perfetto", "pydantic",
         "rich", "scipy", "sqlalchemy", "tenacity", "tomlkit")  # fmt: skip
GROUPS = [group.name for group in app.registered_groups if group.name]
VERBS = [*(command.name for command in app.registered_commands if command.name), *GROUPS]
BARE = (
    "orchestrator",
    "orchestrator.base.errors",
    "orchestrator.base.interrupts",
    "orchestrator.scenario.choices",
)
"""A few of our own modules that the command line may load before it knows the verb."""


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Run a program in a process of its own. Return the modules that are loaded at its end."""
    program += "\nimport sys; sys.stderr.write('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True,
        timeout=60,
    )  # fmt: skip
    return {*done.stderr.split()}


def heavy(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] in HEAVY}


RUN = "from orchestrator.cli.entry import run_verb\nassert run_verb() == 0"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_load_no_library_but_typer(arguments: list[str]) -> None:
    modules = loaded_by(RUN, *arguments)
    assert heavy(modules) == set()
    own = {name for name in modules if name.startswith("orchestrator")}
    assert own >= {*BARE}
    assert "orchestrator.scenario.model" not in own
    assert len(own) <= 25


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_nothing_that_the_verb_works_with(verb: str) -> None:
    """Typer itself uses pydantic, to parse a verb's options."""
    modules = loaded_by(RUN, verb, "--help")
    assert {name.partition(".")[0] for name in heavy(modules)} <= {"pydantic"}
    assert "orchestrator.scenario.model" not in modules


def test_each_verb_has_a_line_of_help_that_is_not_cut() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "--help"], capture_output=True, text=True,
        check=True, timeout=60, env={"COLUMNS": "80", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    text = done.stdout.partition("Options:\n")[2].partition("\n\n")[2]
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert sorted({line.split()[0] for line in lines}) == sorted(VERBS)
    assert [line for line in lines if line.endswith("...")] == []


def test_report_and_timeline_need_no_extra(tmp_path: Path) -> None:
    """Without the extras, only the page and the timelines are left out, and a line says why."""
    run = copied_run(tmp_path / "run")
    blocked = {name: None for modules in MODULES.values() for name in modules}
    program = (
        f"import sys; sys.modules.update({blocked!r})\n"
        "from orchestrator.cli.entry import run_verb\nsys.exit(run_verb())"
    )

    def barometer(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True,
            check=False, timeout=120,
        )  # fmt: skip

    done = barometer("report", run)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "comparison.json").read_text())["verdict"] == "improved"
    assert "vfio-barometer[report]" in done.stderr
    assert not (run / "report.html").exists()
    assert barometer("timeline", run / "trials/0002-candidate").returncode == 0
    done = barometer("timeline", run / "trials/0002-candidate", "--perfetto", tmp_path / "trace")
    assert done.returncode == 3
    assert done.stderr.endswith(
        "hint: pip install 'vfio-barometer[report]'\nreason: extra-missing\n"
    )
    for verb in (["doctor"], ["recover", "gpu1"], ["profile", "vm"]):
        done = barometer(*verb)
        assert done.returncode == 3
        assert done.stderr.endswith(
            "hint: pip install 'vfio-barometer[bench]'\nreason: extra-missing\n"
        )


def test_importing_changes_no_environment_and_no_logger() -> None:
    program = """
import logging, os
before = dict(os.environ)
from orchestrator import Run, Scenario, compare, load
import orchestrator.run.ab
assert dict(os.environ) == before
assert logging.root.level == logging.WARNING and not logging.root.handlers
for name in logging.root.manager.loggerDict:
    if name.startswith(("barometer", "paramiko")):
        logger = logging.getLogger(name)
        assert not logger.level and not logger.handlers, name
"""
    loaded_by(program)


def test_import_of_the_library_loads_nothing() -> None:
    modules = loaded_by("import orchestrator")
    assert heavy(modules) == set()
    assert {name for name in modules if name.startswith("orchestrator")} == {"orchestrator"}
