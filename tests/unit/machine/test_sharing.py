"""Hosts that trials share: the real agent on a made-up machine, with boots that are counted."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.changes import RememberedChanges
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.kernelwatch import KernelWatch
from orchestrator.machine.nested import sharing
from orchestrator.machine.nested.nested import BootSpec
from orchestrator.machine.nested.sharing import HostPool
from orchestrator.machine.runner.images import HostImage
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.transport.shell import Completed, ConnectionLostError
from orchestrator.machine.vm.domain import Disk
from orchestrator.machine.vm.hypervisor import Connection
from tests.unit.agents.keeper.machines import HUGE, Machine, made_up
from tests.unit.agents.loading import agent
from tests.unit.hosts import HostShell
from tests.unit.manifests import facts_of
from tests.unit.scenarios import scenario

AGENT = agent("sharing")


class Wire(HostShell):
    """A connection to a host, on which the host's agent answers."""

    def __init__(self, made: Machine) -> None:
        super().__init__(made.root)
        self.lost = False
        self.garbled = ""
        """Output of the agent in place of its answer."""

    def run(self, argv: Sequence[str] | str, *, stdin: bytes = b"", **how: Any) -> Completed:
        if self.lost:
            raise ConnectionLostError("the SSH connection was lost", reason=Reason.HOST_SSH_LOST)
        if argv[0] == "python3":
            answer = {"failed": AGENT.put_back(json.loads(stdin)), "state": AGENT.state()}
            return Completed(self.garbled or json.dumps(answer), "", 0)
        return super().run(argv, stdin=stdin, **how)


@dataclass(frozen=True, kw_only=True)
class MadeUpHost(Host):
    """A host that lives as long as its lab says."""

    is_ours: ClassVar[bool] = True
    lab: Lab

    def is_alive(self) -> bool:
        return self.lab.alive

    def libvirt(self) -> Any:
        raise AssertionError("no guest is booted")


class LabTrial(TrialWriter):
    """A trial of a lab."""

    raised = ""
    """The error that ended it early."""

    @property
    def known(self) -> dict[str, Any]:
        return self.manifest.to_json()


class Lab:
    """A machine whose boots start nothing."""

    def __init__(self, made: Machine, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.made, self.folder = made, folder
        self.log: list[str] = []
        self.failing: Exception | None = None
        self.alive = True
        self.wire = Wire(made)
        state = SimpleNamespace(token="0f0f", folder=folder)
        self.pool = HostPool(cast(BenchState, state), cast(Connection, None))
        patch.setattr(sharing, "running_machine", self._running)
        patch.setattr(sharing, "proven_host", self._proven)
        patch.setattr(sharing, "prepare_host", lambda host, spec: replace(host, kvm=True))
        patch.setattr(sharing, "prove_kernel", self._prove)
        patch.setattr(sharing, "_SETTLE_SECONDS", 0.0)
        made.file("/sys/kernel/tracing/kprobe_events", "")

    @property
    def booted(self) -> int:
        return self.log.count("boot")

    @contextlib.contextmanager
    def _running(self, spec: BootSpec, token: str, **_: Any) -> Iterator[Any]:
        self.alive = True
        place = self.folder / token
        place.mkdir()
        (place / "domain.xml").write_text(token)
        self.console = place / "console.log"
        self.say(f"Linux version {spec.kernel.release} {token}")
        self.log.append("boot")
        try:
            yield SimpleNamespace(token=token, started=time.monotonic(), folder=place)
        finally:
            self.log.append("end")
            self.say("terminated")

    @contextlib.contextmanager
    def _proven(self, machine: Any, kernel: KernelBundle, **_: Any) -> Iterator[tuple[Host, str]]:
        if self.failing is not None:
            raise self.failing
        console = Console(self.console)
        yield MadeUpHost(
            shell=self.wire, release=kernel.release, kvm=False, cpus=2, accel="tcg",
            payload="/opt/barometer", console=console, kernel=KernelWatch(console),
            scratch=machine.folder, lab=self,
            change=RememberedChanges(self.wire, "/opt/barometer"),
        ), f"boot {self.booted}"  # fmt: skip

    def _prove(self, shell: object, token: str, kernel: KernelBundle) -> str:
        if kernel.release == "another":
            raise BenchError("it runs another", reason=Reason.WRONG_KERNEL)
        return f"boot {self.booted}"

    def say(self, line: str) -> None:
        with self.console.open("a") as file:
            file.write(f"{line}\n")

    def trial(
        self,
        spec: BootSpec,
        does: Callable[[Host], object] = lambda host: None,
        *,
        shared: bool = True,
    ) -> LabTrial:
        """Run a trial on such a host, with the error that ended it early."""
        number = len([*self.folder.glob("trial-*"), *self.folder.glob(".trial-*")])
        trial = LabTrial(self.folder / f"trial-{number}", facts_of())
        try:
            boot = self.pool.boot(spec, trial=trial, progress=Progress(), shared=shared)
            with boot as host:
                does(host)
        except (BenchError, ArmFailedError, KeyboardInterrupt, AssertionError) as exc:
            trial.raised = str(exc)
        return trial


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Lab]:
    with made_up() as made:
        lab = Lab(made, tmp_path, monkeypatch)
        yield lab
        lab.pool.close()
        assert lab.booted == lab.log.count("end")


