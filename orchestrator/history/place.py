"""Where the history is. This module needs no library for databases."""

from __future__ import annotations

import os

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason

VARIABLE = "BAROMETER_HISTORY"


def find_place(own: str = "") -> str:
    """Return the place of the history: a scenario's `own`, else that of the environment; empty if
    there is none."""
    return own or os.environ.get(VARIABLE, "")


def require_place(option: str | None) -> str:
    """Return the place of the history: the option's, else that of the environment. Raises
    ScenarioError if there is none."""
    if not (place := find_place(option or "")):
        raise ScenarioError(
            "no history is named",
            hint=f"--store FILE, or the variable {VARIABLE}; postgresql://USER@HOST/DATABASE",
            reason=Reason.NO_HISTORY,
        )
    return place
