"""What is installed: files that come with the program besides its code, and its optional parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason

_PACKAGE = Path(__file__).parents[1]

MODULES = {
    "bench": ("elftools", "libvirt", "libvirt_qemu", "paramiko", "tenacity"),
    "history": ("alembic", "psycopg", "pyarrow", "ruptures", "sqlalchemy"),
    "report": ("google", "jinja2", "markupsafe", "perfetto"),
}
"""Modules that each extra installs (pyproject.toml lists its packages). Judging needs none."""


def packaged(name: Literal["guests", "fixtures"]) -> Path:
    """Return a folder that comes with the program. `guests`: what runs in virtual machines and on
    metal hosts. `fixtures`: in a wheel, the example scenarios and series alone.

    A checkout has them beside the package, a wheel within it (force-include in pyproject.toml)."""
    inside = _PACKAGE / f"_{name}"
    return inside if inside.is_dir() else _PACKAGE.parent / name


class MissingExtraError(BenchError):
    """An extra that this work needs is not installed."""


@contextmanager
def missing_extra_explained() -> Iterator[None]:
    """Turn the error of a missing module into one that names the extra that installs it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        for extra, modules in MODULES.items():
            if package in modules:
                raise MissingExtraError(
                    f"{package}, which is of the extra [{extra}], is not installed",
                    hint=f"pip install 'vfio-barometer[{extra}]'",
                    reason=Reason.EXTRA_MISSING,
                ) from exc
        raise
