"""The charge of a failure at which an exact host's clock nearly stands still, and what a guest's
boot needs of its host."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.guest import guest, watching
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.probes import MARKER, UNTIL_KERNEL
from orchestrator.machine.transport.shell import Completed, ConnectionLostError
from orchestrator.scenario.machines import Guest
from tests.unit.hosts import AgentHost, HostShell, Recorded


@dataclass
class FakeHost:
    accel: str
    step: float
    """Seconds that the host's clock advances in one real second; below 0: it does not answer."""
    shell: Any = None
    told: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shell = self

    def run(self, argv: list[str], timeout: float) -> Completed:
        if self.step < 0:
            raise ConnectionLostError("gone", reason=Reason.HOST_SSH_LOST)
        self.told.append(1000.0 + self.step * guest._SPEED_SECONDS * len(self.told))
        return Completed(f"{self.told[-1]:.2f} 0.00\n", "", 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "_SPEED_SECONDS", 0.05)


def given_up(host: Any) -> BarometerError:
    with pytest.raises(BarometerError) as raised, guest._blaming_a_crawl(host):
        raise ArmFailedError("no SSH", evidence="console", reason=Reason.GUEST_NO_SSH)
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
    with guest._blaming_a_crawl(FakeHost("exact", 0.0)):  # type: ignore[arg-type]
        pass


class Pages(Recorded):
    """A host with pages of one size, some of them set aside already. It finds `more` at most."""

    def __init__(
        self, root: Path, kilobytes: int = 2048, *, before: int = 0, more: int, free: int = 0,
        promised: int = 0,
    ) -> None:  # fmt: skip
        super().__init__([])
        self.path = f"/sys/kernel/mm/hugepages/hugepages-{kilobytes}kB/nr_hugepages"
        self.most = before + more
        self.shell, self.change = HostShell(root), self
        self._file, self._compact = root / self.path[1:], root / "proc/sys/vm/compact_memory"
        for path, text in ((self._file, f"{before}\n"), (self._compact, "")):
            path.parent.mkdir(parents=True)
            path.write_text(text)
        (self._file.parent / "free_hugepages").write_text(f"{free}\n")
        (self._file.parent / "resv_hugepages").write_text(f"{promised}\n")

    @property
    def count(self) -> int:
        return int(self._file.read_text())

    @property
    def compacted(self) -> bool:
        return self._compact.read_text() == "1\n"

    def write(self, path: str, value: str) -> None:
        super().write(path, value)
        assert self.compacted
        self._file.write_text(f"{min(int(value), self.most)}\n")

    def undo(self, command: str) -> None:
        self.shell.run(command, check=False)


def guest_with(backing: str, memory: int = GIB) -> Guest:
    """Make a guest with only the settings that matter here."""
    return cast(Guest, SimpleNamespace(backing=backing, memory=memory))


def reserved(host: Pages, spec: Guest) -> contextlib.AbstractContextManager[None]:
    return guest._reserved_huge_pages(cast(Host, host), spec)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(
    ("backing", "kilobytes", "count"), [("hugetlb-2MiB", 2048, 512), ("hugetlb-1GiB", 1048576, 1)]
)
def test_huge_pages_are_set_aside_beside_others_while_a_guest_runs(
    tmp_path: Path, backing: str, kilobytes: int, count: int, before: int
) -> None:
    host = Pages(tmp_path, kilobytes, before=before, more=10_000)
    with reserved(host, guest_with(backing)):
        assert host.count == before + count
        assert host.log == [f"change: write {host.path} {before + count}"]
    assert host.count == before


@pytest.mark.parametrize(
    ("free", "promised", "added"), [(512, 0, 0), (600, 88, 0), (500, 0, 12), (512, 300, 300)]
)
def test_huge_pages_that_nobody_uses_are_taken_first(
    tmp_path: Path, free: int, promised: int, added: int
) -> None:
    """host.cmdline has set them aside."""
    host = Pages(tmp_path, before=600, more=added, free=free, promised=promised)
    with reserved(host, guest_with("hugetlb-2MiB")):
        assert host.count == 600 + added
        assert len(host.log) == (added > 0)
    assert host.count == 600


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_other_memory_is_not_set_aside(tmp_path: Path, backing: str) -> None:
    host = Pages(tmp_path, before=3, more=1000)
    with reserved(host, guest_with(backing)):
        assert host.count == 3
    assert (host.log, host.compacted) == ([], False)


@pytest.mark.parametrize("before", [0, 300])
def test_too_few_huge_pages_are_the_arms_failure_and_are_given_back(
    tmp_path: Path, before: int
) -> None:
    """Pages that were there before belong to somebody else."""
    host = Pages(tmp_path, before=before, more=200)
    with (
        pytest.raises(ArmFailedError, match="found 200 of 256 huge pages") as caught,
        reserved(host, guest_with("hugetlb-2MiB", 512 * MIB)),
    ):
        pytest.fail("it does not boot")
    assert caught.value.reason == "no-huge-pages"
    assert '"hugetlb-2MiB"' in caught.value.message
    assert host.count == before


def test_kernel_without_pages_of_that_size_is_the_arms_failure(tmp_path: Path) -> None:
    host = Pages(tmp_path, 2048, more=1000)
    with (
        pytest.raises(ArmFailedError, match="found 0 of 1 huge pages"),
        reserved(host, guest_with("hugetlb-1GiB")),
    ):
        pytest.fail("it does not boot")
    assert (host.log, host.count) == ([], 0)


def test_huge_pages_are_given_back_when_the_guest_fails(tmp_path: Path) -> None:
    host = Pages(tmp_path, before=7, more=512)
    with pytest.raises(BenchError), reserved(host, guest_with("hugetlb-2MiB")):
        raise BenchError("no", reason=Reason.TIMEOUT)
    assert host.count == 7


class Stream(AgentHost):
    """A host whose watch agent prints one line."""

    def __init__(self) -> None:
        super().__init__(shell=self)
        self.asked: list[list[str]] = []

    @contextlib.contextmanager
    def stream(self, argv: list[str], timeout: float) -> Iterator[Iterator[str]]:
        self.asked.append(argv)
        yield iter(['E 5 ports {"console": 1, "ssh": 2}'])


@pytest.mark.parametrize("traced", [False, True])
def test_watch_agent_writes_to_the_trace_where_there_is_one(tmp_path: Path, traced: bool) -> None:
    host = Stream()
    with watching.watching(
        cast(Host, host), "guest-1", tmp_path, token="c0ffee", traced=traced
    ) as watched:
        watched._thread.join(5)
        assert watched.event("ports") == '{"console": 1, "ssh": 2}'
    plain = ["watch", "/run/libvirt/qemu/guest-1.pid", "barometer: boot mark c0ffee,"]
    assert host.asked == [plain + [MARKER, *UNTIL_KERNEL] * traced]
    assert (tmp_path / "marks.txt").read_text() == 'E 5 ports {"console": 1, "ssh": 2}\n'
