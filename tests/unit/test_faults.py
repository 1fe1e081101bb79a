"""Who is charged with a failure, and when a failure that comes back is charged to an arm."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from orchestrator.evidence.faults import (
    ATTEMPTS,
    FAULTS,
    SAME_RATE_ALPHA,
    Attempt,
    arm_the_bench_fails,
    bench_counts,
    chance,
    charge,
    counts,
    failing_arm,
    fault_of,
    next_turn,
)
from orchestrator.evidence.manifest import AttemptRecord
from orchestrator.formats.kernelreports import STALLS, reports_in
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.manifests import manifest_of


@pytest.mark.parametrize(
    "reason", ["bind", "modules-refused", "module-in-use", "driver-hangs", "decode-always-on"]
)
def test_kernel_that_does_not_hand_over_a_device_may_be_the_cause(reason: str) -> None:
    for emulated in (True, False):
        assert charge(reason, emulated=emulated).charge == "undecided"


def test_no_reason_alone_is_an_arms() -> None:
    """Only a call trace, or a failure that comes back, is."""
    for reason, fault in FAULTS.items():
        assert fault.charge in ("bench", "undecided"), reason
        assert fault.emulated in (None, "bench"), reason
        assert fault.why, reason


@pytest.mark.parametrize(
    ("reason", "emulated", "real"),
    [
        ("host-no-timer", "bench", "undecided"),
        *[(f"host-{kind}", "bench", "undecided") for kind in sorted(STALLS)],
        ("guest-stall", "bench", "undecided"),
        ("guest-end-hang", "bench", "undecided"),
        ("host-hang", "bench", "undecided"),
        ("guest-hang", "undecided", "undecided"),
        ("guest-no-ssh", "undecided", "undecided"),
        ("host-panic", "undecided", "undecided"),
        ("host-crash", "bench", "bench"),
        ("never heard of", "bench", "bench"),
    ],
)
def test_emulation_is_blamed_for_what_it_does(reason: str, emulated: str, real: str) -> None:
    assert charge(reason, emulated=True).charge == emulated
    assert charge(reason, emulated=False).charge == real


@pytest.mark.parametrize("reason", ["guest-stall", "guest-end-hang", "guest-no-timer"])
def test_emulated_guest_of_a_real_host_is_the_emulators(reason: str) -> None:
    assert charge(reason, emulated=False, guest_emulated=True).charge == "bench"
    assert charge(reason, emulated=False).charge == "undecided"


def test_emulated_guest_excuses_no_real_host() -> None:
    for reason in FAULTS:
        if not reason.startswith("guest-"):
            charged = charge(reason, emulated=False, guest_emulated=True)
            assert charged == charge(reason, emulated=False)


@pytest.mark.parametrize("reason", ["host-ssh-lost", "host-no-ssh", "libvirt-silent"])
def test_connection_that_is_lost_on_an_emulated_host_is_begun_again(reason: str) -> None:
    assert charge(reason, emulated=True).charge == "bench"
    assert fault_of(reason).comes_and_goes


PANIC = "[    1.000000] Kernel panic - not syncing: x\n[    1.000000]  {}\n"


@pytest.mark.parametrize(
    ("call", "changed", "expected"),
    [
        ("vfio_dma_do_map+0x1/0x2 [vfio_iommu_type1]", (), "arm"),
        ("iommu_map+0x1/0x2", (), "arm"),
        ("crash_init+0x1/0x2 [changed]", ("changed",), "arm"),
        ("crash_init+0x1/0x2 [changed]", (), "undecided"),
        ("? vfio_dma_do_map+0x1/0x2", (), "undecided"),
        ("mount_root+0x1/0x2", (), "undecided"),
    ],
)
@pytest.mark.parametrize("emulated", [True, False])
def test_panic_is_the_arms_by_its_call_trace(
    call: str, changed: tuple[str, ...], expected: str, emulated: bool
) -> None:
    reports = reports_in(PANIC.format(call))
    charged = charge("host-panic", emulated=emulated, reports=reports, changed=changed)
    assert charged.charge == expected
    assert (call.partition("+")[0] in charged.why) == (expected == "arm")
    # a guest's kernel is the same in both arms
    assert charge("guest-panic", emulated=emulated, reports=reports).charge == "undecided"


def test_call_trace_of_a_stall_blames_nobody() -> None:
    hung = reports_in(
        "[ 1.000000] INFO: task a:1 blocked for more than 60 seconds.\n"
        "[ 1.000000]  vfio_dma_do_unmap+0x1/0x2 [vfio_iommu_type1]\n"
    )
    assert hung[0].functions
    assert charge("host-hung-task", emulated=False, reports=hung).charge == "undecided"


COUNT = st.integers(0, 12)


@given(COUNT, COUNT, COUNT, COUNT)
def test_chance_is_fishers(failed: int, well: int, other_failed: int, other_well: int) -> None:
    table = [[failed, well], [other_failed, other_well]]
    expected = fisher_exact(table, alternative="greater").pvalue
    probability = chance(failed, failed + well, other_failed, other_failed + other_well)
    assert probability == pytest.approx(expected)


def attempts(failed: int, of: int, other_failed: int, of_other: int) -> list[Attempt]:
    """Make attempts of the candidate and of the baseline."""
    counted: dict[ArmName, tuple[int, int]] = {
        "candidate": (failed, of), "baseline": (other_failed, of_other),
    }  # fmt: skip
    return [
        Attempt(arm, "guest-hang" if k < bad else "")
        for arm, (bad, n) in counted.items()
        for k in range(n)
    ]


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ((1, 1, 0, 1), None),
        ((1, 1, 0, 50), None),  # one is never enough
        ((2, 2, 0, 2), None),
        ((3, 3, 0, 2), None),
        ((3, 3, 0, 3), "candidate"),
        ((0, 3, 3, 3), "baseline"),
        ((3, 3, 1, 3), None),
        ((3, 3, 3, 3), None),
        ((2, 2, 0, 6), "candidate"),
        ((4, 12, 0, 12), "candidate"),
        ((3, 12, 0, 12), None),
    ],
)
def test_failures_are_an_arms_that_come_back_there_and_not_in_the_other(
    counted: tuple[int, int, int, int], expected: ArmName | None
) -> None:
    assert failing_arm(attempts(*counted)) == expected


def test_least_that_decides_is_every_attempt_of_three() -> None:
    assert chance(ATTEMPTS, ATTEMPTS, 0, ATTEMPTS) == SAME_RATE_ALPHA


def test_attempts_that_the_bench_failed_do_not_count() -> None:
    bench = [Attempt("baseline", "host-crash", "bench")] * 9
    assert counts([*attempts(3, 3, 0, 3), *bench], "baseline") == (0, 3)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [("xxx", "candidate"), ("xxy", "candidate"), ("xyz", None)],
)
def test_failures_that_decide_have_one_reason_twice(reasons: str, expected: str | None) -> None:
    failed = [Attempt("candidate", reason) for reason in reasons]
    assert failing_arm([*failed, *[Attempt("baseline")] * 3]) == expected


def bench_failures(
    reason: str, failed: int, of: int, other_failed: int, of_other: int
) -> list[Attempt]:
    return [
        Attempt(arm, reason if k < bad else "", "bench" if k < bad else "undecided")
        for arm, bad, n in ((ARMS[1], failed, of), (ARMS[0], other_failed, of_other))
        for k in range(n)
    ]


@pytest.mark.parametrize(
    ("counted", "expected"),
    [
        ((12, 18, 0, 6), "candidate"),
        ((0, 6, 12, 18), "baseline"),
        ((3, 18, 1, 6), None),
        ((9, 9, 9, 9), None),
        ((1, 1, 0, 50), None),
    ],
)
def test_bench_that_fails_one_arm_more_often_charges_nobody(
    counted: tuple[int, int, int, int], expected: ArmName | None
) -> None:
    made = bench_failures("host-hung-task", *counted)
    assert failing_arm(made) is None
    assert arm_the_bench_fails(made) == expected
    assert bench_counts(made, "candidate") == counted[:2]
    # no kernel can cause these
    assert arm_the_bench_fails(bench_failures("disk-full", *counted)) is None


@given(st.booleans(), st.booleans(), st.sampled_from(ARMS))
def test_turns_end_with_a_decision_or_with_nothing_to_tell(
    candidate_fails: bool, baseline_fails: bool, first: ArmName
) -> None:
    """The run has one pair, whose arms always behave the same."""
    fails = {"candidate": candidate_fails, "baseline": baseline_fails}
    other = ARMS[ARMS[0] == first]
    done = [Attempt(arm, "x" if fails[arm] else "") for arm in ARMS]
    turns = []
    while fails[first] and (turn := next_turn(done, first, alone=False)) is not None:
        turns.append(turn)
        done.append(Attempt(turn, "x" if fails[turn] else ""))
        assert len(turns) <= 4
    if candidate_fails and baseline_fails:
        assert turns == [first, other]  # nothing works, so there is no difference to find
        assert failing_arm(done) is None
    elif fails[first]:
        assert turns == [first, other, first, other]
        assert failing_arm(done) == first


def test_one_failure_of_each_arm_does_not_end_the_turns() -> None:
    """One of them may be the bench's failure."""
    done = attempts(1, 1, 1, 1)
    assert next_turn(done, "candidate", alone=False) == "candidate"
    done += attempts(1, 1, 0, 1)
    assert next_turn(done, "candidate", alone=False) == "candidate"