def spec_of(*overrides: str, words: tuple[str, ...] = (), **more: Any) -> BootSpec:
    chosen = scenario(*overrides)
    facts: dict[str, Any] = {
        "arm": "baseline", "host": chosen.nested, "device": chosen.device, "words": words,
        "kernel": KernelBundle("7.3", Path("/k"), Path("/m"), None, "digest"),
        "image": HostImage(Path("/root"), Path("/modules"), None, {"qemu": "10"}),
        "payload": (Disk(Path("/payload"), "payload"),), "accel": "tcg", "with_libvirt": True,
        **more,
    }  # fmt: skip
    return BootSpec(**facts)


SPEC = spec_of()


def test_trials_of_one_host_share_its_boot(lab: Lab) -> None:
    trials = [lab.trial(SPEC), lab.trial(spec_of())]
    assert lab.log == ["boot"]
    keys = ("token", "boot_id", "release", "host_cmdline", "host_session_seconds")
    first, second = ({key: t.known[key] for key in keys} for t in trials)
    assert first == second
    assert f"barometer.token={first['token']}" in first["host_cmdline"]
    for trial in trials:
        assert not trial.known.keys() & {"host_boot_seconds", "host_left"}
        assert (trial.host / "domain.xml").read_text() == first["token"]
    lab.pool.close()
    assert lab.log == ["boot", "end"]


def test_reports_of_a_host_before_a_trial_are_counted(lab: Lab) -> None:
    stall = "[   99.000000] rcu: INFO: rcu_sched self-detected stall on CPU"
    trials = [lab.trial(SPEC, lambda host: lab.say(stall)) for _ in range(3)]
    assert [t.known.get("reports_before", 0) for t in trials] == [0, 1, 2]


def test_trials_with_boots_of_their_own_are_not_kept(lab: Lab) -> None:
    trials = [lab.trial(SPEC, shared=False) for _ in range(2)]
    assert lab.log == ["boot", "end", "boot", "end"]
    assert trials[0].known["token"] != trials[1].known["token"]
    for trial in trials:
        assert trial.known["host_boot_seconds"] >= 0
        assert "host_session_seconds" not in trial.known
        # the machine's end is part of the trial's evidence
        assert (trial.host / "console.log").read_text().endswith("terminated\n")


def test_host_of_its_own_beside_one_that_is_kept_leaves_that_alone(lab: Lab) -> None:
    lab.trial(SPEC)
    kept = lab.pool._kept
    lab.trial(SPEC, shared=False)
    assert lab.pool._kept is kept
    assert lab.log == ["boot", "boot", "end"]


def test_console_of_a_trial_is_that_of_its_boot_up_to_its_end(lab: Lab) -> None:
    first = lab.trial(SPEC, lambda host: lab.say("one"))
    second = lab.trial(SPEC, lambda host: lab.say("two"))
    console = [(t.host / "console.log").read_text().splitlines()[1:] for t in (first, second)]
    assert console == [["one"], ["one", "two"]]


