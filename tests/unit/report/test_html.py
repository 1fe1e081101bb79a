from __future__ import annotations

import functools
import hashlib
import re
import time
import tracemalloc
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import Note
from orchestrator.analysis.conditions.conditions import Conditions, Difference
from orchestrator.analysis.conditions.kconfig import ConfigChange
from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.analysis.trial import Findings, TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, MetricComparison
from orchestrator.analysis.verdict.effect import Effect, Estimate
from orchestrator.report.html.html import html_report
from orchestrator.report.html.page import MOST_PROBLEMS, MOST_TAILS
from orchestrator.report.html.svg import axis_of
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.vocabulary import ARMS, CONTROL, ArmName, Role
from tests.unit.examples import share
from tests.unit.manifests import plan_of
from tests.unit.report.pages import (
    KERNELS,
    PLAN,
    RUNS,
    Page,
    bad,
    compared,
    judge_recorded,
    recorded,
    trials,
)
from tests.unit.scenarios import scenario
from tests.unit.stable import has_in_order, numbers_in
from tests.unit.timelines import booted

LARGEST = 1_000_000
"""Bytes of the largest page. Each recorded run's has fewer, see LARGEST_OF."""
LARGEST_OF = 600_000
of_every_run = pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
IMPROVED = trials({"baseline": [8.0, 8.1, 8.2], "candidate": [1.0, 1.1, 1.2]})
ATTACKS = (
    "</script><script>alert(1)</script>", "<!-- <script>", "]]>", "</pre></details>", "\x00",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07", "\u202eevil", "\ud800", "{{ 7 * 7 }}", "&lt;", "'\"",
    '<a href="https://example.org">', "\r", "\x9b31m",
)  # fmt: skip


def report(*results: TrialResult, **plan: Any) -> str:
    return html_report(scenario(), compared(results), plan_of(**plan))


@functools.cache
def page_text(run: Path) -> str:
    return html_report(*recorded(run))


def charts(page: Page) -> list[dict[str, str]]:
    """Return the attributes of every chart, without the small bars in tables."""
    return [a for tag, a in page.attributes if tag == "svg" and "chart" in a.get("class", "")]


def marks(page: Page, tag: str, name: str) -> list[dict[str, str]]:
    """Return the attributes of the elements of a class in the charts."""
    return [a for t, a in page.attributes if t == tag and name in a.get("class", "").split()]


@of_every_run
def test_report_of_a_recorded_run_is_whole(run: Path) -> None:
    text = page_text(run)
    page = Page(text)
    assert page.tags["h1"] == page.tags["main"] == page.tags["head"] == 1
    assert len(text.encode()) < LARGEST_OF
    ids = page.with_attribute("id")
    assert len(ids) == len({*ids})
    assert {target.removeprefix("#") for target in page.with_attribute("href")} <= {*ids}
    drawn = charts(page)
    assert drawn
    assert all(a["aria-label"] and a["role"] == "img" for a in drawn)


@of_every_run
def test_no_section_is_empty(run: Path) -> None:
    sections = re.split(r"<h2", page_text(run))[1:]
    for section in sections:
        rest = section.partition("</h2>")[2]
        assert re.search(r"<(table|svg|pre|dl)\b", rest), section[:80]


@of_every_run
def test_chart_fits_any_width_and_stays_within_it(run: Path) -> None:
    """Places from left to right are shares of the width."""
    text = re.sub(r'<svg class="swatch".*?</svg>', "", page_text(run))  # of legends
    for tag, found in Page(text).attributes:
        if tag in ("rect", "line", "circle", "text", "svg") and "viewBox" not in found:
            for name in ("x", "x1", "x2", "cx", "width"):
                if (value := found.get(name, "0")) not in ("0", "3"):
                    assert re.fullmatch(r"\d+(\.\d+)?%", value), (tag, found)
                    assert float(value[:-1]) <= 100.001
            if "x" in found and found.get("width", "").endswith("%"):
                ends = [float(found[name].rstrip("%")) for name in ("x", "width")]
                assert sum(ends) <= 100.01


