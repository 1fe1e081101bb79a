"""Files that come with the program besides its code. A checkout has them beside the package, an
installed wheel within it (force-include in pyproject.toml)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parents[1]


def packaged(name: Literal["guests", "fixtures"]) -> Path:
    """Return a folder that comes with the program. `guests`: what runs in virtual machines and on
    metal hosts. `fixtures`: in a wheel, the example scenarios and series alone."""
    inside = _PACKAGE / f"_{name}"
    return inside if inside.is_dir() else _PACKAGE.parent / name
