"""The table of failures: to whom each is charged (the arm, the bench, or undecided), and why.
The last line of a command that fails is `reason: NAME`, with a name of these tables.

A trial with an undecided failure is repeated, in turns of both arms. The failure is charged to an
arm only if it comes back in that arm and not in the other: Fisher's exact test, one-sided, over
all attempts whatever their reasons, has p <= 0.05, and at least one reason occurs twice in that
arm. The fewest attempts with that result are 3 failures of 3 against 0 of 3 (p = 1/20).

The test is repeated after every attempt, and for both arms, so 0.05 is not the rate of false
charges. Simulated (4000 runs for each figure, with the turns below) for arms that fail equally
often and for one reason: if 1 % of the attempts fail, the candidate is charged in no run; if 10 %
fail, in at most 1 % of runs; if 50 % fail, in 1.6 % of runs of one pair, 2.4 % of three pairs and
5.8 % of twelve. The chance that any arm is charged is twice that.

Attempts that failed because of the bench do not count in this test. If the bench fails in one arm
more often, by the same test, a kernel may have caused that: nobody is charged, and the verdict is
neither that the arms are alike nor that one is better.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal, NamedTuple

from orchestrator.kernelreports import BROKEN, Function, KernelReport, first_of
from orchestrator.scenario import ARMS, ArmName

Charge = Literal["arm", "bench", "undecided"]
ATTEMPTS = 3
"""Number of attempts after which a failing trial is given up. Also the fewest attempts of each arm
that can decide a charge."""
ALPHA = 0.05
"""Largest p of Fisher's test at which failures are charged to an arm."""


class Fault(NamedTuple):
    charge: Charge
    why: str
    emulated: Charge | None = None
    """Charge on an emulated host, if it differs."""
    comes_and_goes: bool = False
    """True: the failure comes and goes, so if it is charged to the bench, the trial is begun again
    at once."""