@of_every_run
def test_same_values_give_the_same_bytes(run: Path) -> None:
    assert html_report(*judge_recorded(run)) == page_text(run)


@of_every_run
def test_page_loads_nothing(run: Path) -> None:
    page = Page(page_text(run))
    assert not page.with_attribute("src")
    assert (
        page.tags["link"] == page.tags["iframe"] == page.tags["object"] == page.tags["base"] == 0
    )
    assert all(target.startswith("#") for target in page.with_attribute("href"))
    assert not re.search(r"@import|url\(", "".join(page.texts["style"]))
    names = {name for _, attributes in page.attributes for name in attributes}
    assert not [name for name in names if name.startswith("on")]


def test_policy_names_the_script_and_allows_no_other() -> None:
    text = report(*IMPROVED)
    page = Page(text)
    [policy] = [a["content"] for _, a in page.attributes if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; ")
    [allowed] = re.findall(r"'sha256-(.*?)'", policy)
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert hashlib.sha256(script.encode()).digest() == b64decode(allowed)
    assert "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]


def test_page_is_read_without_its_script() -> None:
    text = re.sub(r"<script>.*?</script>", "", report(*IMPROVED), flags=re.DOTALL)
    page = Page(text)
    assert charts(page)
    assert "8.1 s" in page.text


def test_page_is_usable_by_keyboard_and_by_ear() -> None:
    page = Page(report(*IMPROVED))
    regions = [a for _, a in page.attributes if a.get("role") == "region"]
    assert regions
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    labels = [a["aria-label"] for a in regions]
    assert len(labels) == len({*labels})
    images = [a for _, a in page.attributes if a.get("role") == "img"]
    assert all(a["aria-label"] for a in images)
    first = next(a for tag, a in page.attributes if tag == "a")
    assert first == {"class": "skip", "href": "#main"}


@share(0.25)
@given(st.text(max_size=60))
@example("".join(ATTACKS))
def test_text_from_outside_is_shown_and_never_acts(text: str) -> None:
    fragments = [*ATTACKS, text]
    hostile = " ".join(fragments)
    step = replace(booted().steps[1], cause=hostile, bar=hostile, phase=hostile)
    boot = booted(
        steps=(step,), notes=(Note(hostile, hostile),), release=hostile, console=((1.0, hostile),)
    )
    traced = replace(IMPROVED[0], name=hostile, findings=Findings(timelines=(boot,)))
    problem = bad(evidence=hostile, reason=hostile, stage=hostile, message=hostile)
    comparison = compared([traced, *IMPROVED[1:], problem])
    comparison = replace(
        comparison,
        kernels={arm: {"release": hostile, "source": hostile} for arm in KERNELS},
        scenario=hostile,
    )
    usual = page_of_plain_text()
    found = html_report(scenario(), comparison, PLAN.model_copy(update={"barometer": hostile}))
    found.encode()  # raises for half of a surrogate pair
    page = Page(found)
    assert page.tags["script"] == usual.tags["script"] == 1
    assert page.tags.keys() <= usual.tags.keys() | {"article"}
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found)
    assert all(target.startswith("#") for target in page.with_attribute("href"))
    assert "{{ 7 * 7 }}" in page.text


@functools.cache
def page_of_plain_text() -> Page:
    traced = replace(IMPROVED[0], findings=Findings(timelines=(booted(),)))
    comparison = compared([traced, *IMPROVED[1:], bad(evidence="a line")])
    return Page(html_report(scenario(), comparison, PLAN))


def test_console_tail_is_shown_with_its_control_characters() -> None:
    tail = "\n".join([*(f"line {i}" for i in range(80)), "\x1b[31mOops\x1b[0m\x00 </pre>"])
    page = Page(report(*IMPROVED, bad(evidence=tail)))
    [shown] = [text for text in page.texts["pre"] if "Oops" in text]
    assert "\\x1b[31mOops\\x1b[0m\\x00 </pre>" in shown
    assert "line 41" in shown
    assert "line 40" not in shown
    assert has_in_order(
        page.text, "0009-candidate", "failed", "guest-0-plain", "guest-panic", "it panicked"
    )


