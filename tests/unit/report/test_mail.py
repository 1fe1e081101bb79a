from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.report.text.mail_text import MAIL_LINES, format_mail, is_tester
from orchestrator.report.words.columns import WIDTH
from orchestrator.scenario.metrics import WORDS
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, METRICS, ArmName, Metric
from tests.unit.examples import share
from tests.unit.manifests import plan_of
from tests.unit.report.test_sentence import measured
from tests.unit.scenarios import map_scenario, scenario

TESTER = "A Tester <tester@example.org>"
KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13-cloud-amd64", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13-cloud-amd64", "source": "deb:new"},
}
GUEST = {"release": "6.12", "source": "deb:guest", "digest": "d"}
PLAN = plan_of(accel="tcg", guest_kernel=GUEST)
BETTER: dict[Metric, tuple[float, ...]] = {
    "bar_map_cost": (8.635, 0.0004285), "pfn_lookups_per_map": (8388608, 32),
    "guest_boot_cost": (141.7, 39.31),
}  # fmt: skip


def mail(
    *results: TrialResult, tester: str | None = TESTER, expect: str = "",
    kernels: dict[ArmName, dict[str, str]] = KERNELS,
) -> list[str]:  # fmt: skip
    chosen = scenario(*[f"expect.{expect}"] * bool(expect))
    found = compare_trials(chosen, kernels, results, len(results), PLAN.accel)
    return format_mail(chosen, found, PLAN, tester).splitlines()


