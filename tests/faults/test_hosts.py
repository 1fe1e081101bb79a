"""Faults on a machine in the middle of a trial, each provoked in a real one. The tests check the
reason in the report, the charge, and that the trial ends soon. A fault is provoked once. The
repeat that would follow is left out, except for one kind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.base.progress import Progress
from orchestrator.base.waiting import until
from orchestrator.machine.guest import guest
from orchestrator.machine.guest.watching import Limits, wait_for
from orchestrator.machine.host.host import Host
from orchestrator.machine.nested import nested
from orchestrator.machine.nested.nested import StartedVm
from orchestrator.machine.runner.state import token_prefix
from orchestrator.run import trials
from orchestrator.run.trial import run_trial
from tests.lab.conftest import Outcome, RunOne

pytestmark = pytest.mark.vm

PLAIN = 'trace.passes=["plain"]'
QUIET = "guest.cmdline=quiet"
MOST_SECONDS = 60.0
"""Most seconds from the fault to the end of its trial."""


def on_host(name: str, number: str) -> str:
    """Return a script that sends a signal to the programs of that name. It starts no program: a
    busy emulated host takes half a minute to start one for each process."""
    return (
        f'for p in /proc/[0-9]*; do read -r comm < $p/comm || continue; case "$comm" in {name})'
        f' kill -{number} "${{p#/proc/}}";; esac; done 2> /dev/null'
    )


def later(script: str) -> str:
    """Return a command that runs the script after the SSH command that carries it has been
    answered."""
    return f"(sleep 1; {script}) > /dev/null 2>&1 < /dev/null &"


def to_qemu(number: signal.Signals) -> None:
    """Send a signal to the QEMU that the host runs in."""
    ours = f"guest=barometer-{token_prefix()}"
    listed = subprocess.run(["pgrep", "-f", ours], capture_output=True, text=True, check=True)
    for pid in map(int, listed.stdout.split()):
        os.kill(pid, number)


@dataclass
class Provoked:
    """A fault that is provoked once, when the first guest waits for `event`."""

    patch: pytest.MonkeyPatch
    at: float = 0.0
    over: float = 0.0
    """Time at which the attempt had ended."""

    def __call__(self, event: str, fault: str | Callable[[], None]) -> None:
        def provoke(limits: Limits, what: str, words: str, progress: Progress) -> None:
            if what == event and not self.at:
                self._provoke(limits.host, fault)
                self.at = time.monotonic()
            wait_for(limits, what, words, progress)

        def attempt(*given: Any, **more: Any) -> None:
            try:
                run_trial(*given, **more)
            finally:
                self.over = self.over or time.monotonic()

        self.patch.setattr(guest, "wait_for", provoke)
        self.patch.setattr(trials, "run_trial", attempt)

    def _provoke(self, host: Host, fault: str | Callable[[], None]) -> None:
        if isinstance(fault, str):
            host.shell.run(fault)
        else:
            fault()


@pytest.fixture
def provoked(monkeypatch: pytest.MonkeyPatch) -> Provoked:
    monkeypatch.setattr(trials, "ATTEMPTS", 1)
    return Provoked(monkeypatch)


def attempts(outcome: Outcome) -> list[tuple[str, str]]:
    """Return the reason and the charge of each failed attempt of a trial, the last one
    included."""
    return [(a.reason, a.charge) for a in outcome.evidence.attempts() if a.reason]


@pytest.mark.full
@pytest.mark.parametrize(
    ("event", "fault", "reason", "charge"),
    [
        ("mark", on_host("libvirtd", "STOP"), "libvirt-silent", "bench"),
        ("mark", later(on_host("sshd*", "KILL")), "host-ssh-lost", "bench"),
        ("mark", later(on_host("sshd*", "STOP")), "host-ssh-lost", "bench"),
        ("mark", later("ip link set eth0 down"), "host-ssh-lost", "bench"),
        ("mark", later("echo c > /proc/sysrq-trigger"), "host-panic", "undecided"),
        ("mark", later("yes > /dev/console"), "console-flood", "undecided"),
        ("mark", later("cat /dev/zero > /dev/console"), "console-flood", "undecided"),
    ],
    ids=[
        "libvirtd-stopped", "sshd-killed", "sshd-stopped", "network-down", "host-panics",
        "host-floods", "host-floods-in-a-line",
    ],
)  # fmt: skip
def test_host_fails_in_the_middle_of_a_guest_boot(
    one_trial: RunOne, provoked: Provoked, event: str, fault: str, reason: str, charge: str
) -> None:
    provoked(event, fault)
    outcome = one_trial(PLAIN, QUIET)
    assert attempts(outcome) == [(reason, charge)]
    assert outcome.result.by_bench == (charge == "bench")
    assert provoked.over - provoked.at < MOST_SECONDS


@pytest.mark.full
def test_hosts_qemu_crashes_and_the_trial_is_begun_again(
    one_trial: RunOne, provoked: Provoked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "ATTEMPTS", 2)
    provoked("mark", lambda: to_qemu(signal.SIGABRT))
    outcome = one_trial(PLAIN, QUIET)
    assert attempts(outcome) == [("host-crash", "bench")]
    assert outcome.result.kind == "measured"


@pytest.mark.full
def test_hosts_qemu_is_stopped_while_the_host_boots(
    one_trial: RunOne, provoked: Provoked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host whose console is silent would be given up after 90 s only."""
    wait_for_sshd = nested._wait_for_sshd

    def stop(machine: StartedVm, *more: Any) -> None:
        until(lambda: machine.console.size() or None, within=60, waiting_for="the first line")
        provoked.at = time.monotonic()
        to_qemu(signal.SIGSTOP)
        wait_for_sshd(machine, *more)

    provoked("never", "")
    monkeypatch.setattr(nested, "_wait_for_sshd", stop)
    outcome = one_trial(PLAIN, QUIET)
    assert attempts(outcome) == [("host-stopped", "bench")]
    assert outcome.result.stage == "host-boot"
    assert 0 < provoked.over - provoked.at < MOST_SECONDS


