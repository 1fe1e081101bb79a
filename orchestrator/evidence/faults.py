"""The table of failures: to whom each is charged (the arm, the bench, or undecided), and why.
The reasons themselves are in `reasons.py`.

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

from orchestrator.base.ends import Ends
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.formats.kernelreports import BROKEN, CalledFunction, KernelReport, first_of
from orchestrator.scenario.vocabulary import ARMS, ArmName

Charge = Literal["arm", "bench", "undecided"]
ATTEMPTS = 3
"""Number of attempts after which a failing trial is given up. Also the fewest attempts of each arm
that can decide a charge."""
SAME_RATE_ALPHA = 0.05
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
_DIFFERENT: Mapping[Reason, Fault] = {
    Reason.HOST_PANIC: Fault(
        "undecided", "only a call trace tells whether what is tested took part"
    ),
    Reason.HOST_NO_TIMER: Fault(
        "undecided",
        "check_timer() counts ticks against a busy loop; an emulator without the CPU"
        " delivers none",
        "bench",
        comes_and_goes=True,
    ),
    Reason.HOST_HUNG_TASK: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_SOFT_LOCKUP: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_HARD_LOCKUP: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_RCU_STALL: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_LOST_INTERRUPT: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_TIMERS: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_HANG: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.HOST_SSH_LOST: Fault(
        "undecided", "the machine or the network to it is gone", "bench", comes_and_goes=True
    ),
    Reason.HOST_NO_SSH: Fault(
        "undecided", "the machine or the network to it is gone", "bench", comes_and_goes=True
    ),
    Reason.HOST_ENDED: Fault("undecided", "a reset without a word has many causes"),
    Reason.HOST_NO_BOOT: Fault("undecided", "a machine that does not come up has many causes"),
    Reason.HOST_CRASH: Fault("bench", Reason.HOST_CRASH.meaning, comes_and_goes=True),
    Reason.HOST_STOPPED: Fault("bench", Reason.HOST_STOPPED.meaning, comes_and_goes=True),
    Reason.EXACT_CRAWL: Fault("bench", Reason.EXACT_CRAWL.meaning, comes_and_goes=True),
    Reason.HOST_CLOCK: Fault("bench", Reason.HOST_CLOCK.meaning, comes_and_goes=True),
    Reason.RESTORED_HOST: Fault(
        "bench", "a kernel is blamed only on a host that it has booted", comes_and_goes=True
    ),
    Reason.GUEST_PANIC: Fault("undecided", "its kernel is the same in both arms"),
    Reason.GUEST_NO_TIMER: Fault(
        "undecided",
        "check_timer() of the guest counts ticks against a busy loop",
        "bench",
        comes_and_goes=True,
    ),
    Reason.GUEST_STALL: Fault("undecided", _EMULATOR, "bench", comes_and_goes=True),
    Reason.GUEST_HANG: Fault("undecided", "what it waits for may be the host or the bench"),
    Reason.GUEST_END_HANG: Fault(
        "undecided",
        "the guest had powered down: only its last unmap was still asked for",
        "bench",
        comes_and_goes=True,
    ),
    Reason.GUEST_ENDED: Fault("undecided", "its QEMU may have failed, or its kernel"),
    Reason.GUEST_NO_SSH: Fault("undecided", "the guest, its network or its keys may have failed"),
    Reason.GUEST_SSH_LOST: Fault(
        "undecided", "the guest, its network or its keys may have failed"
    ),
    Reason.CONSOLE_FLOOD: Fault(
        "undecided", "a kernel that warns without end floods, or a program"
    ),
    Reason.NO_HUGE_PAGES: Fault("undecided", "memory may be fragmented by chance"),
    Reason.DEVICE_NOT_PLACED: Fault("undecided", "the firmware takes part in placing a BAR"),
    Reason.DEVICE_MISSING: Fault("undecided", "the device may not be there, or not be seen"),
    Reason.MAP_REFUSED: Fault("undecided", "QEMU, the IOMMU or the kernel may not be able to"),
    Reason.MAP_SILENT: Fault("undecided", "the map agent ended without saying why"),
    Reason.BIND: Fault("undecided", "the driver, the kernel or the device may have refused"),
    Reason.MODULES_REFUSED: Fault(
        "undecided", "the kernel, or how it was built, may be the cause"
    ),
    Reason.MODULE_IN_USE: Fault("undecided", "what uses a module may be a kernel's leak"),
    Reason.DRIVER_HANGS: Fault("undecided", "a driver that does not let go may be the kernel's"),
    Reason.DECODE_ALWAYS_ON: Fault("undecided", "the device or the kernel may hold the register"),
    Reason.LIBVIRT_SILENT: Fault("bench", Reason.LIBVIRT_SILENT.meaning, comes_and_goes=True),
}
"""Faults that are undecided, or that come and go, with the reason for that."""
FAULTS: Mapping[Reason, Fault] = {
    reason: _DIFFERENT.get(reason, Fault("bench", reason.meaning))
    for reason in Reason
    if Ends.TRIAL in reason.ends
}
"""The fault for the reason of each error that ends a trial."""
_UNKNOWN = Fault("bench", "no kernel is blamed for what is not in the table")


class Charged(NamedTuple):
    charge: Charge
    why: str


def fault_of(reason: str) -> Fault:
    known = parse_reason(reason)
    return _UNKNOWN if known is None else FAULTS.get(known, _UNKNOWN)


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
    if reason == Reason.HOST_PANIC and (function := _blamed(reports, changed)) is not None:
        module = f" [{function.module}]" if function.module else ""
        return Charged("arm", f"{function.name}{module} is in the call trace")
    return Charged((fault.emulated or fault.charge) if emulated else fault.charge, fault.why)


def _blamed(reports: Sequence[KernelReport], changed: Iterable[str]) -> CalledFunction | None:
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


class FailureCount(NamedTuple):
    """Number of failures of an arm, and number of attempts."""

    failed: int
    of: int


def counts(attempts: Iterable[Attempt], arm: ArmName) -> FailureCount:
    """Count an arm's failed attempts and all its attempts, without those that failed because of
    the bench."""
    of_arm = [a for a in attempts if a.arm == arm and not (a.reason and a.charge == "bench")]
    return FailureCount(sum(bool(a.reason) for a in of_arm), len(of_arm))


def bench_counts(attempts: Iterable[Attempt], arm: ArmName) -> FailureCount:
    """Count an arm's attempts that failed because of the bench in a way that a kernel may have
    caused (such a failure comes and goes, or is undecided on real machines), and all its
    attempts."""
    of_arm = [a for a in attempts if a.arm == arm]
    return FailureCount(sum(_is_imputed(a) for a in of_arm), len(of_arm))


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


def _more_often(
    failed: Sequence[Attempt], counted: Mapping[ArmName, FailureCount]
) -> ArmName | None:
    for arm, other in (ARMS, ARMS[::-1]):
        reasons = Counter(attempt.reason for attempt in failed if attempt.arm == arm)
        comes_back = max(reasons.values(), default=0) > 1
        if comes_back and chance(*counted[arm], *counted[other]) <= SAME_RATE_ALPHA:
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