def trailers(text: str) -> list[str]:
    """Return the trailers of a mail as git reads them."""
    done = subprocess.run(
        ["git", "interpret-trailers", "--parse", "--no-divider"],
        input=text, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_better_run_is_told_in_a_few_lines() -> None:
    results = measured(BETTER, conditions={"runner.qemu": "10.0.2", "host.qemu": "10.0.13"})
    assert mail(*results) == [
        "7.3.4+deb13-cloud-amd64 against 6.12.107+deb13-cloud-amd64: improved",
        "  (emulated)",
        "",
        "one DMA map: 8.635 s -> 428.5 us, 1/20152",
        "guest boot to userspace: 141.7 s -> 39.31 s, -72.3%",
        "page lookups in a map: 8388608 -> 32, 1/262144",
        "not looked at: guest boot to SSH (pass plain); maps and unmaps of guest",
        "  boots (pass timing); page faults in a map, IOMMU walks in an unmap (pass",
        "  counts)",
        "",
        "ivshmem, BAR 32GiB, intel vIOMMU; guest: 6.12, 512MiB",
        "barometer 0.1.0, accel tcg, QEMU 10.0.2 (runner), 10.0.13 (host)",
        "",
        "Result: improved; 1 + 1 trials, emulated",
        "Tested-by: A Tester <tester@example.org>",
    ]


def test_git_reads_the_tag_and_nothing_else_of_a_person() -> None:
    text = "\n".join(mail(*measured(BETTER))) + "\n"
    assert trailers(text) == ["Result: improved; 1 + 1 trials, emulated", f"Tested-by: {TESTER}"]


def test_without_a_user_of_git_no_name_is_invented() -> None:
    assert "<" not in mail(*measured(BETTER), tester=None)[-1]


def test_tag_is_one_line_however_long_the_name_is() -> None:
    tester = "N\u00e2me " * 20 + "<name@example.org>"
    assert mail(*measured(BETTER), tester=tester)[-1] == f"Tested-by: {tester}"


@pytest.mark.parametrize(
    "tester",
    ["", "Name", "<a@b>", "Name <a>", "Name <a@b> ", " Name <a@b>", "Name<a@b>", "Name <a@b> # x",
     "Name <a@b>\nAcked-by: Other <c@d>", "Na\u2028me <a@b>", "Name <a@b@c>", "N <x> <a@b>",
     "Name <a b@c>", "\u202eName <a@b>"],
)  # fmt: skip
def test_tag_with_anything_but_a_name_and_a_mail_is_refused(tester: str) -> None:
    assert not is_tester(tester)
    lines = mail(*measured(BETTER), tester=tester)
    assert not [line for line in lines if "-by: " in line.replace("(no Tested-by: ", "")]


@share(0.1)
@given(st.text(max_size=30), st.emails())
@example("Zo\u00eb (Kernel), Jr.", "z@example.org")
def test_accepted_tester_is_one_trailer(name: str, address: str) -> None:
    tester = f"{name} <{address}>"
    if is_tester(tester):
        assert trailers(f"text\n\nResult: x\nTested-by: {tester}\n")[1:] == [
            f"Tested-by: {tester}"
        ]


def test_regression_is_reported_and_not_tested() -> None:
    lines = mail(*measured({"bar_map_cost": (1, 80)}))
    assert lines[-1] == f"Reported-by: {TESTER}"
    failed = TrialResult("x", "candidate", "failed", "host-panic", charge="arm")
    for values in (BETTER, {"bar_map_cost": (1.0, 80.0)}):
        lines = mail(*measured(values), failed)
        assert lines[-1] == f"Reported-by: {TESTER}"
        assert "host-panic" in " ".join(lines)


@pytest.mark.parametrize(
    ("results", "expect", "why"),
    [
        (measured({"guest_boot_cost": (20, 19)}), "", "the run is inconclusive"),
        (measured({"bar_maps_per_boot": (12, 12)}), "bar_maps_per_boot=improved",
         "the run is equivalent, which is not what the scenario expects"),
        (measured(BETTER)[:1], "", "the run is invalid: the candidate has no trial"),
        (measured({"guest_boot_cost": (20, 8)}), "", "the run is inconclusive"),
    ],
)  # fmt: skip
def test_what_is_no_result_has_no_tag(results: list[TrialResult], expect: str, why: str) -> None:
    lines = mail(*results, expect=expect)
    assert " ".join(" ".join(lines).split()).endswith(f"emulated (no Tested-by: {why})")
    assert not [line for line in lines if line.startswith(("Tested-by", "Reported-by"))]


def test_second_pair_makes_a_factor_of_two_one_to_vouch_for() -> None:
    trials = [t for pair in (1, 2) for t in measured({"guest_boot_cost": (20, 8)}, pair)]
    assert mail(*trials)[-2:] == [
        "Result: improved; 2 + 2 trials, emulated", f"Tested-by: {TESTER}",
    ]  # fmt: skip


def test_equivalent_run_that_is_expected_to_be_is_tested() -> None:
    both = measured({"bar_maps_per_boot": (12, 12)})
    for expect in ("", "bar_maps_per_boot=equivalent"):
        assert mail(*both, expect=expect)[-1] == f"Tested-by: {TESTER}"


def test_kernel_against_itself_tests_nothing() -> None:
    same = dict.fromkeys(ARMS, KERNELS["baseline"])
    lines = mail(*measured({"bar_maps_per_boot": (12, 12)}), kernels=same)
    assert lines[-1] == "(no Tested-by: both arms ran the same kernel)"


def test_runs_that_are_compared_have_no_tag() -> None:
    chosen, results = scenario(), measured(BETTER)
    found = compare_trials(chosen, KERNELS, results, len(results), "tcg", paired=False)
    assert format_mail(chosen, found, PLAN, None).splitlines()[-1] == (
        "(no Tested-by: the trials are of two runs)"
    )


def test_regression_beside_an_improvement_is_in_the_headline_the_lines_and_above_the_tag() -> None:
    worse = BETTER | {"bar_unmap_cost": (1.0, 20.0), "bar_unmap_cost_per_boot": (9.0, 190.0)}
    lines = mail(*measured(worse))
    whole = " ".join(" ".join(lines).split())
    assert "improved, with regressions (emulated)" in whole
    assert (
        "regressed: all unmaps until exit 9 s -> 190 s, 21.1x; one DMA unmap 1 s -> 20 s, 20x"
        in whole
    )
    assert lines[-2] == "Result: improved, with regressions; 1 + 1 trials, emulated"


@share(0.3)
@given(
    st.dictionaries(st.sampled_from(sorted(METRICS)), st.floats(1e-6, 1e6), min_size=1),
    st.sets(st.sampled_from(sorted(METRICS))), st.booleans(), st.integers(1, 12),
)  # fmt: skip
@example(dict.fromkeys(METRICS, 3.0), set(), True, 1)
@example(dict.fromkeys(METRICS, 3.0), {*METRICS}, True, 12)
@example(dict.fromkeys(METRICS, 10020.0), set(), True, 6)
@example(dict.fromkeys(METRICS, 100171.0), set(), False, 5)
def test_mail_has_fifteen_lines_at_most_and_names_all_that_regressed(
    factors: dict[Metric, float], deciding: set[Metric], fails: bool, pairs: int
) -> None:
    results = [
        trial for pair in range(1, pairs + 1)
        for trial in measured({name: (1.0 + pair / 500, factor * (1.0 + pair / 700))
                               for name, factor in factors.items()}, pair)
    ]  # fmt: skip
    expect = [f"expect.{name}=improved" for name in sorted(deciding)]
    chosen = scenario(*expect)
    if fails:
        results.append(TrialResult("x", "candidate", "failed", "guest-panic"))
    found = compare_trials(chosen, KERNELS, results, len(results), "tcg")
    _check(chosen, found)


def test_mail_of_ninety_metrics_that_regressed_has_fifteen_lines() -> None:
    points = ("map.sizes=['1GiB','2GiB','full']", "map.alignment=['1GiB','2MiB','4KiB']",
              "map.state=['cold','warm']", "trace.passes=['plain','counts']")  # fmt: skip
    names = map_scenario(*points).metrics()
    assert len(names) == 90
    for expect in ([], [f'expect."{name}"=improved' for name in names]):
        chosen = map_scenario(*points, *expect)
        results = measured(dict.fromkeys(names, (1.0, 3.0)))
        _check(chosen, compare_trials(chosen, KERNELS, results, 2, "exact"))


def _check(chosen: Scenario, found: Comparison) -> None:
    variable = Variable((Differing("setting", "m.p" * 40, "N" * 99, "Y" * 99),), (), 57, (), ())
    text = format_mail(chosen, replace(found, variable=variable), PLAN, TESTER)
    lines = text.splitlines()
    tags = [n for n, line in enumerate(lines) if line.startswith(("Tested", "Report", "(no Test"))]
    assert tags[0] <= MAIL_LINES
    assert max(map(len, lines)) <= WIDTH
    flat = " ".join(text.split())
    for group in found.outcome.regressed:
        assert WORDS[group.base].title in flat
        assert group.worst.name.partition("@")[0] in WORDS


def test_settings_that_differ_are_told() -> None:
    chosen = scenario()
    knob = Differing("setting", "m.p", "N", "Y")
    kernel = Differing("kernel", "kernel", "6.12", "7.3")
    compared = compare_trials(chosen, KERNELS, measured(BETTER), 2, PLAN.accel)
    for differs, said in (((knob,), ["m.p: N | Y"]), ((kernel, knob), ["m.p: N | Y"]),
                          ((kernel,), [])):  # fmt: skip
        found = replace(compared, variable=Variable(differs, (), 57, (), ()))
        lines = format_mail(chosen, found, PLAN, TESTER).splitlines()
        starts = "arms differ in: "
        assert [x.removeprefix(starts) for x in lines if x.startswith(starts)] == said


def test_kernels_of_one_release_are_told_apart() -> None:
    kernels: dict[ArmName, dict[str, str]] = {
        arm: {"release": "7.3", "source": arm} for arm in ARMS
    }
    chosen = scenario()
    found = Variable((Differing("kernel", "kernel 7.3", "deb:a", "dir:b"),), (), 57, (), ())
    compared = compare_trials(chosen, kernels, measured(BETTER), 2, PLAN.accel)
    lines = format_mail(chosen, replace(compared, variable=found), PLAN, TESTER).splitlines()
    assert "arms differ in: kernel 7.3: deb:a | dir:b" in lines
