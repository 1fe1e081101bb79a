"""The client and the real keeper, sent to a machine as it is and run by an interpreter of its
own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.metal import keeper as client
from orchestrator.machine.metal.keeper import MACHINE, HeldError, Image, Keeper, Lease, has_ended
from orchestrator.machine.runner.agents import StayingAgent
from orchestrator.machine.runner.owner import process_start
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import (
    A_DAY,
    Completed,
    ConnectionLostError,
    Dialogue,
    Shell,
)
from tests.unit.agents.keeper.machines import GPU, RELEASE, THP, Machine, made_up

TICKS = os.sysconf("SC_CLK_TCK")


class KeeperShell(LocalMachine, Shell):
    """A shell that runs the keeper's commands here, on the made-up machine."""

    name = "host"

    def __init__(self) -> None:
        self.timeouts: list[float] = []
        self.began: list[float] = []
        """Times at which a program began that stays."""
        self.dialogues: list[Dialogue] = []

    def run(self, argv: Sequence[str] | str, *, timeout: float = 120, **how: Any) -> Completed:
        assert argv[0] == "python3"
        self.timeouts.append(timeout)
        return super().run([sys.executable, *argv[1:]], timeout=60, **how)

    @contextlib.contextmanager
    def stream(
        self, argv: Sequence[str], timeout: float, in_all: float = A_DAY
    ) -> Iterator[Dialogue]:
        assert argv[0] == "python3"
        self.timeouts.append(timeout)
        self.began.append(time.monotonic())
        with super().stream([sys.executable, *argv[1:]], 60, in_all) as dialogue:
            self.dialogues.append(dialogue)
            yield dialogue


@pytest.fixture
def machine() -> Iterator[Machine]:
    with made_up() as made:
        yield made


@pytest.fixture
def shell() -> KeeperShell:
    return KeeperShell()


@pytest.fixture
def keeper(machine: Machine, shell: KeeperShell) -> Keeper:
    return Keeper(lambda: shell)


@pytest.fixture
def ended() -> int:
    """Id of a process that has ended."""
    process = subprocess.Popen(["/bin/true"])
    process.wait()
    return process.pid


def test_machine_is_changed_and_put_back(machine: Machine, keeper: Keeper) -> None:
    before = machine.all()
    assert keeper.acquire([MACHINE], "nightly.toml") is False
    assert keeper.original()["release"] == keeper.status()["release"]
    keeper.write(THP, "always")
    assert "vfio_pci" in keeper.modules(["vfio-pci"])
    keeper.bind(GPU, "vfio-pci")
    keeper.claim(["/boot/vmlinuz-new"])
    machine.file("/var/lib/barometer/7/modules/modules.dep", "")
    keeper.link("/lib/modules/7.3.4", "/var/lib/barometer/7/modules")
    keeper.mount(f"/lib/modules/{RELEASE}", "/var/lib/barometer/7/modules")
    assert machine.text("/lib/modules/7.3.4/modules.dep") == ""
    assert machine.text(f"/lib/modules/{RELEASE}/modules.dep") == ""
    keeper.tracing("barometer", "barotime")
    keeper.guest("01234567-89ab-cdef-0123-456789abcdef")
    keeper.deadman(60)
    assert machine.driver(GPU) == "vfio-pci"
    assert keeper.putback(volatile=True).failed == []
    assert machine.driver(GPU) is None
    with pytest.raises(BenchError, match="host: 5 changes of the machine are not put back"):
        keeper.release()
    put_back = keeper.putback()
    assert put_back.failed == []
    assert "/boot/vmlinuz-new: removed" in put_back.done
    keeper.kernel_restored()
    keeper.release()
    assert machine.all() == before


