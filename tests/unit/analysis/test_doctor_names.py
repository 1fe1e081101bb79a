"""The names of the doctor's findings."""

from __future__ import annotations

import ast
from pathlib import Path

from orchestrator.analysis.doctor.finding import FINDINGS
from orchestrator.run.doctor import _EXAMINED_AS

ROOT = Path(__file__).parents[3] / "orchestrator"


def test_all_findings_are_listed() -> None:
    """Each call of Finding() in the source begins with one of the names, and each is used."""
    calls = [
        node for path in [*(ROOT / "analysis/doctor").glob("*.py"), ROOT / "run/doctor.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
    ]  # fmt: skip
    used = {
        str(call.args[0].value) for call in calls if isinstance(call.args[0], ast.Constant)
    }  # fmt: skip
    assert used | {*_EXAMINED_AS.values(), "ssh"} == {*FINDINGS}
    assert len({*FINDINGS}) == len(FINDINGS)
