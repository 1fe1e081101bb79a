"""Recorded evidence of machines (fixtures/recorded/checkups), and changes to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.analysis.doctor.finding import USES, Finding, Needs
from orchestrator.analysis.doctor.findings import judge_machine
from orchestrator.evidence.surveys.checkup_facts import CheckupFacts, parse_checkup

CHECKUPS = Path(__file__).parents[2] / "fixtures/recorded/checkups"
Raw = dict[str, Any]
Change = Callable[[Raw], object]


def read(name: str) -> Raw:
    raw: Raw = json.loads((CHECKUPS / f"{name}.json").read_text())
    return raw


def parse(raw: Raw) -> CheckupFacts:
    return parse_checkup(json.dumps(raw), "the checkup")


def recorded(name: str) -> CheckupFacts:
    return parse(read(name))


def server(*changes: Change) -> CheckupFacts:
    """Return a machine with nothing in the way, except for these changes."""
    raw = read("gpu-server")
    for change in changes:
        change(raw)
    return parse(raw)


def of_server(*changes: Change, needs: Needs | None = None) -> dict[str, Finding]:
    """Return the findings by name, of each name the worst."""
    found = judge_machine(server(*changes), needs or Needs(USES))
    return {finding.name: finding for finding in reversed(found)}


def file(path: str, text: str | None) -> Change:
    def change(raw: Raw) -> None:
        raw["files"].pop(path, None)
        if text is not None:
            raw["files"][path] = text + "\n"

    return change


def value(*keys: str, to: Any) -> Change:
    def change(raw: Raw) -> None:
        place = raw
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return change


def replaced(path: str, old: str, new: str) -> Change:
    def change(raw: Raw) -> None:
        assert old in raw["files"][path]
        raw["files"][path] = raw["files"][path].replace(old, new)

    return change
