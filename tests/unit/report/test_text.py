from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import Note, Timeline
from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.analysis.trial import Findings, TrialResult, read_result
from orchestrator.analysis.verdict.comparison import add_control, boots_of, compare_trials
from orchestrator.evidence.faults import Attempt
from orchestrator.evidence.layout import RunDir, TrialDir
from orchestrator.evidence.plan import Plan
from orchestrator.report.text.run_text import text_report
from orchestrator.report.text.timeline_text import calls_and_cost
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import (
    ARMS,
    AT_POINTS,
    CONTROL,
    METRICS,
    ArmName,
    Metric,
    Role,
)
from tests.unit.manifests import plan_of
from tests.unit.recorded import RUN, copied, sealed, unpatched
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.stable import has_in_order, numbers_in
from tests.unit.timelines import booted

CLOCK_STEP = "1 us"
"""Resolution of the clock that the timing pass has on a host that is not exact."""
THEORY = "Lookups in theory"
"""Title of a section of the report."""
KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13", "source": "deb:new"},
}


@pytest.fixture
def plan() -> Plan:
    return RunDir(RUN).plan()


def changed(plan: Plan, **changes: Any) -> Plan:
    return plan_of(**plan.to_json() | changes)


def report(plan: Plan, *results: TrialResult, chosen: Scenario | None = None) -> str:
    chosen = chosen or scenario("device.bar=1GiB")
    return text_report(
        chosen, compare_trials(chosen, KERNELS, results, len(results), plan.accel), plan
    )


@pytest.fixture
def recorded(tmp_path: Path) -> list[TrialResult]:
    return [read_result(unpatched(tmp_path)), read_result(TrialDir.open(copied(tmp_path)))]


def in_unit(unit: Literal["s", "Ginsn"], results: list[TrialResult]) -> list[TrialResult]:
    """Change the unit of the boots, as if the hosts had another accel."""
    return [
        replace(result, findings=replace(result.findings, timelines=tuple(
            replace(boot, unit=unit) for boot in result.findings.timelines
        )))
        for result in results
    ]  # fmt: skip


def with_boots(arm: ArmName, *boots: Timeline) -> TrialResult:
    return TrialResult("t", arm, "measured", findings=Findings(timelines=boots))


def below(text: str, title: str) -> list[str]:
    """Return the cells of the line below the one that is `title`."""
    lines = text.splitlines()
    return re.split(r"\s{2,}", lines[lines.index(title) + 1].strip())


def row(text: str, title: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(title)]
    return re.split(r"\s{2,}", line.strip())