@pytest.mark.full
def test_hosts_qemu_is_stopped_while_a_guest_boots(one_trial: RunOne, provoked: Provoked) -> None:
    provoked("mark", lambda: to_qemu(signal.SIGSTOP))
    outcome = one_trial(PLAIN, QUIET)
    assert attempts(outcome) == [("host-stopped", "bench")]
    assert provoked.over - provoked.at < MOST_SECONDS


@pytest.mark.full
def test_hung_task_with_idle_processors_ends_the_trial_with_its_line(
    one_trial: RunOne, provoked: Provoked
) -> None:
    """The line is as a kernel prints it. The guest's QEMU is stopped, so that the processors are
    idle."""
    line = "INFO: task CPU 0/KVM:340 blocked for more than 61 seconds."
    provoked("mark", later(f"{on_host('qemu-system*', 'STOP')}; echo '<3>{line}' > /dev/kmsg"))
    outcome = one_trial(PLAIN, QUIET)
    assert attempts(outcome) == [("host-hung-task", "bench")]
    (first, *_) = outcome.evidence.attempts()
    assert line in first.line
    assert provoked.over - provoked.at < MOST_SECONDS


@pytest.mark.parametrize(
    ("event", "number", "reason", "charge"),
    [
        ("mark", "KILL", "guest-ended", "undecided"),
        pytest.param("mark", "ABRT", "guest-ended", "undecided", marks=pytest.mark.full),
        pytest.param("mark", "STOP", "guest-hang", "undecided", marks=pytest.mark.full),
        pytest.param("exit", "STOP", "guest-end-hang", "bench", marks=pytest.mark.full),
    ],
)
def test_guests_qemu_fails(
    shared_trial: RunOne, provoked: Provoked, monkeypatch: pytest.MonkeyPatch, event: str,
    number: str, reason: str, charge: str,
) -> None:  # fmt: skip
    if event == "exit":  # the guest would power off before the fault
        monkeypatch.setattr(guest, "_power_off", lambda _: None)
    provoked(event, on_host("qemu-system*", number))
    outcome = shared_trial(PLAIN, QUIET)
    assert attempts(outcome) == [(reason, charge)]
    assert outcome.result.by_bench == (charge == "bench")
    assert provoked.over - provoked.at < MOST_SECONDS


@pytest.mark.full
def test_agent_that_watches_the_guest_is_killed(shared_trial: RunOne, provoked: Provoked) -> None:
    provoked("mark", on_host("python3*", "KILL"))
    outcome = shared_trial(PLAIN, QUIET)
    assert attempts(outcome) == [("host-ssh-lost", "bench")]


WORDS = (
    "barometer: sshd is up", "barometer: boot mark", "barometer: start: no",
    "Oops: 0000 [#1]", "Kernel panic - not syncing: x", "INFO: task a:1 blocked for more than 9",
)  # fmt: skip


@pytest.mark.full
def test_words_that_anybody_can_say_are_no_marks_and_no_reports(
    one_trial: RunOne, provoked: Provoked
) -> None:
    said = " ".join(WORDS[:4])  # a kernel passes words that it does not know to its init
    loud = "; ".join(f"echo 'x {words}' > /dev/console" for words in WORDS)
    provoked("mark", loud)
    outcome = one_trial(PLAIN, f"host.cmdline={said}", f"guest.cmdline=quiet {said}")
    assert (outcome.result.kind, attempts(outcome)) == ("measured", [])


@pytest.mark.full
def test_clock_of_the_host_jumps(one_trial: RunOne, provoked: Provoked) -> None:
    provoked("mark", "date -s 2001-01-01; sleep 1; date -s 2037-01-01")
    outcome = one_trial(PLAIN, QUIET)
    assert (outcome.result.kind, attempts(outcome)) == ("measured", [])


@pytest.mark.full
def test_libvirtd_that_is_killed_is_no_kernels_fault(
    one_trial: RunOne, provoked: Provoked
) -> None:
    provoked("mark", on_host("libvirtd", "KILL"))
    outcome = one_trial(PLAIN, QUIET)
    assert all(charge == "bench" for _, charge in attempts(outcome))
