"""The keeper over a real sshd, on a made-up machine, which is all that it can reach."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.metal.keeper import MACHINE, Keeper, Lease
from orchestrator.machine.transport.shell import Shell
from tests.lab.sshd import Server, server_in, serving
from tests.lab.test_shell import connection
from tests.unit.agents.keeper.machines import THP, Machine

pytestmark = pytest.mark.ssh


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(server_in(tmp_path_factory.mktemp("sshd"))) as running:
        yield running


@pytest.fixture
def shell(server: Server, machine: Machine) -> Iterator[Shell]:
    """A shell whose commands run on the made-up machine, as sudo would run them as root."""
    names = ("BAROMETER_ROOT", "ROOT", "PATH")
    become = ("/usr/bin/env", *(f"{name}={os.environ[name]}" for name in names), "/bin/sh", "-c")
    with connection(server) as opened:
        yield Shell("host", opened._transport, become=become)


def test_machine_is_changed_and_put_back_over_ssh(machine: Machine, shell: Shell) -> None:
    before = machine.all()
    keeper = Keeper(lambda: shell)
    assert keeper.acquire([MACHINE], "nightly.toml", ttl=3) is False
    with Lease(lambda: shell, keeper.token, ttl=3) as lease:
        keeper.write(THP, "always")
        keeper.claim([f"/boot/{number:0200}" for number in range(1000)])
        keeper.deadman(60)
        assert (machine.root / "var/lib/barometer/keeper.pyz").stat().st_size > 1000
        with pytest.raises(BenchError, match="not below /sys or /proc/sys"):
            keeper.write("/etc/passwd", "x")
        assert keeper.putback().failed == []
        lease.check()
    keeper.release()
    assert machine.all() == before