_EMULATOR = "an emulator that gets no CPU, or loses an interrupt or a wake-up, looks the same"
FAULTS: Mapping[str, Fault] = {
    # what kernels report, and what they do not do
    "host-panic": Fault("undecided", "only a call trace tells whether what is tested took part"),
    "host-no-timer": Fault(
        "undecided",
        "check_timer() counts ticks against a busy loop; an emulator without the CPU"
        " delivers none",
        "bench",
        comes_and_goes=True,
    ),
    "host-hung-task": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-soft-lockup": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-hard-lockup": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-rcu-stall": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-lost-interrupt": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-hang": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "host-ssh-lost": Fault(
        "undecided", "the machine or the network to it is gone", "bench", comes_and_goes=True
    ),
    "host-no-ssh": Fault(
        "undecided", "the machine or the network to it is gone", "bench", comes_and_goes=True
    ),
    "host-ended": Fault("undecided", "a reset without a word has many causes"),
    "host-no-boot": Fault("undecided", "a machine that does not come up has many causes"),
    "host-crash": Fault("bench", "the QEMU that the host runs in crashed", comes_and_goes=True),
    "exact-crawl": Fault(
        "bench", "the clock of an emulated host all but stood still", comes_and_goes=True
    ),
    "unproven-panic": Fault("bench", "it is not known which kernel panicked"),
    "guest-panic": Fault("undecided", "its kernel is the same in both arms"),
    "guest-no-timer": Fault(
        "undecided",
        "check_timer() of the guest counts ticks against a busy loop",
        "bench",
        comes_and_goes=True,
    ),
    "guest-stall": Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    "guest-hang": Fault("undecided", "what it waits for may be the host or the bench"),
    "guest-end-hang": Fault(
        "undecided",
        "the guest had powered down: only its last unmap was still asked for",
        "bench",
        comes_and_goes=True,
    ),
    "guest-ended": Fault("undecided", "its QEMU may have failed, or its kernel"),
    "guest-no-ssh": Fault("undecided", "the guest, its network or its keys may have failed"),
    "guest-ssh-lost": Fault("undecided", "the guest, its network or its keys may have failed"),
    "guest-wrong-host-key": Fault("bench", "another machine answers on the guest's port"),
    "console-flood": Fault("undecided", "a kernel that warns without end floods, or a program"),
    # the kernel under test did not do what it was asked to
    "no-huge-pages": Fault("undecided", "memory may be fragmented by chance"),
    "device-not-placed": Fault("undecided", "the firmware takes part in placing a BAR"),
    "device-missing": Fault("undecided", "the device may not be there, or not be seen"),
    "map-refused": Fault("undecided", "QEMU, the IOMMU or the kernel may not be able to"),
    "map-silent": Fault("undecided", "the map agent ended without saying why"),
    "bind": Fault("undecided", "the driver, the kernel or the device may have refused"),
    "modules-refused": Fault("undecided", "the kernel, or how it was built, may be the cause"),
    "module-in-use": Fault("undecided", "what uses a module may be a kernel's leak"),
    "driver-hangs": Fault("undecided", "a driver that does not let go may be the kernel's"),
    "decode-always-on": Fault("undecided", "the device or the kernel may hold the register"),
    # the bench's own
    "answer-garbled": Fault("bench", "an agent's answer does not have its form"),
    "bad-domain-xml": Fault("bench", "libvirt's answer cannot be read"),
    "boot-loader-size": Fault("bench", "a guest's disk cannot be made"),
    "bug": Fault("bench", "barometer itself failed"),
    "checkup": Fault("bench", "the look at a machine failed"),
    "command-failed": Fault("bench", "a command of barometer's failed"),
    "console-command": Fault("bench", "host.console did not work"),
    "device-ambiguous": Fault("bench", "the scenario fits several devices"),
    "device-bar": Fault("bench", "the machine has no such BAR"),
    "device-refused": Fault("bench", "the device is in use"),
    "disk-full": Fault("bench", "there is no room"),
    "guest-cmdline": Fault("bench", "the scenario's words cannot be given to a guest"),
    "host-is-runner": Fault("bench", "a run does not survive the boot of its own machine"),
    "host-no-login": Fault("bench", "the login was refused"),
    "host-no-name": Fault("bench", "the host's name is not known"),
    "host-no-proxy": Fault("bench", "ssh's proxy command cannot be started"),
    "host-no-root": Fault("bench", "the user is not root there"),
    "host-silent": Fault("bench", "an agent on the host gave no answer that can be read"),
    "host-start": Fault("bench", "the first program of the host's image failed"),
    "host-unknown-host-key": Fault("bench", "the host's key is not known"),
    "host-wrong-host-key": Fault("bench", "another machine answers on the host's port"),
    "interrupted": Fault("bench", "the run was interrupted"),
    "keeper-failed": Fault("bench", "the keeper on the machine failed"),
    "kernel-lacks-module": Fault("bench", "the scenario needs a module that the kernel lacks"),
    "kernel-lacks-option": Fault("bench", "the machine needs an option that the kernel lacks"),
    "kernel-modules": Fault("bench", "the modules' folder cannot be read"),
    "lease-held": Fault("bench", "another runner has the machine"),
    "libvirt-connect": Fault("bench", "libvirt cannot be reached"),
    "libvirt-failed": Fault("bench", "a call into libvirt failed"),
    "libvirt-reboot": Fault("bench", "libvirt could not reboot a domain"),
    "libvirt-silent": Fault("bench", "a call into libvirt did not return", comes_and_goes=True),
    "libvirt-start": Fault("bench", "libvirt could not start a domain"),
    "machine-lost": Fault("bench", "the machine does not come back under its own kernel either"),
    "monitor": Fault("bench", "QEMU did not answer its monitor"),
    "no-domain": Fault("bench", "there is no such domain"),
    "no-guest-disk": Fault("bench", "the payload lacks the guest's disk"),
    "no-initramfs-tool": Fault("bench", "the machine cannot make an initramfs"),
    "no-kvm": Fault("bench", "guests do not run under KVM here"),
    "no-python": Fault("bench", "the machine lacks Python"),
    "no-such-package": Fault("bench", "the mirror lacks a package"),
    "no-way-to-boot": Fault("bench", "the machine cannot boot another kernel once"),
    "not-put-back": Fault("bench", "the machine could not be put back"),
    "output-flood": Fault("bench", "a command printed more than is taken"),
    "profile": Fault("bench", "QEMU's instruction log cannot be used"),
    "profile-busy": Fault("bench", "another profile is at work"),
    "program-timeout": Fault("bench", "a program of the runner's took too long"),
    "recipe": Fault("bench", "an image's recipe is wrong"),
    "run-exists": Fault("bench", "the folder holds another run"),
    "setting-refused": Fault("bench", "the scenario sets what the kernel does not take"),
    "ssh-config": Fault("bench", "the SSH configuration cannot be used"),
    "timeout": Fault("bench", "a step of the bench's took too long"),
    "trial-too-large": Fault("bench", "a trial's evidence is larger than is kept"),
    "tracer-left": Fault("bench", "probes could not be removed"),
    "tracer-lost": Fault("bench", "the tracer ended"),
    "tracer-refused": Fault("bench", "the kernel has nothing to probe under these names"),
    "unreadable": Fault("bench", "the machine's journal has entries that cannot be read"),
    # the keeper's refusals (guests/agents/keeper)
    "bad-request": Fault("bench", "the keeper was asked for what it cannot do"),
    "boot-entry": Fault("bench", "the entry of a boot could not be made or removed"),
    "exists": Fault("bench", "a file of somebody else's is in the way"),
    "going-down": Fault("bench", "the machine is going down for a boot"),
    "grub": Fault("bench", "GRUB on the machine cannot boot a kernel once"),
    "guest-stays": Fault("bench", "a guest of an earlier trial does not end"),
    "kernel-changed": Fault("bench", "the machine's own kernel was not proven to run again"),
    "kexec": Fault("bench", "kexec did not take the kernel"),
    "lease-lost": Fault("bench", "the lease expired"),
    "machine-busy": Fault("bench", "another keeper is at work on the machine"),
    "mount": Fault("bench", "a folder of the machine's cannot be mounted over"),
    "mounted": Fault("bench", "somebody mounted something where the bench has files"),
    "no-original": Fault("bench", "the machine's own kernel was not recorded"),
    "no-systemd": Fault("bench", "the machine has no systemd"),
    "not-root": Fault("bench", "the keeper is not root there"),
    "original-damaged": Fault("bench", "the record of the machine's own kernel is damaged"),
    "os-error": Fault("bench", "a file on the machine could not be used"),
    "path-refused": Fault("bench", "the keeper was asked for a path that is not the bench's"),
    "program-failed": Fault("bench", "a program on the machine failed"),
    "program-missing": Fault("bench", "the machine lacks a program"),
    "systemd-boot": Fault("bench", "systemd-boot on the machine cannot boot a kernel once"),
    "tracing": Fault("bench", "the tracer's leftovers could not be cleared"),
    "unfinished": Fault("bench", "the machine has not been put back since an earlier run"),
    "watchdog": Fault("bench", "the machine's watchdog cannot be used"),
    "wrong-image": Fault("bench", "a staged kernel image is damaged"),
    # another host, kernel or module than was planned
    "wrong-host": Fault("bench", "another host answered"),
    "wrong-kernel": Fault("bench", "another kernel runs than was planned"),
    "wrong-module": Fault("bench", "another module is loaded than was built"),
}
"""The fault for the reason of each error that ends a trial."""
_UNKNOWN = Fault("bench", "no kernel is blamed for what is not in the table")


