from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from orchestrator.base.bounded import CONSOLE_BYTES
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.host.console import Console
from orchestrator.machine.host.host import Host, explained_by_the_host
from orchestrator.machine.host.kernelwatch import KernelWatch
from orchestrator.machine.transport.shell import ConnectionLostError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.machine.host.kernelwatch._TRACE_SECONDS", 0.05)


def host(
    tmp_path: Path, said: str = "", *, alive: bool = False, crash: str = "", emulated: bool = True
) -> Host:
    """Make a host with only a console and an end."""
    path = tmp_path / "console.log"
    path.write_text(said)
    console = Console(path)
    known = SimpleNamespace(
        console=console, kernel=KernelWatch(console), release="7.3", is_alive=lambda: alive,
        crash=lambda: crash, emulated=emulated, is_ours=False,
    )  # fmt: skip
    known.check = lambda: Host.check(cast(Host, known))
    return cast(Host, known)


def test_host_whose_emulator_crashed_is_the_benchs_failure(tmp_path: Path) -> None:
    words = "qemu: tcg/region.c:456: assertion failed\nshutting down, reason=crashed"
    with pytest.raises(BenchError, match="no kernel's fault") as caught:
        Host.check(host(tmp_path, "[ 1.0] fine\n", crash=words))
    assert (caught.value.reason, caught.value.evidence) == ("host-crash", words)


def test_host_that_ended_by_itself_is_the_arms_failure(tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, "[ 1.0] reboot: Power down\n"))
    assert (caught.value.reason, caught.value.evidence) == (
        "host-ended", "[ 1.0] reboot: Power down",
    )  # fmt: skip


def test_panic_is_the_arms_failure_however_the_machine_ended(tmp_path: Path) -> None:
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, "Kernel panic - not syncing: x\n", crash="reason=crashed"))
    assert caught.value.reason == "host-panic"


def test_flood_is_named_whatever_became_of_the_machine(tmp_path: Path) -> None:
    """A machine whose console is too long is ended, and that is no crash."""
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, "y\n" * CONSOLE_BYTES, crash="reason=crashed"))
    assert caught.value.reason == "console-flood"
    assert f"{2 * CONSOLE_BYTES} bytes, {CONSOLE_BYTES} lines" in caught.value.message
    assert caught.value.evidence.endswith("y\ny")


def test_panic_in_a_flood_is_a_panic(tmp_path: Path) -> None:
    said = "Kernel panic - not syncing: x\n" + "y\n" * CONSOLE_BYTES
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, said))
    assert caught.value.reason == "host-panic"


def test_panic_without_a_timer_is_told_apart_with_its_line(tmp_path: Path) -> None:
    line = "[    0.5] Kernel panic - not syncing: timer doesn't work through Interrupt-remapped x"
    with pytest.raises(ArmFailedError) as caught:
        Host.check(host(tmp_path, line + "\n" + "[    0.6]  x\n" * 50, alive=True))
    assert caught.value.reason == "host-no-timer"
    assert caught.value.evidence.startswith(line)


def test_host_that_hangs_is_no_arms_failure(tmp_path: Path) -> None:
    hanging = host(tmp_path, HUNG, alive=True)
    hanging.kernel.hung = hanging.kernel.reports()[0]
    with pytest.raises(BenchError) as caught:
        Host.check(hanging)
    assert caught.value.reason == "host-hung-task"
    assert HUNG.strip() in caught.value.evidence


HUNG = "[  400.0] INFO: task CPU 0/KVM:340 blocked for more than 121 seconds.\n"
STALLED = "[  401.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n"


def explained(stalled: Host, exc: BarometerError, said: str = "") -> BarometerError:
    def fail() -> None:
        with stalled.console.path.open("a") as file:
            file.write(said)
        raise exc

    with pytest.raises(BarometerError) as caught, explained_by_the_host(stalled):
        fail()
    return caught.value