def test_machine_boots_and_is_confirmed(machine: Machine, keeper: Keeper) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    keeper.original()
    facts = machine.image()
    image = Image(**facts)
    left, _ = keeper.boot("kexec", image, "ro barometer.token=7", extend=600)
    assert left == machine.text("/proc/sys/kernel/random/boot_id").strip()
    assert "barometer.token=7" in machine.text("/log")
    machine.boots(release="7.3.4", token="7")
    assert keeper.confirm() == []
    assert keeper.status()["leases"][0]["left"] <= 60
    keeper.boot("reboot", extend=600)
    machine.boots(release="6.12.110-amd64")
    with pytest.raises(BenchError, match="and not its own") as caught:
        keeper.kernel_restored()
    assert caught.value.reason == "wrong-kernel"
    keeper.kernel_restored(keep=True)
    keeper.putback()
    keeper.release()


def test_last_words_of_a_boot_are_told(machine: Machine, keeper: Keeper) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    keeper.original()
    keeper.boot("reboot", extend=600)
    panic = machine.file("/sys/fs/pstore/dmesg-efi-1", "Kernel panic\n")
    os.utime(panic, (4e9, 4e9))
    assert keeper.last_words() == "Kernel panic\n"
    assert keeper.last_words() == ""


def test_boot_without_the_watchdog_is_told(machine: Machine, keeper: Keeper) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    keeper.original()
    _, notes = keeper.boot("reboot", extend=600, watchdog=("watchdog0", 300))
    assert notes == ["no watchdog: watchdog0 is not there"]