class Refusal(NamedTuple):
    whose: Literal["user", "bench"]
    why: str


OUTSIDE: Mapping[str, Refusal] = {
    # the command line, or a file that it names, is wrong: exit code 2
    "broken-repository": Refusal("user", "git does not take a folder for a repository"),
    "command-line": Refusal("user", "an argument or an option is wrong"),
    "no-such-suite": Refusal("user", "the mirror lacks a suite"),
    "no-such-version": Refusal("user", "the mirror lacks a version of a package"),
    "not-a-kernel": Refusal("user", "a file is no kernel image"),
    "not-a-trial": Refusal("user", "the folder of a run is given in place of a trial's"),
    "out-unwritable": Refusal("user", "nothing can be written in --out"),
    "path": Refusal("user", "a file or folder cannot be used"),
    "scenario": Refusal("user", "the scenario is wrong"),
    # this machine or its mirror fails: exit code 3
    "disk": Refusal("bench", "this machine's disk has no room for a first run"),
    "keyring-missing": Refusal("bench", "the keys of Debian's archive are not there"),
    "mirror-unreachable": Refusal("bench", "the mirror cannot be reached"),
    "mirror-untrusted": Refusal("bench", "the mirror's files are not what was signed"),
    "package-layout": Refusal("bench", "a package has no kernel, or several"),
    "programs": Refusal("bench", "this machine lacks programs"),
    "qemu": Refusal("bench", "this machine has no QEMU, or an old one"),
    "shm": Refusal("bench", "/dev/shm cannot be written"),
    # saved evidence is missing or bad: exit code 4
    "bad-evidence": Refusal("bench", "a file of a run does not have its form"),
    "bad-histogram": Refusal("bench", "a histogram does not have its form"),
    "bad-trace": Refusal("bench", "a trace does not have its form"),
    "evidence-changed": Refusal("bench", "a file is not what was collected"),
    "missing-evidence": Refusal("bench", "a file of a run is missing"),
    "no-mark": Refusal("bench", "a guest's boot has no mark"),
}
"""Reasons of errors that end a command outside a trial, or that make a trial invalid when it is
judged. Errors of scenarios and series have more reasons."""


class Charged(NamedTuple):
    charge: Charge
    why: str


def fault_of(reason: str) -> Fault:
    return FAULTS.get(reason, _UNKNOWN)


def charge(
    reason: str,
    *,
    emulated: bool,
    guest_emulated: bool = False,
    reports: Sequence[KernelReport] = (),
    changed: Iterable[str] = (),
) -> Charged:
    """Return whom a failure is charged to, and why. `emulated`: the host is emulated;
    `guest_emulated`: the guest is, even if the host is not. `reports`: those of the host's kernel.
    A panic or oops of that kernel is charged to its arm if the call trace has a function of VFIO,
    of the IOMMU or of a `changed` module."""
    fault = fault_of(reason)
    emulated = emulated or (guest_emulated and reason.startswith("guest-"))
    if reason == "host-panic" and (function := _blamed(reports, changed)) is not None:
        module = f" [{function.module}]" if function.module else ""
        return Charged("arm", f"{function.name}{module} is in the call trace")
    return Charged((fault.emulated or fault.charge) if emulated else fault.charge, fault.why)


