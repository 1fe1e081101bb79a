"""Whose fault a failure is, and when a failure that comes back is an arm's."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

import orchestrator
from orchestrator.faults import (
    ALPHA,
    ATTEMPTS,
    FAULTS,
    Attempt,
    attempt_json,
    attempts_from,
    chance,
    charge,
    counts,
    failing_arm,
    fault_of,
    next_turn,
)
from orchestrator.kernelreports import STALLS, reports_in
from orchestrator.scenario import ARMS, ArmName

SOURCES = Path(orchestrator.__file__).parent
NAMES = ("host", "guest")
"""What machines are called in reasons that begin with their name."""


def texts(value: ast.expr) -> Iterator[str]:
    """The strings that an expression may come to: both branches, and a machine's name in front."""
    if isinstance(value, ast.Constant):
        yield str(value.value)
    elif isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)
    elif isinstance(value, ast.JoinedStr):
        rest = "".join(str(p.value) for p in value.values if isinstance(p, ast.Constant))
        if re.fullmatch("-[a-z-]+", rest):
            yield from (f"{name}{rest}" for name in NAMES)


def raised_reasons() -> Iterator[tuple[str, str]]:
    """Each reason in the sources of what a trial goes through, with its place."""
    for path in [*(SOURCES / "bench").glob("*.py"), SOURCES / "run.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                given_by = [k.value for k in node.keywords if k.arg == "reason"]
                if isinstance(node.func, ast.Name) and node.func.id == "_as_ours":
                    given_by.append(node.args[1])
                for text in (t for value in given_by for t in texts(value)):
                    yield text, f"{path.name}:{node.lineno}"


def test_every_reason_is_in_the_table() -> None:
    found = dict(raised_reasons())
    assert len(found) > 60
    # a guest is never logged in to by ssh's own configuration
    only_hosts = {"no-login", "no-name", "no-root", "unknown-host-key"}
    missing = {
        f"{place}: {reason}" for reason, place in found.items()
        if reason not in FAULTS and reason.removeprefix("guest-") not in only_hosts
        and not reason.startswith("host-{")
    }  # fmt: skip
    assert not missing
    assert {f"host-{kind}" for kind in STALLS} <= FAULTS.keys()


def test_no_reason_alone_is_an_arms() -> None:
    """Only a call trace is, or what comes back."""
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
    found = charge("host-panic", emulated=emulated, reports=reports, changed=changed)
    assert found.charge == expected
    assert (call.partition("+")[0] in found.why) == (expected == "arm")
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
    found = chance(failed, failed + well, other_failed, other_failed + other_well)
    assert found == pytest.approx(expected)


def attempts(failed: int, of: int, other_failed: int, of_other: int) -> list[Attempt]:
    """Of the candidate, and of the baseline."""
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
    assert chance(ATTEMPTS, ATTEMPTS, 0, ATTEMPTS) == ALPHA


def test_attempts_that_the_bench_failed_do_not_count() -> None:
    bench = [Attempt("baseline", "host-crash", "bench")] * 9
    assert counts([*attempts(3, 3, 0, 3), *bench], "baseline") == (0, 3)


@given(st.booleans(), st.booleans(), st.sampled_from(ARMS))
def test_turns_end_with_a_decision_or_with_nothing_to_tell(
    candidate_fails: bool, baseline_fails: bool, first: ArmName
) -> None:
    """A run of one pair, whose arms always do the same."""
    fails = {"candidate": candidate_fails, "baseline": baseline_fails}
    done = [Attempt(arm, "x" if fails[arm] else "") for arm in ARMS]
    turns = []
    while fails[first] and (turn := next_turn(done, first, alone=False)) is not None:
        turns.append(turn)
        done.append(Attempt(turn, "x" if fails[turn] else ""))
        assert len(turns) <= 4
    if candidate_fails and baseline_fails:
        assert turns == []  # nothing works: there is no difference to be found
    elif fails[first]:
        other = ARMS[ARMS[0] == first]
        assert turns == [first, other, first, other]
        assert failing_arm(done) == first


def test_arm_that_is_run_alone_is_repeated_alone() -> None:
    assert next_turn([Attempt("candidate", "x")], "candidate", alone=True) == "candidate"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["arm", "reason", "charge", "stage", "line"]), inner)
    ),
)


@given(JSON)
def test_whatever_a_manifest_has_is_read(entries: object) -> None:
    for attempt in attempts_from(entries, "baseline"):
        assert attempt.arm in ARMS
        assert isinstance(attempt.reason, str)


def test_attempts_are_read_as_they_were_written() -> None:
    written = [
        Attempt("candidate", "guest-hang", "undecided", "guest-0-plain", "[ 1.0] INFO: task x"),
        Attempt("baseline"),
        Attempt("candidate", "host-crash", "bench"),
    ]
    assert [*attempts_from([attempt_json(a) for a in written], "baseline")] == written
    # those of older versions are the emulator's failures
    assert attempts_from(["host-crash"], "candidate") == (
        Attempt("candidate", "host-crash", "bench"),
    )
    assert fault_of("host-crash").comes_and_goes
