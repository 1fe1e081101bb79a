from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.cost import (
    NO_PHASE,
    OperationKind,
    build_cost_table,
    cost_json,
    own_times,
)
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Phase, Timeline
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.timelines import (
    BAR,
    EXIT,
    FIRMWARE,
    GIB,
    INIT,
    SIZING,
    arms,
    booted,
    phases,
    step,
    with_steps,
)

LARGE = "32GiB BAR"
OF_SIZING = "kernel: BAR sizing"
"""Phase of a row, for any device."""
ONE_MAP = OperationKind("map", LARGE, OF_SIZING, "sizing BARs")


def grouped(**changes: Any) -> OperationKind:
    return OperationKind.of(step(0, 1, **changes))


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        ("sizing BAR 2", "sizing BARs"),
        ("sizing BARs 0 and ROM", "sizing BARs"),
        ("sizing BARs 0, 1 and ROM", "sizing BARs"),
        ("sizing ROM", "sizing BARs"),
        ("moving BAR 0", "moving BARs"),
        ("sizing BARs 0, 1 and ROM of bridge 00:01.0", "sizing BARs of a bridge"),
        ("setting the window of bridge 00:01.0", "setting the window of a bridge"),
        ("sizing the window of bridge 0001:00:1c.7", "sizing the window of a bridge"),
        ("bus numbers of bridge 00:02.0", "bus numbers of a bridge"),
        ("enabling of 02:00.0", "enabling of another device"),
        ("moving BARs 2, 4 of 02:00.0", "moving BARs of another device"),
        (
            "configuration register 0x70 of 02:00.0",
            "configuration register 0x70 of another device",
        ),
        ("enabling", "enabling"),
        ("device attached", "device attached"),
        ("device reset", "device reset"),
        ("exit", "exit"),
        ("not known", "not known"),
        ("shadowing the firmware (PAM)", "shadowing the firmware (PAM)"),
        ("placing the PCIe configuration space", "placing the PCIe configuration space"),
        ("the guest's IOMMU", "the guest's IOMMU"),
        ("configuration register 0xa0", "configuration register 0xa0"),
    ],
)
def test_cause_of_an_operation_has_no_register_and_no_address(cause: str, shown: str) -> None:
    assert grouped(cause=cause).cause == shown


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        ("kernel: PCI enumeration, bus 0000:00", "kernel: PCI enumeration"),
        ("kernel: PCI enumeration, 01:00.0", "kernel: PCI enumeration"),
        ("kernel: BAR sizing, 01:00.0", "kernel: BAR sizing"),
        ("kernel: BAR sizing, 0001:01:00.0", "kernel: BAR sizing"),
        ("kernel: PCI resources", "kernel: PCI resources"),
        ("firmware: PCI enumeration", "firmware: PCI enumeration"),
        ("firmware: hand-over", "firmware: hand-over"),
        ("userspace: to SSH", "userspace: to SSH"),
        ("QEMU waits to be started", "QEMU waits to be started"),
        ("before QEMU", "before QEMU"),
    ],
)
def test_phase_of_an_operation_has_no_address(phase: str, shown: str) -> None:
    assert grouped(phase=phase).phase == shown


@pytest.mark.parametrize(
    ("bar", "size", "shown"),
    [
        (BAR, 32 * GIB, "32GiB BAR"),
        ("02:00.0 BAR 4", 32 * GIB, "32GiB BAR"),
        ("01:00.0 BAR 0", 4096, "4KiB BAR"),
        (RAM, 32 * GIB, RAM),
        (RAM, 4096, RAM),
        (IOVA, 1 << 63, IOVA),
    ],
)
def test_bar_of_an_operation_goes_by_its_size(bar: str, size: int, shown: str) -> None:
    assert grouped(bar=bar, size=size).bar == shown


