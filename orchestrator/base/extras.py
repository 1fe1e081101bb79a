"""The optional parts of an installation: pyproject.toml lists what each of them installs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason

MODULES = {
    "bench": ("elftools", "libvirt", "libvirt_qemu", "paramiko", "tenacity"),
    "history": ("alembic", "psycopg", "pyarrow", "ruptures", "sqlalchemy"),
    "report": ("google", "jinja2", "markupsafe", "perfetto"),
}
"""Modules that each extra installs. Judging alone needs none of them."""


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