@pytest.mark.parametrize(
    "other",
    [
        spec_of("host.cmdline=nosmt"), spec_of("host.memory=8GiB"), spec_of("host.cpus=4"),
        spec_of("host.viommu=virtio"), spec_of("host.viommu_aw_bits=39"),
        spec_of("device.bar=1GiB"), spec_of("device.count=2"), spec_of("device.kind=pci-testdev"),
        spec_of(words=("iommu=pt",)), spec_of(accel="kvm"), spec_of(with_libvirt=False),
        spec_of(arm="candidate"),
        spec_of(payload=(Disk(Path("/other"), "payload"),)),
        spec_of(image=HostImage(Path("/root"), Path("/modules"), None, {"qemu": "11"})),
        spec_of(kernel=KernelBundle("7.3", Path("/k"), Path("/m"), None, "other digest")),
    ],
)  # fmt: skip
def test_another_host_is_booted_and_one_at_a_time_is_kept(lab: Lab, other: BootSpec) -> None:
    lab.trial(SPEC)
    lab.trial(other)
    assert lab.log == ["boot", "end", "boot"]
    lab.trial(SPEC)
    assert lab.log == ["boot", "end", "boot", "end", "boot"]


def test_kernel_is_known_by_its_content_and_proven_for_each_trial(lab: Lab) -> None:
    lab.trial(SPEC)
    copy = spec_of(kernel=KernelBundle("7.3", Path("/copy"), Path("/m2"), None, "digest"))
    assert not lab.trial(copy).raised
    other = spec_of(kernel=KernelBundle("another", Path("/k"), Path("/m"), None, "digest"))
    refused = lab.trial(other, lambda host: pytest.fail("it is not to be used"))
    assert "it runs another" in refused.raised
    assert not refused.known.keys() & {"boot_id", "host_session_seconds"}
    lab.trial(SPEC)
    assert lab.log == ["boot"]


def test_rebuilt_module_is_proven_for_each_trial(lab: Lab) -> None:
    lab.trial(SPEC)
    kernel = replace(SPEC.kernel, swapped={"vfio": "ABC"})
    refused = lab.trial(spec_of(kernel=kernel), lambda host: pytest.fail("not to be used"))
    assert "another module vfio than was built for this arm" in refused.raised


def test_what_a_trial_changed_is_put_back_before_the_next(lab: Lab) -> None:
    def change(host: Host) -> None:
        assert lab.made.text(HUGE) == "0\n"
        host.change.write(HUGE, "12")
        host.change.files("/run/barometer-x")
        lab.made.file("/run/barometer-x", "")
        lab.made.file("/run/barometer/guest.keys", "")

    for _ in range(2):
        assert "host_left" not in lab.trial(SPEC, change).known
        assert lab.made.text(HUGE) == "0\n"
    assert not list((lab.made.root / "run").glob("barometer*/*"))
    assert lab.log == ["boot"]


def test_host_on_which_something_is_left_is_thrown_away_and_that_is_recorded(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = lab.trial(SPEC, lambda host: lab.made.file("/tmp/left", ""))
    assert trial.known["host_left"] == ["/tmp:  -> left"]
    assert not trial.raised
    assert lab.log == ["boot", "end"]
    assert (trial.host / "console.log").read_text().endswith("terminated\n")
    assert "host: not as it was after the trial: /tmp:  -> left" in capsys.readouterr().err
    lab.trial(SPEC)
    assert lab.log == ["boot", "end", "boot"]


def test_record_of_what_is_left_is_bounded(lab: Lab) -> None:
    def leave(host: Host) -> None:
        for number in range(100):
            lab.made.file(f"/proc/sys/vm/x{number}", "1" * 1000)

    left = lab.trial(SPEC, leave).known["host_left"]
    assert len(left) == 20
    assert max(map(len, left)) == 200


def test_what_cannot_be_put_back_is_left(lab: Lab) -> None:
    def change(host: Host) -> None:
        host.change.write(HUGE, "12")
        (lab.made.root / HUGE[1:]).unlink()

    trial = lab.trial(SPEC, change)
    assert trial.known["host_left"][0].startswith(f"write: {HUGE} cannot be read")
    assert lab.log == ["boot", "end"]


def test_what_ends_by_itself_is_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_SETTLE_SECONDS", 20.0)
    left = lab.made.root / "tmp/left"

    def ends(seconds: float) -> None:
        left.unlink()

    monkeypatch.setattr(time, "sleep", ends)
    trial = lab.trial(SPEC, lambda host: lab.made.file("/tmp/left", ""))
    assert "host_left" not in trial.known
    assert not left.exists()
    assert lab.log == ["boot"]


def failing(error: BaseException) -> Callable[[Host], object]:
    def does(host: Host) -> None:
        raise error

    return does


def test_failure_of_a_guest_is_not_its_hosts(lab: Lab) -> None:
    error = ArmFailedError("the guest panicked", reason=Reason.GUEST_PANIC)
    failed = lab.trial(SPEC, failing(error))
    assert (failed.raised, "host_left" in failed.known) == (str(error), False)
    lab.trial(SPEC)
    assert lab.log == ["boot"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, AssertionError])