def test_trial_that_changed_the_host_of_others_is_named() -> None:
    left = replace(IMPROVED[0], host_left=("mounts:  -> \x1b[31m<b>",))
    page = Page(report(left, *IMPROVED[1:]))
    assert f"{left.name} left its host changed" in page.text
    assert "mounts: -> \\x1b[31m<b>" in " ".join(page.text.split())
    assert "left its host changed" not in Page(report(*IMPROVED)).text


def test_long_line_of_a_console_is_cut() -> None:
    page = Page(report(*IMPROVED, bad(evidence="x" * 100_000)))
    assert max(len(text) for text in page.texts["pre"]) < 3000


def test_many_failures_are_counted_and_not_all_shown() -> None:
    many = [replace(bad(evidence="a console"), name=f"{i:04d}-candidate") for i in range(3000)]
    text = report(*IMPROVED, *many)
    page = Page(text)
    assert page.tags["article"] == MOST_PROBLEMS
    assert text.count(">a console<") == MOST_TAILS
    assert has_in_order(page.text, "3000", "candidate", "failed", "guest-panic")
    assert [str(MOST_PROBLEMS), "3000"] in [numbers_in(shown) for shown in page.texts["p"]]


def test_table_and_chart_have_every_metric_with_its_interval_and_p() -> None:
    values = [8 + i / 100 for i in range(12)]
    arms: dict[Role, list[float]] = {
        "baseline": values, "candidate": [v / 4 for v in values], "control": values[::-1],
    }  # fmt: skip
    page = Page(report(*trials(arms)))
    assert "0.00049" in page.text
    assert "-75.0% [-75.0, -75.0]" in page.text
    assert "control (A/A): equivalent, " in page.text
    assert "This run has no control" not in page.text
    assert len(marks(page, "circle", "baseline")) >= 12
    assert len(marks(page, "path", "candidate")) >= 12
    assert len(marks(page, "circle", "control")) >= 12
    assert {a["class"].split()[1] for a in marks(page, "line", "median")} == {
        "baseline", "candidate", "control",
    }  # fmt: skip


def test_few_trials_have_no_p_and_the_page_says_why() -> None:
    text = Page(report(*IMPROVED)).text
    assert "With fewer than 10 pairs there is no p value" in text
    assert "This run has no control (A/A)." in text


@pytest.mark.parametrize(("pairs", "dots", "effects"),
                         [(1, False, False), (2, False, False), (3, True, False),
                          (5, True, False), (6, True, True), (12, True, True)])  # fmt: skip
def test_dots_begin_at_three_pairs_and_ratios_at_six(
    pairs: int, dots: bool, effects: bool
) -> None:
    values = [8 + i / 100 for i in range(pairs)]
    page = Page(report(*trials({"baseline": values, "candidate": [v * 1.001 for v in values]})))
    ids = page.with_attribute("id")
    assert ("samples" in ids) == dots
    assert ("effects" in ids) == effects
    assert bool(marks(page, "rect", "margin")) == effects


def test_equivalent_metric_looks_flat() -> None:
    """Its interval lies within the shaded margin, and that is less than half of the chart."""
    values = [8 + (7919 * n % 101) / 1e4 for n in range(12)]
    arms: dict[Role, list[float]] = {"baseline": values, "candidate": values[::-1]}
    page = Page(report(*trials(arms)))
    [band] = marks(page, "rect", "margin")
    [interval] = marks(page, "line", "effect")
    start, width = float(band["x"][:-1]), float(band["width"][:-1])
    assert width < 51
    assert start < float(interval["x1"][:-1]) <= float(interval["x2"][:-1]) < start + width
    better: dict[Role, list[float]] = {"baseline": values, "candidate": [v / 9 for v in values]}
    page = Page(report(*trials(better)))
    assert "\u25c0" in page.text  # far beyond the edge


def test_shapes_of_an_arm_are_said() -> None:
    steady = [1 + (7919 * number % 101) / 1e4 for number in range(12)]
    modes = [value * (1.5 if number % 2 else 1.0) for number, value in enumerate(steady)]
    text = Page(report(*trials({"baseline": steady, "candidate": modes}))).text
    assert has_in_order(text, "candidate", "bimodal", "6", "1")