@pytest.mark.parametrize(
    ("said", "reason"), [(HUNG, "host-hung-task"), (STALLED, "host-rcu-stall")]
)
@pytest.mark.parametrize("emulated", [True, False])
def test_undecided_failure_beside_a_stall_is_the_emulators(
    tmp_path: Path, said: str, reason: str, emulated: bool
) -> None:
    stalled = host(tmp_path, "[ 1.0] fine\n", alive=True, emulated=emulated)
    failure = ArmFailedError("no SSH", evidence="tail", reason=Reason.GUEST_NO_SSH)
    found = explained(stalled, failure, said)
    assert found.reason == (reason if emulated else "guest-no-ssh")
    assert isinstance(found, BenchError) == emulated
    assert (said.strip() in found.evidence) == emulated


def test_stall_of_an_earlier_trial_explains_nothing(tmp_path: Path) -> None:
    failure = ArmFailedError("no SSH", reason=Reason.GUEST_NO_SSH)
    assert explained(host(tmp_path, HUNG, alive=True), failure) is failure


def test_stall_does_not_explain_what_is_the_benchs_own(tmp_path: Path) -> None:
    failure = BenchError("no", reason=Reason.COMMAND_FAILED)
    assert explained(host(tmp_path, alive=True), failure, HUNG) is failure


def test_guest_that_fails_on_a_host_that_panicked_is_the_hosts_panic(tmp_path: Path) -> None:
    failure = ArmFailedError("no SSH", reason=Reason.GUEST_NO_SSH)
    found = explained(
        host(tmp_path, alive=True), failure, "[ 9.0] Kernel panic - not syncing: x\n"
    )
    assert found.reason == "host-panic"


class Dying:
    """A VM whose connections are lost at once, and whose process ends at the third look."""

    is_ours, emulated = True, True
    kernel = SimpleNamespace(reports=tuple)
    shell = SimpleNamespace(alive=lambda: False)

    def __init__(self, ends: BenchError | None) -> None:
        self.looks, self._ends = 0, ends

    def check(self) -> None:
        self.looks += 1
        if self.looks == 3 and self._ends is not None:
            raise self._ends


def charged(dying: Dying) -> BenchError:
    with pytest.raises(BenchError) as caught, explained_by_the_host(cast(Host, dying)):
        raise ConnectionLostError("EOF", reason=Reason.HOST_SSH_LOST)
    return caught.value


def test_lost_connection_of_a_crashed_emulator_is_a_crash() -> None:
    assert (
        charged(Dying(BenchError("it crashed", reason=Reason.HOST_CRASH))).reason == "host-crash"
    )


def test_lost_connection_of_a_host_that_goes_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.machine.host.host._DYING_SECONDS", 0.05)
    assert charged(Dying(None)).reason == "host-ssh-lost"


def test_host_that_was_silent_as_long_as_a_deadline_is_not_waited_for_again() -> None:
    dying = Dying(BenchError("it crashed", reason=Reason.HOST_CRASH))
    with pytest.raises(ConnectionLostError), explained_by_the_host(cast(Host, dying)):
        raise ConnectionLostError("silent", reason=Reason.HOST_SSH_LOST) from TimeoutError()
    assert dying.looks == 1


def test_host_that_lives_is_not_asked_how_it_ended(tmp_path: Path) -> None:
    Host.check(host(tmp_path, "[ 1.0] fine\n", alive=True, crash="reason=crashed"))


STATES = {
    "slow": "31 (libvirtd) S 1 31 31 0\n",
    "stopped": "31 (libvirtd) T 1 31 31 0\n",
    "traced": "31 (virtqemud) t 1 31 31 0\n",
    "two, one of which works": "31 (libvirtd) T 1 31\n32 (virtqemud) S 1 32\n",
    "a pid that is another's now": "31 (T) T 1 31\n",
    "no pid, so that the machine's own statistics are shown": "cpu  1 2 3\nintr 5\n",
    "none": "",
}


@pytest.mark.parametrize("case", STATES)
def test_daemon_of_libvirt_counts_as_stopped_only_if_its_state_says_so(case: str) -> None:
    shell = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=STATES[case]))
    stopped = Host.is_libvirt_stopped(cast(Host, SimpleNamespace(shell=shell)))
    assert stopped == (case in ("stopped", "traced"))


def test_host_that_does_not_answer_does_not_tell_that_libvirt_is_stopped() -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionLostError("EOF", reason=Reason.HOST_SSH_LOST)

    unreached = SimpleNamespace(shell=SimpleNamespace(run=lost))
    assert not Host.is_libvirt_stopped(cast(Host, unreached))
