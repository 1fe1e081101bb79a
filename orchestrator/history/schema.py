"""The schema of a store: which one it has, and how it becomes that of this barometer.

alembic makes the steps (`migrations/versions/`), all in one transaction. A store of a newer
barometer, or one whose tables are not what its version says, is refused.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.history.tables import METADATA

_MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION_TABLE = "alembic_version"


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def list_versions() -> tuple[str, ...]:
    """Return the versions of the schema, the oldest first."""
    script = ScriptDirectory.from_config(_config())
    return tuple(revision.revision for revision in script.walk_revisions())[::-1]


def read_version(connection: Connection) -> str | None:
    """Return the version of the store's schema; None if the store is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def update_schema(connection: Connection, store: str, version: str = "head") -> None:
    """Bring an empty or older store to `version`, within the connection's transaction. `store` is
    its name in messages.

    Raises BenchError if the store is of a newer barometer, or if it is damaged.
    """
    found = read_version(connection)
    check_version(connection, store, found)
    if found == list_versions()[-1]:
        return
    tables = {*inspect(connection).get_table_names()} - {_VERSION_TABLE}
    if found is None and tables:
        raise BenchError(
            f"{store} holds tables of something else: {', '.join(sorted(tables)[:5])}",
            hint="name another file or database for the history",
            reason=Reason.HISTORY_FOREIGN,
        )
    command.upgrade(_config(connection), version)


def check_version(connection: Connection, store: str, found: str | None) -> None:
    """Raise BenchError unless this barometer can read or update a store of this version."""
    if found is not None and found not in list_versions():
        raise BenchError(
            f"{store} has the schema {found}; this barometer knows up to {list_versions()[-1]}",
            hint="update barometer, or name another store",
            reason=Reason.HISTORY_NEWER,
        )
    if found == list_versions()[-1] and (missing := list_missing(connection)):
        raise damaged(store, f"it lacks {', '.join(missing[:5])}")


def list_missing(connection: Connection) -> list[str]:
    """Return the tables and columns that the present schema has and the store lacks."""
    inspector = inspect(connection)
    there = {*inspector.get_table_names()}
    missing = [name for name in METADATA.tables if name not in there]
    for name, table in METADATA.tables.items():
        if name in there:
            columns = {column["name"] for column in inspector.get_columns(name)}
            missing += [f"{name}.{c.name}" for c in table.columns if c.name not in columns]
    return missing


def damaged(store: str, why: str) -> BenchError:
    return BenchError(
        f"{store} is damaged: {why}",
        hint="move it away; `barometer history add RUN...` fills a new one from the runs' folders",
        reason=Reason.HISTORY_DAMAGED,
    )