def test_axis_is_logarithmic_where_arms_are_far_apart() -> None:
    for factor, is_log in ((100.0, True), (5.0, False)):
        values = [1.0, 1.1, 1.05]
        arms: dict[Role, list[float]] = {
            "baseline": values, "candidate": [v * factor for v in values],
        }  # fmt: skip
        page = Page(report(*trials(arms)))
        places = [float(a["y1"]) for a in marks(page, "line", "grid")]
        assert len(places) >= 2
        axis = axis_of([1.0, 1.1 * factor], 10.0)
        assert axis.is_log == is_log


def test_metric_that_never_varies_needs_no_chart() -> None:
    same = trials({"baseline": [12.0] * 4, "candidate": [12.0] * 4}, "bar_maps_per_boot")
    page = Page(report(*same))
    assert charts(page) == []
    assert "samples" not in page.with_attribute("id")


def traced(*arms: ArmName) -> str:
    results = [
        replace(result, findings=Findings(timelines=(booted(result_arm),)))
        for result_arm, result in zip(ARMS, IMPROVED[:2], strict=True) if result_arm in arms
    ]  # fmt: skip
    return report(*results, *[r for r in IMPROVED[:2] if r.arm not in arms])


def test_boots_of_both_arms_are_on_one_axis_and_come_first() -> None:
    page = Page(traced(*ARMS))
    [chart] = [a for a in charts(page) if "boots" in a["class"]]
    assert charts(page)[0] == chart
    assert chart["aria-label"].count("to userspace") == 2
    for name in ("kernel", "firmware", "shutdown"):
        assert marks(page, "rect", name)
    maps, unmaps = marks(page, "rect", "map"), marks(page, "rect", "unmap")
    assert len(maps) == len(unmaps) - 2 == 10  # QEMU's exit unmaps once more in each arm
    marked = [float(a["x1"][:-1]) for a in marks(page, "line", "mark")]
    assert marked[0] > marked[1]  # the candidate is up sooner
    assert "Timeline of the baseline, as text" in page.text
    assert "The candidate's boot is" in page.text
    assert "cpus-kept" in page.text


def test_signs_of_prose_and_table_agree() -> None:
    """The candidate's maps are cheaper and its unmaps dearer."""
    text = Page(traced(*ARMS)).text
    assert "maps of 32GiB BARs -42.00 s; unmaps of 32GiB BARs +1.00 s" in text
    assert "maps of 32GiB BARs-42 s" in text  # two cells of the table
    assert "unmaps of 32GiB BARs+1 s" in text


def test_arm_without_a_traced_boot_leaves_the_others() -> None:
    page = Page(traced("baseline"))
    assert [a for a in charts(page) if "boots" in a["class"]]
    assert "The candidate's boot is" not in page.text


@pytest.mark.parametrize(
    "results",
    [
        [],
        IMPROVED[:1],
        [bad("baseline"), bad("candidate")],
        [bad("baseline", kind="invalid"), IMPROVED[1]],
        [TrialResult("0001-baseline", "baseline", "measured"),
         TrialResult("0002-candidate", "candidate", "measured")],
    ],
    ids=["none", "one arm", "all failed", "one invalid", "no metrics"],
)  # fmt: skip
def test_run_without_metrics_has_a_page(results: list[TrialResult]) -> None:
    text = html_report(scenario(), compared(results, planned=2), PLAN)
    page = Page(text)
    assert charts(page) == []
    ids = {*page.with_attribute("id")}
    assert "table" not in ids
    assert {"verdict", "reproduce"} <= ids


@of_every_run
def test_scenario_is_there_in_full(run: Path) -> None:
    chosen, _, plan = recorded(run)
    page = Page(page_text(run))
    [shown] = [text for text in page.texts["pre"] if text.startswith("name = ")]
    assert parse_scenario(shown, "shown.toml", run)[0] == chosen
    made = plan.kernels.candidate.provenance
    assert made.packages or made.compiler
    for package in made.packages:
        assert package.sha256 in page.text
        assert package.version in page.text
    if made.compiler:  # built from source
        assert made.config is not None
        assert made.source is not None
        for text in (
            made.compiler, made.config.sha256, made.image_sha256 or "no image",
            *made.source.texts().values(), *(patch.subject for patch in made.series),
        ):  # fmt: skip
            assert text in page.text