def test_registers_and_devices_of_one_kind_are_one_row() -> None:
    steps = [
        step(1, 2, cause="sizing BAR 0"),
        step(4, 3, bar="02:00.0 BAR 2", phase="kernel: BAR sizing, 02:00.0"),
    ]
    table = build_cost_table({"baseline": [with_steps(booted(), steps)]})
    [row] = table.rows
    assert row.operation == ONE_MAP
    assert (row.costs["baseline"].calls, row.costs["baseline"].total) == (2, 5)


def test_bars_of_another_size_have_rows_and_totals_of_their_own() -> None:
    steps = [step(1, 3), step(5, 2, bar="01:00.0 BAR 0", size=4096)]
    table = build_cost_table({"baseline": [with_steps(booted(), steps)]})
    assert [row.operation.bar for row in table.rows] == [LARGE, "4KiB BAR"]
    assert {name: costs["baseline"].total for name, costs in table.totals.items()} == {
        "maps of 32GiB BARs": 3, "maps of 4KiB BARs": 2,
    }  # fmt: skip


def test_operations_are_told_apart_by_kind_bar_phase_and_cause() -> None:
    table = build_cost_table(arms())
    assert [(r.operation.kind, r.operation.bar, r.operation.phase) for r in table.rows] == [
        ("map", LARGE, OF_SIZING), ("map", LARGE, FIRMWARE), ("unmap", LARGE, OF_SIZING),
        ("unmap", LARGE, FIRMWARE), ("map", RAM, FIRMWARE),
    ]  # fmt: skip
    row = table.rows[0]
    assert row.operation == ONE_MAP
    baseline, candidate = row.costs["baseline"], row.costs["candidate"]
    assert (baseline.calls, baseline.one) == (4, 8.4)
    assert baseline.total == pytest.approx(33.6)
    assert baseline.share == pytest.approx(33.6 / 62.55)
    assert (candidate.calls, candidate.one) == (4, 0.0005)


def test_rows_are_in_order_of_the_larger_total_of_either_arm() -> None:
    baseline = with_steps(booted(), [step(1, 3), step(9, 1, kind="unmap")])
    candidate = with_steps(booted("candidate"), [step(1, 0.5), step(9, 5, kind="unmap")])
    table = build_cost_table({"baseline": [baseline], "candidate": [candidate]})
    assert [row.operation.kind for row in table.rows] == ["unmap", "map"]


def test_small_operations_are_together_in_others() -> None:
    small = [step(1, 0.01, cause=cause) for cause in ("a", "b", "a")]
    table = build_cost_table({"baseline": [with_steps(booted(), [*small, step(9, 8.0)])]})
    assert [row.operation.cause for row in table.rows] == ["sizing BARs"]
    assert table.small == 2
    assert table.others["baseline"].calls == 3
    assert table.others["baseline"].total == pytest.approx(0.03)


def test_what_is_small_in_one_arm_only_keeps_its_row() -> None:
    # the candidate's maps are a ten-thousandth of its boot
    assert ONE_MAP in [row.operation for row in build_cost_table(arms()).rows]


def test_one_small_operation_keeps_its_row() -> None:
    table = build_cost_table({"baseline": [with_steps(booted(), [step(1, 0.01)])]})
    assert (len(table.rows), table.small) == (1, 0)


def test_totals_are_of_bars_by_kind_and_size_and_of_ram() -> None:
    totals = build_cost_table(arms()).totals
    assert {name: costs["baseline"].calls for name, costs in totals.items()} == {
        "maps of 32GiB BARs": 5, "unmaps of 32GiB BARs": 5, "maps of RAM": 1,
    }  # fmt: skip
    assert totals["unmaps of 32GiB BARs"]["candidate"].total == pytest.approx(6.5)


def test_maps_and_unmaps_that_are_of_no_bar_have_totals_apart() -> None:
    steps = [
        step(1, 3, bar=RAM), step(5, 2, kind="unmap", bar=RAM),
        step(8, 1, kind="unmap", bar=IOVA, size=1 << 63),
    ]  # fmt: skip
    table = build_cost_table({"baseline": [with_steps(booted(), steps)]})
    assert {name: costs["baseline"].total for name, costs in table.totals.items()} == {
        "maps of RAM": 3, "unmaps of RAM": 2, "unmaps of guest IOVA": 1,
    }  # fmt: skip