def test_interrupted_host_is_ended_at_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """So is one whose trial had a defect."""
    monkeypatch.setattr(sharing, "put_back", lambda *a: pytest.fail("it is not asked any more"))
    lab.trial(SPEC, failing(error()))
    assert lab.log == ["boot", "end"]


def test_host_that_panics_is_not_shared_on(lab: Lab) -> None:
    trial = lab.trial(SPEC, lambda host: lab.say("Kernel panic - not syncing: late"))
    assert trial.known["host_left"] == [
        "the host's kernel 7.3 is broken: Kernel panic - not syncing: late"
    ]
    second = lab.trial(SPEC, lambda host: host.check())
    assert not second.raised
    assert lab.log == ["boot", "end", "boot"]


def test_host_that_oopsed_between_two_trials_is_not_the_seconds(lab: Lab) -> None:
    lab.trial(SPEC)
    lab.say("Oops: 0000 [#1]")
    second = lab.trial(SPEC, lambda host: host.check())
    assert not second.known.keys() & {"raised", "host_left"}
    assert lab.log == ["boot", "end", "boot"]


def test_host_that_is_gone_or_does_not_answer_is_not_shared_on(lab: Lab) -> None:
    def gone(host: Host) -> None:
        lab.alive = False

    def cut(host: Host) -> None:
        lab.wire.lost = True

    assert lab.trial(SPEC, gone).known["host_left"] == ["the host's machine ended by itself"]
    assert "lost" in lab.trial(SPEC, cut).known["host_left"][0]
    lab.wire.lost = False
    lab.trial(SPEC)
    assert lab.log == ["boot", "end", "boot", "end", "boot"]


@pytest.mark.parametrize("said", ["Traceback", "[]", '{"failed": []}', "[" * 100_000])
def test_host_that_does_not_tell_how_it_is_is_not_shared_on(lab: Lab, said: str) -> None:
    def garble(host: Host) -> None:
        lab.wire.garbled = said

    trial = lab.trial(SPEC, garble)
    assert trial.known["host_left"] == ["the host does not tell how it is"]
    assert lab.log == ["boot", "end"]


def test_host_that_changed_between_two_trials_is_booted_again(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.trial(SPEC)
    lab.made.file("/proc/sys/kernel/tainted", "512\n")
    lab.trial(SPEC)
    assert lab.log == ["boot", "end", "boot"]
    said = capsys.readouterr().err
    assert "booted again: /proc/sys/kernel/tainted: missing -> 512" in said


@pytest.mark.parametrize("shared", [True, False])
def test_boot_that_fails_leaves_its_evidence_and_no_host(lab: Lab, shared: bool) -> None:
    lab.failing = ArmFailedError("it does not boot", reason=Reason.HOST_PANIC)
    trial = lab.trial(SPEC, shared=shared)
    assert trial.raised == "it does not boot"
    assert f"token={trial.known['token']}" in trial.known["host_cmdline"]
    assert "boot_id" not in trial.known
    assert (trial.host / "console.log").read_text().endswith("terminated\n")
    assert lab.log == ["boot", "end"]
    lab.failing = None
    lab.trial(SPEC, shared=shared)
    assert lab.booted == 2


def test_command_line_of_a_host_is_the_same_but_for_the_token() -> None:
    spec = spec_of("host.accel=exact", words=("nosmt",), accel="exact")
    assert spec.cmdline("one").replace("one", "two") == spec.cmdline("two")
