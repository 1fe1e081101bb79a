"""Load agents from their files: they are programs, not a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

AGENTS = Path(__file__).parents[3] / "guests/agents"


def agent(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"agent_{name}", AGENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