def test_one_of_two_calls_is_the_lower() -> None:
    boot = with_steps(booted(), [step(1, 3), step(5, 2)])
    assert build_cost_table({"baseline": [boot]}).rows[0].costs["baseline"].one == 2


def test_phases_of_several_devices_are_one() -> None:
    made = phases((SIZING, 10), ("kernel: BAR sizing, 02:00.0", 5))
    steps = [step(1, 3), step(11, 2, phase="kernel: BAR sizing, 02:00.0")]
    boot = replace(with_steps(booted(), steps), boot_seconds=16, phases=made)
    assert own_times(boot) == {OF_SIZING: 10, NO_PHASE: 1}


def test_arm_without_such_a_call_has_no_cost_of_one() -> None:
    boots = arms()
    boots["candidate"] = [with_steps(booted("candidate"), [])]
    cost = build_cost_table(boots).rows[0].costs["candidate"]
    assert (cost.calls, cost.one, cost.total, cost.share) == (0, None, 0, 0)


def test_steps_after_the_mark_are_apart_and_have_no_share() -> None:
    table = build_cost_table(arms())
    [row] = table.after
    assert row.operation == OperationKind("unmap", LARGE, EXIT, "exit")
    assert row.costs["candidate"].total == pytest.approx(1.3)
    assert row.costs["candidate"].share is None
    assert EXIT not in {row.operation.phase for row in table.rows}


def test_several_boots_are_reduced_to_medians() -> None:
    def boot(seconds: float, *lengths: float) -> Timeline:
        steps = [step(1, length) for length in lengths]
        return replace(with_steps(booted(), steps), boot_seconds=seconds)

    table = build_cost_table({"baseline": [boot(10, 1, 2, 3), boot(20, 4, 4), boot(30, 9)]})
    assert table.boots == {"baseline": (10, 20, 30)}
    cost = table.rows[0].costs["baseline"]
    assert (cost.calls, cost.one, cost.total, cost.share) == (2, 4, 8, 0.4)


def test_difference_is_accounted_for() -> None:
    difference = build_cost_table(arms()).difference
    assert difference is not None
    assert difference.whole == pytest.approx(-40.4975)
    assert difference.operations == pytest.approx(
        {"maps of 32GiB BARs": -41.9975, "unmaps of 32GiB BARs": 1.0, "maps of RAM": 0.0}
    )
    assert difference.rest == pytest.approx(0.5)
    assert next(iter(difference.phases)) == INIT
    assert difference.phases[INIT] == pytest.approx(0.5)


def test_phase_of_one_arm_only_is_a_difference() -> None:
    boots = arms()
    [boot] = boots["candidate"]
    more = Phase("kernel: more", boot.boot_seconds, 3)
    boots["candidate"] = [
        replace(boot, boot_seconds=boot.boot_seconds + 3, phases=(*boot.phases, more))
    ]
    difference = build_cost_table(boots).difference
    assert difference is not None
    assert difference.phases["kernel: more"] == pytest.approx(3)


def test_one_arm_alone_has_costs_and_no_difference() -> None:
    table = build_cost_table({"baseline": [], "candidate": [booted("candidate")]})
    assert list(table.boots) == ["candidate"]
    assert set(table.rows[0].costs) == {"candidate"}
    assert table.difference is None


def test_no_boot_is_an_empty_table() -> None:
    table = build_cost_table({})
    assert (table.boots, table.rows, table.after, table.difference) == ({}, (), (), None)
    assert cost_json({"baseline": []}) == []


def test_boot_without_a_length_has_no_shares() -> None:
    boot = replace(booted(), boot_seconds=0.0)
    table = build_cost_table({"baseline": [boot]})
    assert (table.rows, table.totals) == ((), {})
    early = build_cost_table({"baseline": [with_steps(boot, [step(-0.5, 0.5)])]})
    assert early.rows[0].costs["baseline"].share is None
    assert early.totals["maps of 32GiB BARs"]["baseline"].share is None