def test_what_the_arms_differ_in_stands_below_the_sentence() -> None:
    differs = (Differing("setting", "m.p", "<b>N", "Y"),)
    variable = Variable(differs, ("same kernel 7.3.4",), 57, (), ())
    shown = Page(html_report(scenario(), replace(compared(IMPROVED), variable=variable), PLAN))
    assert has_in_order(shown.text, "m.p: <b>N | Y", "same kernel 7.3.4", "57")
    assert "variable" in shown.with_attribute("class")
    without = Page(html_report(scenario(), compared(IMPROVED), PLAN))
    assert "variable" not in without.with_attribute("class")


def test_conditions_are_shown_by_what_they_mean() -> None:
    def differs(name: str, planned: bool, allowed: bool) -> Difference:
        return Difference(name, {"baseline": ("a", "b"), "candidate": ()}, planned, allowed)

    known = Conditions(
        {"host.cpu": "EPYC <x>"},
        (
            differs("host.kernel.release", True, False), differs("runner.qemu", False, False),
            differs("runner.cpu", False, True),
        ),
        ("host.turbo",),
        (ConfigChange("CONFIG_IOMMUFD", "n", "m"),),
    )  # fmt: skip
    shown = replace(compared(IMPROVED), conditions=known)
    page = Page(html_report(scenario(), shown, PLAN))
    names = ("runner.qemu", "host.kernel.release", "runner.cpu", "host.turbo")
    assert all(name in page.text for name in (*names, "CONFIG_IOMMUFD", "EPYC <x>"))
    assert [shown for shown in page.texts["summary"] if numbers_in(shown) == ["1"]]
    assert tables_of_differences(page) == 3
    assert "warning" in page.with_attribute("class")
    fewer = replace(known, differences=known.differences[:1], config=None)
    alike = Page(html_report(scenario(), replace(shown, conditions=fewer), PLAN))
    assert tables_of_differences(alike) == 1
    assert "warning" not in alike.with_attribute("class")
    assert "CONFIG_IOMMUFD" not in alike.text


def tables_of_differences(page: Page) -> int:
    return sum(label.startswith("Conditions: ") for label in page.with_attribute("aria-label"))


def test_huge_run_has_a_page_of_bounded_size_in_bounded_time() -> None:
    pairs = 10_000
    names = ("bar_map_cost", "bar_unmap_cost", "guest_boot_cost", "guest_ssh_cost",
             "host_boot_seconds", "bar_map_cost_per_boot", "bar_unmap_cost_per_boot",
             "iommu_map_cost")  # fmt: skip
    roles: tuple[Role, ...] = (*ARMS, CONTROL)
    values = [1 + (7919 * number % 1009) / 1e4 for number in range(pairs)]
    results = [
        TrialResult(
            f"{pair:05d}-{role}", role, "measured", pair=pair,
            samples=dict.fromkeys(names, (value,)),
        )
        for pair, value in enumerate(values, 1)
        for role in roles
    ]  # fmt: skip
    effect = Effect(Estimate("trials", pairs, 1.0, (0.999, 1.001), 0.5), "equivalent", 0.5)
    same = tuple(values)
    metrics = tuple(
        MetricComparison(name, "s", same, same, effect, effect, same) for name in names
    )
    comparison = Comparison(
        "huge", "equivalent", tuple(results), metrics, KERNELS, len(results), names[:1]
    )
    tracemalloc.start()
    begun = time.process_time()
    text = html_report(scenario(), comparison, PLAN)
    seconds = time.process_time() - begun  # tracing makes it several times slower
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert most < 200_000_000
    print(f"{len(text) / 1e6:.2f} MB in {seconds:.2f} s")
    assert len(text.encode()) < LARGEST
    thinned = [text for text in Page(text).texts["p"] if has_in_order(text, "10000", "baseline")]
    assert len(thinned) == len(names)
