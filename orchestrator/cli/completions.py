"""What a shell offers as the next word: keys of a scenario, metrics, reasons, runs.

A shell waits for the answer, so each function imports only what it needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path


def complete_key(incomplete: str) -> list[str]:
    """For --set: keys, to which a value is written."""
    from orchestrator.cli.explain import list_keys

    names = dict.fromkeys(f"{key.name}=" for key in list_keys() if not key.name.endswith(".kind"))
    return [name for name in names if name.startswith(incomplete)]


def complete_metric(incomplete: str) -> list[str]:
    from orchestrator.scenario.metrics import WORDS

    return [name for name in WORDS if name.startswith(incomplete)]


def complete_name(incomplete: str) -> list[str]:
    """For `explain`: metrics, keys and reasons."""
    from orchestrator.base.reasons import Reason
    from orchestrator.cli.explain import list_keys

    keys = dict.fromkeys(key.name for key in list_keys())
    return [
        name
        for name in chain(complete_metric(incomplete), keys, map(str, Reason))
        if name.startswith(incomplete)
    ]


def complete_run(incomplete: str) -> list[str]:
    """Runs and matrices in the folder that was begun, or in runs/; without one, a shell offers
    files."""
    return [path for path in map(str, _list_runs(incomplete)) if path.startswith(incomplete)]


def _list_runs(incomplete: str) -> Iterator[Path]:
    begun = Path(incomplete)
    folder = begun if incomplete.endswith("/") else begun.parent
    for place in (folder,) if incomplete else (folder, Path("runs")):
        for path in sorted(place.glob("*")):
            if (path / "plan.json").exists() or (path / "cells").is_dir():
                yield path