def test_report_begins_with_the_verdict_and_both_kernels(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    sentence, verdict, setup, *_ = report(plan, *recorded).split("\n\n")
    assert " ".join(sentence.split()) == (
        "7.3.4+deb13 is improved: one DMA map of a 1GiB BAR takes 316.5 us instead of 500 ms"
        " (emulated), 1/1580."
    )
    assert verdict == "small: improved\n  * bar_map_cost: improved"
    assert setup.splitlines()[:2] == [
        "baseline   6.12.107+deb13  (deb:old; 1 measured)",
        "candidate  7.3.4+deb13  (deb:new; 1 measured)",
    ]


def test_what_the_arms_differ_in_stands_below_the_verdict(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    chosen = scenario("device.bar=1GiB")
    subjects = "; ".join(["vfio: a patch with a long and \u00fcmlauted subject"] * 4)
    variable = Variable(
        (Differing("kernel", f"the series fix.mbox (4 patches: {subjects})", "without", "with"),),
        (), None, ("runner.qemu",), (),
    )  # fmt: skip
    compared = compare_trials(chosen, KERNELS, recorded, 2, plan.accel)
    text = text_report(chosen, replace(compared, variable=variable), plan)
    paragraph = text.split("\n\n")[1]
    assert has_in_order(paragraph, "fix.mbox", "4", "vfio: a patch", "umlauted", "without | with")
    assert "runner.qemu" in paragraph
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 76


def test_table_has_exact_counts_ratio_and_verdict(plan: Plan, recorded: list[TrialResult]) -> None:
    text = report(plan, *recorded)
    assert row(text, "page lookups in a map  ") == [
        "page lookups in a map", "262144", "1", "1/262144", "improved",
    ]  # fmt: skip
    assert row(text, "BAR maps until exit")[1:] == ["12", "12", "same", "equivalent"]
    assert row(text, "one DMA map  ")[1:] == ["500 ms", "316.5 us", "1/1580", "improved *"]


def test_theory_is_held_against_the_counts(plan: Plan, recorded: list[TrialResult]) -> None:
    text = report(plan, *recorded)
    assert theory(text)[0][:3] == ["1GiB", "262144", "4"]
    assert theory(text)[1:] == [["baseline", "262144", "4KiB"], ["candidate", "1", "1GiB"]]


def theory(text: str) -> list[list[str]]:
    """Return the arms, numbers and sizes in the lines of the report's theory of lookups."""
    paragraph = next(part for part in text.split("\n\n") if part.startswith(THEORY))
    lines = paragraph.replace("stride of\n ", "stride of").splitlines()
    return [re.findall(r"\b(?:\d+[KMG]iB|\d+|baseline|candidate)\b", line) for line in lines]


@pytest.mark.parametrize(
    ("lookups", "below"),
    [
        (512, [["candidate", "512", "2MiB"], ["candidate", "1GiB"]]),  # which stride is the best
        (513, [["candidate", "513"]]),  # no leaf has that stride
    ],
)
def test_candidate_short_of_the_theory_is_said(
    plan: Plan, lookups: float, below: list[list[str]]
) -> None:
    arms: tuple[ArmName, ArmName] = ("baseline", "candidate")
    results = [
        TrialResult("t", arm, "measured", samples={"pfn_lookups_per_map": (value,)})
        for arm, value in zip(arms, (262144, lookups), strict=True)
    ]
    assert theory(report(plan, *results))[2:] == below


def test_emulated_seconds_are_said_to_be_emulated(plan: Plan, recorded: list[TrialResult]) -> None:
    text = report(plan, *recorded)
    assert "\nEMULATED seconds  " in text  # the unit of the table
    assert has_in_order(text, "one DMA map", "500 ms", "316.5 us", "emulated", "1/1580")
    real = [replace(result, guest_accel="kvm") for result in in_unit("s", recorded)]
    by_kvm = report(changed(plan, accel="kvm", accel_reason="works"), *real)
    assert "emulated" not in by_kvm.lower()
    assert "\nmetric  " in by_kvm


def test_calls_and_cost_of_a_boot_are_said(plan: Plan, recorded: list[TrialResult]) -> None:
    text = report(plan, *recorded)
    compared = compare_trials(scenario("device.bar=1GiB"), KERNELS, recorded, 2, plan.accel)
    assert f"\n{calls_and_cost(boots_of(compared))}\n" in text
    maps = below(text, "all maps of 1GiB BARs")
    assert (maps[:3], maps[4]) == (["12", "500 ms", "6 s"], "12")
    # and the last unmap is at QEMU's exit
    unmaps = below(text, "all unmaps of 1GiB BARs")
    assert (unmaps[0], unmaps[4]) == ("11", "11")
    after = text[text.index("After the boot mark:") :]
    assert below(after, "unmap 1GiB BAR, shutdown, exit")[0] == "1"


def test_run_without_a_traced_boot_has_nothing_of_calls_and_cost(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    text = report(plan, *(replace(result, findings=Findings()) for result in recorded))
    assert row(text, "BAR maps until exit")
    assert "all maps of 1GiB BARs" not in text
    assert "Notes:" not in text


@pytest.mark.parametrize(
    "name", ["no-mmap", "guest-viommu", "iommufd-without-dma-buf", "clock-step", "clock-source"]
)
def test_note_on_a_boot_is_said_of_its_arm(plan: Plan, name: str) -> None:
    noted = with_boots("candidate", booted("candidate", notes=(Note(name, "so it was"),)))
    text = report(plan, with_boots("baseline", booted(notes=())), noted)
    assert has_in_order(text, "Notes:", "candidate", name, "so it was")
    assert text.index("Notes:") < text.index("all maps of 32GiB BARs")


def test_note_is_said_once_of_each_arm_however_many_boots_have_it(plan: Plan) -> None:
    step_note, mmap_note = Note("clock-step", "stepped"), Note("no-mmap", "never mapped")
    results = [
        with_boots("baseline", booted(notes=(step_note, mmap_note)), booted(notes=(step_note,))),
        with_boots("baseline", booted(notes=(step_note,))),
        with_boots("candidate", booted("candidate", notes=(step_note,))),
    ]
    notes = report(plan, *results).partition("Notes:\n")[2].partition("\n\n")[0]
    assert [line.replace(":", "").split() for line in notes.splitlines()] == [
        ["baseline", "clock-step", "stepped"],
        ["baseline", "no-mmap", "never", "mapped"],
        ["candidate", "clock-step", "stepped"],
    ]


def test_trial_that_changed_the_host_of_others_is_named(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    left = ("/proc/sys/vm/nr_hugepages: 0 -> 64", "mounts:  -> /mnt")
    changed = [replace(recorded[0], name=f"{number:04d}-x", host_left=left) for number in range(9)]
    text = report(plan, *changed, *recorded)
    notes = text.partition("Notes:\n")[2].partition("\n\n")[0]
    words = " ".join(notes.split())
    assert "0000-x left its host changed" in words
    assert "/proc/sys/vm/nr_hugepages: 0 -> 64 (and 1 more" in words
    assert "4 other trials" in words
    assert "0005-x" not in text
    assert recorded[0].name not in notes
    assert max(map(len, notes.splitlines())) <= 76


def test_boot_without_a_note_has_no_section_of_notes(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    assert "Notes:" not in report(plan, *recorded)


def test_note_of_a_trial_that_does_not_count_is_not_said(plan: Plan) -> None:
    noted = with_boots("baseline", booted(notes=(Note("no-mmap", "never mapped"),)))
    assert "no-mmap" not in report(plan, replace(noted, kind="invalid"))


def test_guest_boot_on_an_exact_host_is_in_instructions(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    exact = changed(plan, accel="exact", accel_reason="asked for")
    text = report(exact, *in_unit("Ginsn", recorded))
    for resolution in ("15% or 3 Ginsn", "15% or 5 kinsn", "2% or 5 kinsn"):
        assert resolution in " ".join(text.split())
    assert "\nINSTRUCTIONS  " in text
    assert below(text, "all maps of 1GiB BARs")[:2] == ["12", "500 Minsn"]
    assert has_in_order(text, "host", "INSTRUCTIONS", "10^9")
    assert "EMULATED" not in text
    assert CLOCK_STEP not in text
    assert "\nGinsn: 10^9 " in text


@pytest.mark.parametrize(
    ("passes", "explained"),
    [
        (("plain", "timing", "counts"), ("plain: ", "timing: ", "counts: ")),
        (("plain",), ("plain: ",)),
        (("counts",), ("counts: ",)),
        (("timing", "counts"), ("timing: ", "counts: ")),
    ],
)
def test_notes_are_of_the_passes_that_were_run(
    plan: Plan, recorded: list[TrialResult], passes: tuple[str, ...],
    explained: tuple[str, ...],
) -> None:  # fmt: skip
    names = ", ".join(f'"{name}"' for name in passes)
    chosen = scenario("device.bar=1GiB", f"trace.passes=[{names}]")
    notes = report(plan, *recorded, chosen=chosen).partition("\nEach value ")[2]
    assert tuple(re.findall(r"(?m)^(?:plain|timing|counts): ", notes)) == explained
    assert (CLOCK_STEP in " ".join(notes.split())) == ("timing" in passes)


@pytest.mark.parametrize("fresh", [True, False])
def test_trials_that_share_a_boot_are_said_to(
    plan: Plan, recorded: list[TrialResult], fresh: bool
) -> None:
    chosen = scenario(f"host.fresh_boots={str(fresh).lower()}")
    text = " ".join(report(plan, *recorded, chosen=chosen).split())
    assert ("host.fresh_boots" in text) == (not fresh)


def test_trials_that_were_begun_again_are_said_of_their_arm(plan: Plan) -> None:
    before = tuple(Attempt("candidate", r, "bench") for r in ("host-crash", "exact-crawl"))
    again = TrialResult("t", "candidate", "measured", repeated=before)
    text = report(plan, TrialResult("t", "baseline", "measured"), again)
    assert kernel_line(text, "baseline") == ["6.12.107+deb13", "deb:old", "1 measured"]
    release, source, trials, repeated = kernel_line(text, "candidate")
    assert (release, source, trials) == ("7.3.4+deb13", "deb:new", "1 measured")
    assert has_in_order(repeated, "host-crash", "exact-crawl")


def kernel_line(text: str, arm: ArmName) -> list[str]:
    """Return the parts of the line about an arm's kernel."""
    paragraph = next(part for part in text.split("\n\n") if part.startswith("baseline "))
    _, _, line = " ".join(paragraph.split()).partition(f"{arm} ")
    return [part.strip() for part in re.split(r"[(;]", line.partition(")")[0])]


def test_trial_of_the_evidence_says_that_it_was_begun_again(plan: Plan, tmp_path: Path) -> None:
    trial = sealed(copied(tmp_path), repeated=["host-crash"])
    assert "host-crash" in kernel_line(report(plan, read_result(trial)), "candidate")[-1]


def test_guests_that_are_emulated_on_a_real_host_are_said_to_be(plan: Plan) -> None:
    real = changed(plan, accel="kvm", accel_reason="works")
    for guest, is_emulated in (("tcg", True), ("kvm", False)):
        trial = TrialResult("t", "baseline", "measured", guest_accel=guest)
        assert ("EMULATED" in report(real, trial)) == is_emulated


def test_workload_of_a_map_is_named_with_its_backend(plan: Plan) -> None:
    chosen = map_scenario("map.backend=iommufd", 'trace.passes=["plain"]')
    text = report(changed(plan, guest_kernel=None), chosen=chosen)
    assert has_in_order(text, "workload", "map", "iommufd")
    assert "guest      " not in text
    # the scenario of a map may have a guest, which is not booted
    assert "guest      " not in report(plan, chosen=map_scenario("guest.kernel.dir=guest"))


def test_what_a_guest_has_that_is_not_usual_is_said(plan: Plan) -> None:
    usual = setup_of(report(plan))
    assert re.search(r"(?m)^device +ivshmem, BAR 1GiB\b", usual)
    assert re.search(r"\nguest +\S.*, 512MiB\n", usual)  # and nothing behind it
    assert not re.search(r"ovmf|disk|hugetlb|iommufd|phys", usual)
    chosen = scenario(
        "device.count=4", "device.mmap=false", "guest.firmware=ovmf", "guest.boot=disk",
        "guest.backing=hugetlb-2MiB", "guest.viommu=intel", "guest.backend=iommufd",
        "guest.phys_bits=40",
    )  # fmt: skip
    text = report(plan, chosen=chosen)
    unusual = setup_of(text)
    assert has_in_order(unusual, "device", "4 x ivshmem", "BAR 32GiB", "mmap", "guest", "512MiB")
    assert has_in_order(
        unusual, "512MiB", "ovmf", "disk", "hugetlb-2MiB", "intel vIOMMU", "iommufd", "40", "host"
    )


def setup_of(text: str) -> str:
    return next(part for part in text.split("\n\n") if "\ndevice " in part)


def test_level_of_the_guest_and_of_the_count_are_said(
    plan: Plan, recorded: list[TrialResult]
) -> None:
    text = report(plan, *recorded)
    assert has_in_order(text, "Mapping level", "guest-1", "baseline", "1GiB", "QEMU", "full/1GiB")
    assert has_in_order(
        text, "full/1GiB", "baseline", "1GiB", "1", "262144", "4KiB", "candidate", "1GiB", "1",
        "1", "1GiB",
    )  # fmt: skip


def of_pairs(
    *pairs: tuple[float, ...], metric: Metric = "guest_boot_cost", **more: Any
) -> list[TrialResult]:
    """Make trials with one metric: for each pair the baseline's, the candidate's, and a
    control's."""
    roles: tuple[Role, ...] = (*ARMS, CONTROL)
    return [
        TrialResult(
            f"{number}-{role}", role, "measured", samples={metric: (value,)}, pair=number, **more
        )
        for number, pair in enumerate(pairs, 1)
        for role, value in zip(roles, pair, strict=False)
    ]


def noisy(count: int, change: float, *, control: float | None = None) -> list[TrialResult]:
    """Make pairs whose values lie one percent apart, with `change` between the arms."""
    pairs = []
    for number in range(count):
        value = 20 * (1 + 0.01 * (number % 3))
        own = value * (1 + 0.001 * (number % 5))
        pairs.append((value, own * change, *([own * control] if control else [])))
    return of_pairs(*pairs)


def test_one_trial_has_no_spread_and_several_have(plan: Plan) -> None:
    single = report(plan, *of_pairs((4.0, 1.0)))
    assert row(single, "guest boot to userspace  ")[1:4] == ["4 s", "1 s", "-75.0%"]
    assert "+-" not in single
    several = report(plan, *of_pairs((4.0, 1.0), (5.0, 1.0)))
    assert "4.5 s +- 11% 1 s" in " ".join(several.split())
    [of_range] = re.findall(r"(?m)^\+-: .*", several)
    [of_quartiles] = re.findall(r"(?m)^\+-: .*", report(plan, *noisy(4, 0.5)))
    assert ("interquartile" in of_range, "interquartile" in of_quartiles) == (False, True)


def test_interval_is_told_and_what_it_is(plan: Plan) -> None:
    text = report(plan, *noisy(12, 0.95))
    assert re.search(
        r"\nguest boot to userspace\n +20\.2 s \+- \S+%  19\.\d+ s \+- \S+%"
        r"  -4\.8\S% \[-4\.9\S, -4\.7\S\]  improved \*\n",
        text,
    )
    assert has_in_order(text, "* guest_boot_cost", "improved", "0.00049")
    assert has_in_order(text, "change:", "Hodges-Lehmann", "95 %")
    assert "Wilcoxon" in text
    assert not re.findall(r"(?m)^fewer than 10 pairs:", text)


def test_few_pairs_are_said_once_to_be_few(plan: Plan) -> None:
    text = report(plan, *noisy(6, 0.95))
    assert re.findall(r"\nfewer than 10 pairs: .* factor of (\d)", text) == ["2"]
    assert "; p " not in text
    exact = report(changed(plan, accel="exact"), *noisy(2, 0.95))
    assert not re.findall(r"(?m)^fewer than 10 pairs:", exact)


def test_control_that_finds_nothing_is_said_to(plan: Plan) -> None:
    text = report(plan, *noisy(12, 0.95, control=1.0))
    assert has_in_order(text, "control:", "baseline", "12")
    few = report(plan, *noisy(3, 0.95, control=1.0))
    assert has_in_order(few, "control:", "baseline", "3", "2")
    assert "DIFFERS" not in text + few
    assert "control" not in report(plan, *noisy(3, 0.95))


def test_control_that_differs_makes_the_metric_invalid_and_is_explained(
    plan: Plan,
) -> None:
    words = " ".join(report(plan, *noisy(12, 0.95, control=1.2)).split())
    assert has_in_order(words, "small", "invalid", "guest_boot_cost", "invalid")
    assert re.search(
        r"control: .*\bbaseline\b.* 12 .*DIFFERS in guest_boot_cost \+20\.\d% \[.*\]\.",
        words,
    )


def test_arms_of_two_runs_are_no_pairs(plan: Plan) -> None:
    trials = noisy(12, 0.95)
    comparison = compare_trials(scenario(), KERNELS, trials, len(trials), "tcg", paired=False)
    beside = compare_trials(scenario(), KERNELS, noisy(12, 1.0), len(trials), "tcg", paired=False)
    text = text_report(scenario(), add_control(comparison, beside), plan)
    assert "Hodges-Lehmann" in text
    assert "Mann-Whitney U" in text
    assert has_in_order(text, "control:", "12")
    assert "pairs" not in text


def test_shape_of_an_arm_is_a_note(plan: Plan) -> None:
    pairs = [(10.0 + 0.01 * n, 20.0 + 9 * (n % 2) + 0.01 * n) for n in range(12)]
    text = report(plan, *of_pairs(*pairs))
    assert has_in_order(text, "Notes:", "candidate", "bimodal", "guest boot to userspace", "6")


def test_what_regressed_besides_is_in_the_head_and_in_what_is_pasted(plan: Plan) -> None:
    samples: list[tuple[ArmName, dict[Metric, tuple[float, ...]]]] = [
        ("baseline", {"bar_map_cost": (8.0,), "bar_unmap_cost": (1.0,)}),
        ("candidate", {"bar_map_cost": (1.0,), "bar_unmap_cost": (2.3,)}),
    ]
    text = report(plan, *(TrialResult("t", a, "measured", samples=s) for a, s in samples))
    assert has_in_order(text, "bar_map_cost", "improved", "regressed", "one DMA unmap", "2.3x")
    assert has_in_order(text, "one DMA unmap", "1 s", "2.3 s", "emulated", "2.3x")


def test_trials_that_do_not_count_are_listed_with_their_evidence(plan: Plan) -> None:
    bad = TrialResult(
        "0002-candidate", "candidate", "failed", "guest-panic", "guest-0-plain", "it panicked",
        "\n".join(f"line {i}" for i in range(30)),
    )  # fmt: skip
    text = report(plan, bad)
    assert has_in_order(
        text, "0002-candidate", "failed", "guest-0-plain", "guest-panic", "it panicked"
    )
    assert "  | line 29" in text
    assert "line 17\n" not in text
    assert kernel_line(text, "candidate")[1:] == ["deb:new", "1 failed"]
    assert kernel_line(text, "baseline")[1] == "deb:old"
    assert not numbers_in(kernel_line(text, "baseline")[2])


def test_report_without_a_measurement_has_no_notes_on_values(plan: Plan) -> None:
    text = report(plan)
    assert has_in_order(text, "small", "invalid")
    assert not re.findall(r"(?m)^(?:plain|timing|counts): ", text)
    assert THEORY not in text


def test_console_of_a_trial_is_cut_to_the_width_of_mail(plan: Plan) -> None:
    bad = TrialResult("t", "candidate", "failed", "guest-panic", "guest-0", "it panicked",
                      "\x1b[2J" + "[ 0.1] x" * 20 + "end\r\n\tat <code>\u202e")  # fmt: skip
    first, second = (x for x in report(plan, bad).splitlines() if x.startswith("  | "))
    assert len(first) == 76
    assert first.startswith("  | [ 0.1] x[")
    assert re.search(r"[^.]\.\.\.[^.].*xend$", first)
    assert second == "  |         at <code>?"


_TEXTS = st.text(max_size=200) | st.text("abc/-+.", min_size=60, max_size=200)
_COSTS = st.just(0.0) | st.floats(1e-9, 1e9)


@st.composite
def results(draw: st.DrawFn) -> list[TrialResult]:
    """Generate trials of every kind, with any texts."""
    names = draw(st.lists(st.sampled_from([*METRICS]), min_size=1, max_size=6, unique=True))
    return [
        TrialResult(
            draw(_TEXTS), role, draw(st.sampled_from(["measured", "failed", "invalid"])),
            draw(_TEXTS), draw(_TEXTS), draw(_TEXTS), draw(_TEXTS), pair=pair,
            samples={name: (draw(_COSTS),) for name in names},
            repeated=(Attempt("baseline", draw(_TEXTS)),), conditions={"host.qemu": draw(_TEXTS)},
        )
        for pair in range(1, draw(st.integers(1, 7)) + 1)
        for role in draw(st.sampled_from([ARMS, (*ARMS, CONTROL)]))
    ]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(results(), _TEXTS, _TEXTS, st.none() | _TEXTS, st.sampled_from(["kvm", "tcg", "exact"]))
def test_report_fits_mail_whatever_it_is_of(
    trials: list[TrialResult], release: str, source: str, tester: str | None, accel: str
) -> None:
    kernels: dict[ArmName, dict[str, str]] = {
        "baseline": {"release": release, "source": source},
        "candidate": {"release": source, "source": release},
    }
    guest = {"release": release, "source": "deb:guest", "digest": "d"}
    plan = plan_of(accel=accel, accel_reason=source, guest_kernel=guest)
    chosen = scenario("device.bar=1GiB", f"name={'x' * 99}")
    comparison = compare_trials(chosen, kernels, trials, len(trials), accel)
    lines = text_report(chosen, comparison, plan, tester).split("\n")
    assert not [line for line in lines if len(line) > 76 or line != line.rstrip()]
    assert all(line.isascii() for line in lines)


def test_points_with_long_names_fit_mail(plan: Plan) -> None:
    chosen = map_scenario('map.sizes=["1048572KiB", "full"]', 'map.alignment=["4KiB"]')
    names = [f"{m}@1048572KiB/4KiB/cold" for m in AT_POINTS]
    both = [
        TrialResult("t", arm, "measured", samples=dict.fromkeys(names, (value,)))
        for arm, value in zip(ARMS, (123456789.123, 0.00012345), strict=True)
    ]
    text = report(changed(plan, accel="exact"), *both, chosen=chosen)
    assert "  1048572KiB/4KiB/cold" in text
    assert max(map(len, text.splitlines())) <= 76


def test_report_is_plain_text_for_mail(plan: Plan, recorded: list[TrialResult]) -> None:
    text = report(plan, *recorded)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 76
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    assert "\n\n\n" not in text
