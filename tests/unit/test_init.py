"""`barometer init` writes a scenario that can be planned as it is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from orchestrator.cli.measure import Kind
from orchestrator.scenario.loading import load_scenario
from tests.unit.test_cli import Command, Said, barometer

__all__ = ["barometer"]
KINDS = get_args(Kind)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_scenario(barometer: Command, here: Path, kind: str) -> None:
    assert barometer("init", kind) == 0
    scenario, _ = load_scenario(here / f"{kind}.toml")
    assert scenario.host.kind == ("metal" if kind == "nightly" else "nested")


def test_each_commented_line_that_has_a_key_is_one(barometer: Command, here: Path) -> None:
    """A reader takes the # away: at each such key stands a value that the schema knows."""
    for kind in KINDS:
        assert barometer("init", kind) == 0
        lines = (here / f"{kind}.toml").read_text().splitlines()
        for number, line in enumerate(lines):
            key = line.removeprefix("# ").partition(" = ")[0]
            if not line.startswith("# ") or not key.isidentifier():
                continue
            table = next((n for n in range(number, -1, -1) if lines[n].startswith("[")), 0)
            end = next((n for n in range(number, len(lines)) if lines[n].startswith("[")),
                       len(lines))  # fmt: skip
            changed = [
                "" if table <= n < end and other.startswith(f"{key} = ") else other
                for n, other in enumerate(lines)
            ]
            changed[number] = line.removeprefix("# ")
            (here / "changed.toml").write_text("\n".join(changed))
            load_scenario(here / "changed.toml")


def test_a_file_that_exists_stays_as_it_is(barometer: Command, capsys: Said, here: Path) -> None:
    (here / "ab.toml").write_text("mine")
    assert barometer("init") == 2
    assert "ab.toml" in capsys.readouterr().err
    assert (here / "ab.toml").read_text() == "mine"
    assert barometer("init", "ab", here / "none/ab.toml") == 2
    assert barometer("init", "ab", "other.toml") == 0
    assert (here / "other.toml").exists()


def test_a_scenario_is_printed_on_demand(barometer: Command, capsys: Said, here: Path) -> None:
    assert barometer("init", "profile", "-") == 0
    assert capsys.readouterr().out.startswith("#")
    assert [*here.iterdir()] == []
