"""Each test with a store runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.history.places import Places, new_database, postgresql


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with postgresql() as address:
        yield address


@pytest.fixture(params=["sqlite", "postgresql"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    if request.param == "postgresql":
        address = request.getfixturevalue("server")
        return lambda: new_database(address)
    numbers = itertools.count(1)
    return lambda: str(tmp_path / f"history{next(numbers)}.db")


@pytest.fixture
def place(places: Places) -> str:
    return places()