def test_json_has_every_operation_in_plain_types() -> None:
    rows: Any = cost_json(arms())
    assert json.loads(json.dumps(rows)) == rows
    assert rows[0] == {
        "kind": "map", "bar": LARGE, "phase": OF_SIZING, "cause": "sizing BARs",
        "before_mark": True,
        "baseline": {"calls": 4, "one": 8.4, "total": pytest.approx(33.6),
                     "share": pytest.approx(33.6 / 62.55)},
        "candidate": {"calls": 4, "one": 0.0005, "total": 0.002,
                      "share": pytest.approx(0.002 / 22.0525)},
    }  # fmt: skip
    assert [row["before_mark"] for row in rows] == [True] * 5 + [False]
    assert rows[-1]["baseline"]["share"] is None


def test_own_times_leave_out_what_is_after_the_mark() -> None:
    boot = replace(booted(), boot_seconds=56.5)
    assert own_times(boot) == pytest.approx(
        {FIRMWARE: 11.5 - 9.5 - 0.01, OF_SIZING: 44 - 38, INIT: 1, NO_PHASE: 0}, abs=1e-9
    )


# whatever the boots are, nothing is lost or counted twice -------------------------------------

_NAMES = st.sampled_from([FIRMWARE, SIZING, "kernel: BAR sizing, 02:00.0", "elsewhere"])
_SECONDS = st.floats(0, 50)
_STEPS = st.builds(
    DmaStep, st.sampled_from(["map", "unmap"]), st.sampled_from([BAR, "02:00.0 BAR 0", RAM, IOVA]),
    st.sampled_from([GIB, 4096]), _NAMES,
    st.sampled_from(["sizing BAR 2", "sizing BARs 0, 1 and ROM", "enabling of 02:00.0", "exit"]),
    _SECONDS, _SECONDS,
)  # fmt: skip


@st.composite
def boots(draw: st.DrawFn, arm: ArmName) -> Timeline:
    phases, at = [], 0.0
    for name, gap, seconds in draw(st.lists(st.tuples(_NAMES, _SECONDS, _SECONDS), max_size=6)):
        phases.append(Phase(name, at + gap, seconds))
        at += gap + seconds
    return replace(
        booted(arm),
        boot_seconds=draw(st.floats(1, 200)),
        phases=tuple(phases),
        steps=tuple(draw(st.lists(_STEPS, max_size=8))),
    )


@given(boots("baseline"), boots("candidate"))
def test_nothing_is_lost_or_counted_twice(baseline: Timeline, candidate: Timeline) -> None:
    table = build_cost_table({"baseline": [baseline], "candidate": [candidate]})
    both: dict[ArmName, Timeline] = {"baseline": baseline, "candidate": candidate}
    for arm, boot in both.items():
        before = boot.steps_before_mark()
        after = [row.costs[arm] for row in table.after]
        lines = [row.costs[arm] for row in table.rows] + [table.others[arm]]
        groups = [of[arm] for of in table.totals.values()]
        for costs in (lines, groups):
            assert sum(cost.calls for cost in costs) == len(before)
            assert sum(c.total for c in costs) == pytest.approx(sum(s.seconds for s in before))
        assert sum(cost.calls for cost in after) == len(boot.steps) - len(before)
        whole = sum(own_times(boot).values()) + sum(step.seconds for step in before)
        assert whole == pytest.approx(boot.boot_seconds)
    difference = table.difference
    assert difference is not None
    by_arm = {arm: sum(of[arm].total for of in table.totals.values()) for arm in both}
    assert sum(difference.operations.values()) == pytest.approx(
        by_arm["candidate"] - by_arm["baseline"], abs=1e-6
    )
    assert difference.rest == pytest.approx(sum(difference.phases.values()), abs=1e-6)
    sizes = [abs(seconds) for seconds in difference.phases.values()]
    assert sizes == sorted(sizes, reverse=True)
