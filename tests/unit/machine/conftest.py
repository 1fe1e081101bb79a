from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keeper import deadman
from orchestrator.base import waiting
from orchestrator.base.cache import Cache
from orchestrator.machine.metal import boots, leasing
from orchestrator.machine.transport import remote
from tests.unit.agents.keeper.machines import made_up
from tests.unit.machine.metals import ENDPOINT, Lab, StandIn


@pytest.fixture(scope="session")
def initramfs_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache of the two kernels' initramfs, which the first test that stages them makes."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def lab(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    initramfs_cache: Cache,
) -> Iterator[Lab]:  # fmt: skip
    def until(check: Any, **how: Any) -> Any:
        return waiting.until(check, **{**how, "every": 0.01})

    with made_up() as made:
        (made.root / "fakes/setpriv").symlink_to("/usr/bin/setpriv")  # this machine's setpriv
        machine = StandIn(made)
        lab = Lab(machine, tmp_path, monkeypatch, capsys, initramfs_cache)
        monkeypatch.setattr(remote, "resolve_address", lambda address, config=None: ENDPOINT)
        monkeypatch.setattr(remote, "Link", machine.link)
        monkeypatch.setattr(leasing, "until", until)
        monkeypatch.setattr(boots, "until", until)
        monkeypatch.setattr(boots, "run", lab.cycle)
        monkeypatch.setattr(deadman, "_own_archive", lambda: b"the keeper")
        yield lab
