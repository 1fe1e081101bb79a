"""Whose failure it is when an exact host's clock all but stands still; what a guest's boot needs
of its host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.bench import guest, watching
from orchestrator.bench.host import Host
from orchestrator.bench.shell import Completed, ConnectionLostError
from orchestrator.bench.tracer import MARKER, UNTIL_KERNEL
from orchestrator.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.scenario import GIB, MIB, Guest


@dataclass
class FakeHost:
    accel: str
    step: float
    """Seconds that its clock goes on in one of ours; below 0: it does not answer."""
    shell: Any = None
    told: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shell = self

    def run(self, argv: list[str], timeout: float) -> Completed:
        if self.step < 0:
            raise ConnectionLostError("gone", reason="host-ssh-lost")
        self.told.append(1000.0 + self.step * guest._SPEED_SECONDS * len(self.told))
        return Completed(f"{self.told[-1]:.2f} 0.00\n", "", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_SPEED_SECONDS", 0.05)


def given_up(host: Any) -> BarometerError:
    with pytest.raises(BarometerError) as raised, guest._crawling_is_the_benchs(host):
        raise ArmFailedError("no SSH", evidence="console", reason="guest-no-ssh")
    return raised.value


@pytest.mark.parametrize("step", [0.0, 0.02, -1.0])
def test_guest_on_an_exact_host_that_crawls_is_the_benchs(step: float) -> None:
    failure = given_up(FakeHost("exact", step))
    assert isinstance(failure, BenchError)
    assert (failure.reason, failure.evidence) == ("exact-crawl", "console")
    assert "no SSH" in failure.message


@pytest.mark.parametrize(("accel", "step"), [("exact", 0.7), ("exact", 50.0), ("tcg", 0.0)])
def test_guest_on_a_host_that_goes_on_is_the_arms(accel: str, step: float) -> None:
    failure = given_up(FakeHost(accel, step))
    assert isinstance(failure, ArmFailedError)
    assert failure.reason == "guest-no-ssh"


def test_guest_that_boots_is_nobodys_failure() -> None:
    with guest._crawling_is_the_benchs(FakeHost("exact", 0.0)):  # type: ignore[arg-type]
        pass


class Pages:
    """A host that finds so many huge pages, at most."""

    def __init__(self, there: int) -> None:
        self.there = there
        self.ran: list[str] = []
        self.undone: list[str] = []
        self.shell = self

    def run(self, command: str, doing: str) -> Completed:
        self.ran.append(command)
        wanted = int(command.split("echo ")[3].split(maxsplit=1)[0])
        return Completed(f"{min(wanted, self.there)}\n", "", 0)

    def undo(self, command: str) -> None:
        self.undone.append(command)


def guest_with(backing: str, memory: int = GIB) -> Guest:
    """Whatever a scenario would say of it."""
    return cast(Guest, SimpleNamespace(backing=backing, memory=memory))


def reserved(host: Pages, spec: Guest) -> contextlib.AbstractContextManager[None]:
    return guest._reserved(cast(Host, host), spec)


@pytest.mark.parametrize(
    ("backing", "kilobytes", "count"), [("hugetlb-2MiB", 2048, 512), ("hugetlb-1GiB", 1048576, 1)]
)
def test_huge_pages_are_set_aside_while_a_guest_runs(
    backing: str, kilobytes: int, count: int
) -> None:
    host = Pages(10_000)
    path = f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages"
    with reserved(host, guest_with(backing)):
        assert host.ran == [
            f"[ -e {path} ] || {{ echo 0; exit 0; }};"
            f" echo 1 > /proc/sys/vm/compact_memory; echo {count} > {path}; cat {path}"
        ]
        assert host.undone == []
    assert host.undone == [f"echo 0 > {path}"]


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_other_memory_is_not_set_aside(backing: str) -> None:
    host = Pages(0)
    with reserved(host, guest_with(backing)):
        pass
    assert (host.ran, host.undone) == ([], [])


def test_too_few_huge_pages_are_the_arms_failure_and_are_given_back() -> None:
    host = Pages(200)
    with (
        pytest.raises(ArmFailedError, match="found 200 of 256 huge pages") as caught,
        reserved(host, guest_with("hugetlb-2MiB", 512 * MIB)),
    ):
        pytest.fail("it does not boot")
    assert caught.value.reason == "no-huge-pages"
    assert '"hugetlb-2MiB"' in caught.value.message
    assert len(host.undone) == 1


def test_huge_pages_are_given_back_when_the_guest_fails() -> None:
    host = Pages(512)
    with pytest.raises(BenchError), reserved(host, guest_with("hugetlb-2MiB")):
        raise BenchError("no")
    assert len(host.undone) == 1


class Stream:
    """A host whose watch agent says one line."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.shell = self

    def agent(self, *words: str) -> list[str]:
        return [*words]

    @contextlib.contextmanager
    def stream(self, argv: list[str], timeout: float) -> Iterator[Iterator[str]]:
        self.asked.append(argv)
        yield iter(['E 5 ports {"console": 1, "ssh": 2}'])


@pytest.mark.parametrize("traced", [False, True])
def test_watch_agent_writes_to_the_trace_where_there_is_one(tmp_path: Path, traced: bool) -> None:
    host = Stream()
    with watching.watching(cast(Host, host), "guest-1", tmp_path, traced=traced) as watched:
        watched._thread.join(5)
        assert watched.event("ports") == '{"console": 1, "ssh": 2}'
    plain = ["watch", "/run/libvirt/qemu/guest-1.pid", "barometer: boot mark"]
    assert host.asked == [plain + [MARKER, *UNTIL_KERNEL] * traced]
    assert (tmp_path / "marks.txt").read_text() == 'E 5 ports {"console": 1, "ssh": 2}\n'