def drawn_run(pairs: int, rate: float, chance_of: random.Random) -> ArmName | None:
    """Return the arm that is charged in a run whose arms fail equally often."""

    def go(arm: ArmName) -> Attempt:
        return Attempt(arm, "guest-hang" if chance_of.random() < rate else "")

    trials = [[go(arm)] for _ in range(pairs) for arm in ARMS]
    left = 4 + len(trials) // 4
    for trial in trials:
        arm = trial[0].arm
        while left and trial[-1].reason and counts(trial, arm).failed < ATTEMPTS:
            turn = next_turn([a for t in trials for a in t], arm, alone=False)
            if turn is None:
                break
            left -= 1
            trial.insert(len(trial) - (turn != arm), go(turn))
    return failing_arm([a for t in trials for a in t])


@pytest.mark.parametrize(
    ("pairs", "rate", "most"), [(1, 0.1, 0.01), (3, 0.5, 0.05), (6, 0.5, 0.08)]
)
def test_arms_that_fail_equally_often_are_rarely_charged(
    pairs: int, rate: float, most: float
) -> None:
    chance_of = random.Random(7)
    runs = [drawn_run(pairs, rate, chance_of) for _ in range(300)]
    assert runs.count("candidate") / len(runs) <= most


def test_arm_that_is_run_alone_is_repeated_alone() -> None:
    assert next_turn([Attempt("candidate", "x")], "candidate", alone=True) == "candidate"


def test_attempts_are_read_as_they_were_written() -> None:
    written = [
        Attempt("candidate", "guest-hang", "undecided", "guest-0-plain", "[ 1.0] INFO: task x"),
        Attempt("baseline"),
        Attempt("candidate", "host-crash", "bench"),
    ]
    manifest = manifest_of(repeated=[AttemptRecord.of(attempt).to_json() for attempt in written])
    assert [*manifest.repeated_attempts()] == written
    assert fault_of("host-crash").comes_and_goes
