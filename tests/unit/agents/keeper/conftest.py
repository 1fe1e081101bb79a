from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.agents.keeper.machines import Machine, made_up


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine that nobody has a lease on."""
    with made_up() as made:
        yield made


@pytest.fixture
def held(machine: Machine) -> Machine:
    """A machine under a lease of the test's runner."""
    assert machine.acquire()["unfinished"] is False
    return machine