def _blamed(reports: Sequence[KernelReport], changed: Iterable[str]) -> Function | None:
    changed = (*changed,)
    broken = (report.functions for report in reports if report.kind in BROKEN)
    return next((f for trace in broken if (f := first_of(trace, changed)) is not None), None)


@dataclass(frozen=True)
class Attempt:
    """One attempt at a trial, under the kernel of an arm."""

    arm: ArmName
    reason: str = ""
    """Reason of the failure; empty if the attempt went well."""
    charge: Charge = "undecided"
    stage: str = ""
    line: str = ""
    """Line of a kernel's report during the attempt; else the error's own message."""


def attempt_json(attempt: Attempt) -> dict[str, str]:
    return {
        "arm": attempt.arm, "reason": attempt.reason, "charge": attempt.charge,
        "stage": attempt.stage, "line": attempt.line,
    }  # fmt: skip


class Count(NamedTuple):
    """Number of failures of an arm, and number of attempts."""

    failed: int
    of: int


def counts(attempts: Iterable[Attempt], arm: ArmName) -> Count:
    """Count an arm's failed attempts and all its attempts, without those that failed because of
    the bench."""
    of_arm = [a for a in attempts if a.arm == arm and not (a.reason and a.charge == "bench")]
    return Count(sum(bool(a.reason) for a in of_arm), len(of_arm))


def bench_counts(attempts: Iterable[Attempt], arm: ArmName) -> Count:
    """Count an arm's attempts that failed because of the bench in a way that a kernel may have
    caused (such a failure comes and goes, or is undecided on real machines), and all its
    attempts."""
    of_arm = [a for a in attempts if a.arm == arm]
    return Count(sum(_is_imputed(a) for a in of_arm), len(of_arm))


def _is_imputed(attempt: Attempt) -> bool:
    fault = fault_of(attempt.reason)
    return (
        bool(attempt.reason) and attempt.charge == "bench"
        and (fault.comes_and_goes or fault.charge == "undecided")
    )  # fmt: skip


def chance(failed: int, of: int, other_failed: int, of_other: int) -> float:
    """Return p of Fisher's exact test, one-sided: the probability that at least `failed` of all
    the failures fall on the first `of` attempts, if failures are spread at random."""
    failures, whole = failed + other_failed, of + of_other
    most = min(of, failures)
    ways = sum(comb(of, k) * comb(of_other, failures - k) for k in range(failed, most + 1))
    return ways / comb(whole, failures)


def failing_arm(attempts: Sequence[Attempt]) -> ArmName | None:
    """Return the arm that the attempts so far charge with undecided failures, or None."""
    failed = [a for a in attempts if a.reason and a.charge != "bench"]
    return _more_often(failed, {arm: counts(attempts, arm) for arm in ARMS})


def arm_the_bench_fails(attempts: Sequence[Attempt]) -> ArmName | None:
    """Return the arm in which the bench has failed more often so far, or None. The arm is not
    charged."""
    failed = [a for a in attempts if _is_imputed(a)]
    return _more_often(failed, {arm: bench_counts(attempts, arm) for arm in ARMS})


def _more_often(failed: Sequence[Attempt], counted: Mapping[ArmName, Count]) -> ArmName | None:
    for arm, other in (ARMS, ARMS[::-1]):
        reasons = Counter(attempt.reason for attempt in failed if attempt.arm == arm)
        comes_back = max(reasons.values(), default=0) > 1
        if comes_back and chance(*counted[arm], *counted[other]) <= ALPHA:
            return arm
    return None


def nothing_works(attempts: Sequence[Attempt]) -> bool:
    """True if both arms have failed in each of at least two attempts."""
    return all(c.of > 1 and c.failed == c.of for c in (counts(attempts, arm) for arm in ARMS))


def next_turn(attempts: Sequence[Attempt], arm: ArmName, *, alone: bool) -> ArmName | None:
    """Return the arm to attempt next after an undecided failure of `arm`. None: more attempts are
    of no use, because an arm is charged by now, or because both arms have failed in each of at
    least two attempts. `alone`: the other arm is not run."""
    if alone:
        return arm
    other: ArmName = "candidate" if arm == "baseline" else "baseline"
    mine, others = counts(attempts, arm), counts(attempts, other)
    if nothing_works(attempts) or failing_arm(attempts) is not None:
        return None
    return other if others.of < min(mine.of, ATTEMPTS) else arm