def test_program_of_the_switch_is_the_keeper_and_runs(machine: Machine, keeper: Keeper) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    keeper.deadman(0)
    program = machine.root / "var/lib/barometer/keeper.pyz"
    assert program.read_bytes() == client._program().content
    done = subprocess.run(
        [sys.executable, "-I", program, "deadman", "0"], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # its own kernel runs


def test_means_of_booting_are_told(keeper: Keeper) -> None:
    assert keeper.detect()["kexec"]["usable"] is True


def test_refusal_is_an_error_with_the_keepers_reason(keeper: Keeper) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    with pytest.raises(BenchError) as caught:
        keeper.bind("0000:99:00.0", "vfio-pci")
    assert caught.value.reason == "bind"
    assert caught.value.message == (
        "host: /sys/bus/pci/devices/0000:99:00.0: the machine has no such device"
    )


def test_machine_without_python_is_named(
    keeper: Keeper, shell: KeeperShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Completed("", "sh: 1: python3: not found\n", 127)
    monkeypatch.setattr(shell, "run", lambda *_, **__: missing)
    with pytest.raises(BenchError, match="did not answer to status: exit code 127") as caught:
        keeper.status()
    assert caught.value.reason == "keeper-failed"
    assert caught.value.evidence == "sh: 1: python3: not found"


def owned_by(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Callable[[], None]:
    """Make another process than this the owner of new leases, until the returned function is
    called."""
    mine = client.describe_this_process
    monkeypatch.setattr(client, "describe_this_process", lambda what: {**mine(what), **changes})
    return lambda: monkeypatch.setattr(client, "describe_this_process", mine)


def test_lease_of_another_runner_is_not_taken(
    machine: Machine, shell: KeeperShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    back = owned_by(monkeypatch, runner="ci8", user="dev", pid=1)
    first = Keeper(lambda: shell)
    first.acquire([MACHINE], "weekly.toml")
    back()
    said: list[str] = []
    with pytest.raises(HeldError) as caught:
        Keeper(lambda: shell).acquire([MACHINE], "nightly.toml", on_wait=said.append)
    assert caught.value.reason == "lease-held"
    assert "host: the machine is held by dev@ci8 (process 1, weekly.toml) for another " in (
        caught.value.message
    )
    assert said == [caught.value.message]
    assert caught.value.holder["token"] == first.token


def test_lease_is_waited_for(
    machine: Machine, shell: KeeperShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_WAIT_SECONDS", 0.1)
    first, second = Keeper(lambda: shell), Keeper(lambda: shell)
    first.acquire([MACHINE], "weekly.toml")
    said: list[str] = []

    def release(message: str) -> None:
        said.append(message)
        first.release()

    assert second.acquire([MACHINE], "nightly.toml", wait=30, on_wait=release) is False
    assert len(said) == 1
    assert second.token > first.token


def test_lease_of_a_process_of_this_runner_that_has_ended_is_taken_over(
    machine: Machine, shell: KeeperShell, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    back = owned_by(monkeypatch, pid=ended, started=1)
    first = Keeper(lambda: shell)
    first.acquire([MACHINE], "nightly.toml")
    first.write(THP, "always")
    back()
    second = Keeper(lambda: shell)
    assert second.acquire([MACHINE], "nightly.toml") is True
    with pytest.raises(BenchError) as caught:
        first.write(THP, "never")
    assert caught.value.reason == "lease-lost"
    assert second.putback().failed == []
    assert machine.text(THP) == "defer\n"
    second.release()


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"runner": "elsewhere"}, False), ({"boot_id": "another"}, False),
     ({"pid_namespace": "pid:[1]"}, False), ({"user": "dev"}, False)],
)  # fmt: skip
def test_only_this_runner_knows_of_its_processes(
    ended: int, change: dict[str, str], expected: bool
) -> None:
    owner = {**client.describe_this_process("x"), "pid": ended, "started": 1, **change}
    assert has_ended({"owner": owner}) is expected


def test_process_that_lives_has_not_ended() -> None:
    assert not has_ended({"owner": client.describe_this_process("x")})
    reused = {
        **client.describe_this_process("x"),
        "started": (process_start(os.getpid()) or 0) - 1,
    }
    assert has_ended({"owner": reused})


def test_lease_is_kept_alive_over_lost_connections(machine: Machine, shell: KeeperShell) -> None:
    keeper = Keeper(lambda: shell)
    keeper.acquire([MACHINE], "nightly.toml", ttl=30)
    done: list[str] = []
    renewed = threading.Event()

    def connect() -> Shell:
        done.append("connect")
        if done.count("connect") < 3:
            raise ConnectionLostError("gone", reason=Reason.HOST_SSH_LOST)
        renewed.set()
        return shell

    with Lease(connect, keeper.token, ttl=0.9, close=lambda: done.append("close")) as lease:
        assert renewed.wait(20)
        lease.check()
        assert not lease.lost
    assert done[:5] == ["connect", "close", "connect", "close", "connect"]
    assert shell.timeouts[-1] == pytest.approx(0.3)  # a third of its life
    assert keeper.status()["leases"][0]["token"] == keeper.token


def left(keeper: Keeper) -> float:
    """Return the seconds until the machine's only lease expires."""
    (lease,) = keeper.status()["leases"]
    return float(lease["left"])


def wait_for(is_done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not is_done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_keeper_stays_between_the_renewals_of_a_lease(
    machine: Machine, keeper: Keeper, shell: KeeperShell
) -> None:
    keeper.acquire([MACHINE], "nightly.toml", ttl=30)
    with Lease(lambda: shell, keeper.token, ttl=0.3) as lease:
        wait_for(lambda: shell.began)
        granted = left(keeper)
        time.sleep(0.5)
        assert left(keeper) > granted - 0.4  # it was renewed since
        lease.check()
    assert len(shell.began) == 1
    # nobody renews it any more
    before = left(keeper)
    time.sleep(0.3)
    assert left(keeper) < before


def test_keeper_that_stays_tells_how_busy_the_machine_is_whoever_has_its_lock(
    machine: Machine, keeper: Keeper, shell: KeeperShell
) -> None:
    keeper.acquire([MACHINE], "nightly.toml")
    stat = "cpu  100 20 300 99999 88888 5 6 7 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 1\n"
    machine.file("/proc/stat", stat)
    with Lease(lambda: shell, keeper.token) as lease:
        with (machine.root / "run/barometer.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert lease.read_busy_seconds() == (100 + 20 + 300 + 5 + 6 + 7) / TICKS
        machine.file("/proc/stat", "rubbish\n")
        assert lease.read_busy_seconds() is None
        machine.file("/proc/stat", stat)
        assert lease.read_busy_seconds() is not None
        lease.check()
    assert len(shell.began) == 1


def test_machine_that_is_not_reached_does_not_tell_how_busy_it_is(
    machine: Machine, keeper: Keeper
) -> None:
    def unreached() -> Shell:
        raise BenchError("no", reason=Reason.HOST_NO_SSH)

    assert Lease(unreached, 7).read_busy_seconds() is None


def test_keeper_that_is_lost_is_sent_again(
    machine: Machine, keeper: Keeper, shell: KeeperShell
) -> None:
    keeper.acquire([MACHINE], "nightly.toml", ttl=30)
    closed: list[int] = []
    lease = Lease(lambda: shell, keeper.token, ttl=0.3, close=lambda: closed.append(1))
    with lease:
        wait_for(lambda: shell.dialogues)
        cast(socket.socket, shell.dialogues[0]._channel).shutdown(socket.SHUT_RDWR)
        wait_for(lambda: len(shell.began) == 2)
        assert closed
        lease.check()


def test_keeper_that_stays_ends_with_its_connection(machine: Machine, shell: KeeperShell) -> None:
    agent = StayingAgent(lambda: shell, client._program(), "stay")
    for _ in range(2):
        assert "lease-lost" in agent.ask({"verb": "renew", "token": 7}, within=20)
        assert '"leases": []' in agent.ask({"verb": "status"}, within=20)
        agent.close()  # waits for its end, and would raise if it did not come
    assert len(shell.began) == 2


def test_keeper_that_stays_is_not_kept_by_a_runner_that_is_gone(tmp_path: Path) -> None:
    """The connection may stay open: the machine does not learn that the runner is gone."""
    archive = tmp_path / "keeper.pyz"
    archive.write_bytes(client._program().content)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from keeper import verbs;"
        "verbs._IDLE_SECONDS = 1; verbs.stay()"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, archive], stdin=subprocess.PIPE
    ) as process:
        assert process.wait(20) == -signal.SIGALRM


def test_lease_that_was_taken_over_is_lost(
    machine: Machine, shell: KeeperShell, monkeypatch: pytest.MonkeyPatch, ended: int
) -> None:
    back = owned_by(monkeypatch, pid=ended, started=1)
    first, second = Keeper(lambda: shell), Keeper(lambda: shell)
    first.acquire([MACHINE], "nightly.toml")
    back()
    second.acquire([MACHINE], "weekly.toml")
    with Lease(lambda: shell, first.token, ttl=0.3) as lease:
        lease._thread.join(20)
        assert lease.lost
        with pytest.raises(BenchError, match=r"weekly\.toml") as caught:
            lease.check()
    assert caught.value.reason == "lease-lost"


def test_keeper_that_is_sent_removes_probes_by_the_program_of_the_armer(
    machine: Machine, keeper: Keeper
) -> None:
    events = "r8:barotime/out vfio_pin\np:other/mine vfs_read\n"
    machine.file("/sys/kernel/tracing/kprobe_events", events)
    keeper.acquire([MACHINE], "nightly.toml")
    keeper.tracing("barometer", "barotime")
    assert keeper.putback().failed == []
    assert machine.text("/sys/kernel/tracing/kprobe_events") == f"{events}-:barotime/out\n"


def test_program_that_is_sent_is_the_keeper_alone(tmp_path: Path) -> None:
    path = tmp_path / "keeper.pyz"
    path.write_bytes(client._program().content)
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert {"__main__.py", "keeper/tracing.sh", "keeper/verbs.py"} <= names
    assert {name.split("/")[0] for name in names} == {"__main__.py", "keeper"}
