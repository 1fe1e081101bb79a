"""Axes, flame graphs and the way from one boot to the other."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markupsafe import Markup

from orchestrator.analysis.boot.cost import BootDifference
from orchestrator.analysis.maps.breakdown import Breakdown, Stacks, subtract_breakdowns
from orchestrator.report.html.boots_section import list_changes
from orchestrator.report.html.flames import Flames, build_flames
from orchestrator.report.html.svg import Axis, axis_of, element
from tests.unit.report.pages import Page

POSITIVE = st.floats(1e-9, 1e12)


@given(st.lists(POSITIVE, min_size=1, max_size=9), st.sampled_from([None, 1.0, 10.0]))
@example([5.0], None)
@example([1e-9, 1e12], 10.0)
def test_axis_holds_its_values_and_has_a_few_round_ticks(
    values: list[float], log_from: float | None
) -> None:
    axis = axis_of(values, log_from)
    assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
    ticks = axis.ticks(6)
    assert 1 <= len(ticks) <= 8
    assert all(a < b for a, b in pairwise(ticks))
    if len(ticks) > 1:
        assert all(-0.01 <= axis.share(tick) <= 1.01 for tick in ticks)
        digits = {f"{abs(tick):.0e}"[0] for tick in ticks if tick}
        assert axis.is_log <= (digits <= set("1235"))


@given(POSITIVE, POSITIVE, POSITIVE)
def test_bar_begins_and_ends_where_its_values_are(one: float, two: float, three: float) -> None:
    low, middle, high = sorted((one, two, three))
    if low == high:
        return
    axis = Axis(low, high)
    start, end = float(axis.x(low)[:-1]), float(axis.x(high)[:-1])
    width = float(axis.width(low, middle)[:-1])
    assert float(axis.x(middle)[:-1]) == pytest.approx(start + width, abs=0.01)
    assert 0 < start < end < 100


@given(st.text(max_size=40))
def test_text_of_a_chart_is_escaped_once(content: str) -> None:
    made = element("text", content, x=content, class_="a")
    page = Page(f"<svg>{made}</svg>")
    assert page.tags == {"svg": 1, "text": 1}
    again = element("g", made)
    assert str(made) in again
    assert isinstance(again, Markup)
    assert element("text", "QEMU's <exec>") == "<text>QEMU&#39;s &lt;exec&gt;</text>"


NAMES = st.sampled_from(["vfio_pin", "follow_pfn", "iommu_map", "mt_find", "memset"])
STACKS = st.dictionaries(
    st.lists(NAMES, min_size=0, max_size=4).map(lambda names: ("vfio_ioctl", *names)),
    st.integers(1, 10**9).map(float), min_size=1, max_size=8,
)  # fmt: skip


def breakdown(stacks: Stacks) -> tuple[Breakdown, ...]:
    return (Breakdown("map", "warm", stacks, logged=True),)


def flames_of(baseline: tuple[Breakdown, ...], candidate: tuple[Breakdown, ...]) -> list[Flames]:
    return build_flames(
        {"baseline": baseline, "candidate": candidate},
        subtract_breakdowns(baseline, candidate, 1 << 30, None),
    )


@given(STACKS, STACKS)
def test_frame_is_as_wide_as_its_share_and_below_what_calls_it(
    before: Stacks, after: Stacks
) -> None:
    [flames] = flames_of(breakdown(before), breakdown(after))
    assert len(flames.graphs) == 3
    for graph in flames.graphs.values():
        rows: dict[float, list[tuple[float, float]]] = {}
        for tag, found in Page(graph).attributes:
            if "x" in found and "width" in found and tag in ("svg", "rect"):
                x, width = float(found["x"].rstrip("%")), float(found["width"].rstrip("%"))
                rows.setdefault(float(found["y"]), []).append((x, width))
        [(x, width)] = rows[0.0]  # the ioctl's function is the whole
        assert x == 0
        assert width == pytest.approx(100)
        for upper, lower in pairwise(sorted(rows)):
            for x, width in rows[lower]:
                assert any(
                    a - 0.01 <= x and x + width <= a + b + 0.01 for a, b in rows[upper]
                )  # fmt: skip


@given(STACKS, STACKS)
def test_changes_of_functions_are_those_of_their_own_instructions(
    before: Stacks, after: Stacks
) -> None:
    [flames] = flames_of(breakdown(before), breakdown(after))
    own: dict[str, float] = {}
    for sign, stacks in ((-1, before), (1, after)):
        for stack, count in stacks.items():
            own[stack[-1]] = own.get(stack[-1], 0.0) + sign * count
    told = {change.name: change.change for change in flames.changes}
    assert {*told} == {name for name, value in own.items() if abs(value) >= 0.5}
    assert all(text.startswith("+" if own[name] > 0 else "-") for name, text in told.items())
    whole = sum(after.values()) - sum(before.values())
    [title] = [title for title in flames.graphs if title.startswith("difference")]
    assert ("+" in title) == (whole > 0)


def test_arm_alone_has_its_graph_and_no_difference() -> None:
    [flames] = flames_of(breakdown({("f",): 1.0}), ())
    assert [*flames.graphs] == ["baseline, 1 insn"]
    assert flames.changes == []
    assert flames_of((), ()) == []


@given(st.floats(1, 1e4), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5),
       st.floats(1, 1e4))  # fmt: skip
def test_way_between_boots_is_without_gaps(
    baseline: float, changes: list[float], candidate: float
) -> None:
    operations = {f"maps {number}": change for number, change in enumerate(changes)}
    rows = list_changes(BootDifference(baseline, candidate, operations, {}), "s")
    assert rows[0].name == "baseline"
    assert rows[-2].name == "all else"
    assert rows[-1].name == "candidate"
    bars = [
        tuple(float(value) for value in re.findall(r'(?:x|width)="([\d.]+)%"', row.bar)[-2:])
        for row in rows
    ]
    ends = [{round(x, 1), round(x + width, 1)} for x, width in bars]
    for upper, lower in pairwise(ends):
        assert any(abs(a - b) <= 0.21 for a in upper for b in lower)
    for row in rows[1:-1]:
        assert ("more" in row.bar) == (row.number.startswith("+"))
