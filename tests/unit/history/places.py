"""Places of stores for tests: a SQLite file, and a PostgreSQL server that the tests start."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SERVER_USERS = ("postgres", "nobody")
_NUMBERS = itertools.count(1)


def _programs() -> Path:
    """Return the folder of the newest PostgreSQL server of this machine."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    if not folders:
        pytest.fail("PostgreSQL is missing; ci/setup.sh --tests installs it")
    return folders[-1].parent


@contextmanager
def postgresql() -> Iterator[str]:
    """Start a server on a socket in a private folder, and yield its address without a database.
    It refuses to run as root."""
    folder = Path(tempfile.mkdtemp(prefix="barometer-pg-"))
    programs, user = _programs(), ""
    become: list[str] = []
    if os.geteuid() == 0:
        user = next(name for name in _SERVER_USERS if _is_user(name))
        become = ["setpriv", f"--reuid={user}", f"--regid={_group(user)}", "--clear-groups"]
        shutil.chown(folder, user)
    data = folder / "data"

    def execute(*command: str | Path) -> None:
        done = subprocess.run(
            [*become, *command], capture_output=True, text=True, timeout=300, check=False,
            cwd=folder, env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        execute(programs / "initdb", "-D", data, "-U", "lab", "-A", "trust", "-N")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        execute(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options,
                "start")  # fmt: skip
        try:
            yield f"postgresql://lab@/{{}}?host={folder}"
        finally:
            execute(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def new_database(server: str) -> str:
    """Make an empty database, and return its address."""
    import psycopg  # noqa: PLC0415

    name = f"history{next(_NUMBERS)}"
    address = server.format("postgres")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return server.format(name)


Places = Callable[[], str]
"""Returns the place of a new store at each call."""
