from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import compare_trials
from orchestrator.report.words.trailer import format_trailer
from orchestrator.report.words.wording import describe_setup
from orchestrator.scenario.vocabulary import ARMS, ArmName, Metric
from tests.unit.manifests import plan_of
from tests.unit.report.test_sentence import measured
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.stable import has_in_order

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


def block(
    *results: TrialResult, tester: str | None = TESTER, expect: str = "",
    kernels: dict[ArmName, dict[str, str]] = KERNELS,
) -> list[str]:  # fmt: skip
    chosen = scenario(*[f"expect.{expect}"] * bool(expect))
    comparison = compare_trials(chosen, kernels, results, len(results), PLAN.accel)
    return format_trailer(describe_setup(chosen, PLAN), comparison, PLAN, tester).splitlines()


def test_better_run_can_be_pasted_as_it_is() -> None:
    results = measured(BETTER, conditions={"runner.qemu": "10.0.2", "host.qemu": "10.0.13"})
    assert block(*results) == [
        "---8<--- to paste under a patch ---8<---",
        "one DMA map: 8.635 s -> 428.5 us (emulated), 1/20152",
        "guest boot to userspace: 141.7 s -> 39.31 s (emulated), -72.3%",
        "page lookups in a map: 8388608 -> 32, 1/262144",
        "host: 6.12.107+deb13-cloud-amd64 -> 7.3.4+deb13-cloud-amd64, accel tcg,",
        "  emulated",
        "device: ivshmem, BAR 32GiB, intel vIOMMU; guest: 6.12, 512MiB",
        "barometer 0.1.0, 1 + 1 trials; QEMU 10.0.2 (runner), 10.0.13 (host)",
        "",
        "Tested-by: A Tester <tester@example.org>",
        "--->8---",
    ]


def test_without_a_user_of_git_no_name_is_invented() -> None:
    assert block(*measured(BETTER), tester=None)[-2] == (
        "Tested-by: (set git's user.name and user.email, then `barometer report`)"
    )


def test_name_that_is_long_is_a_folded_tag() -> None:
    tester = "Name " * 20 + "<name@example.org>"
    tag = block(*measured(BETTER), tester=tester)[9:-1]
    assert tag[0].startswith("Tested-by: Name ")
    assert all(line.startswith("  ") for line in tag[1:])


def test_regression_is_reported_and_not_tested() -> None:
    lines = block(*measured({"bar_map_cost": (1, 8)}))
    assert lines[-2] == f"Reported-by: {TESTER}"
    failed = TrialResult("x", "candidate", "failed", "guest-panic")
    assert block(*measured(BETTER), failed)[-2] == f"Reported-by: {TESTER}"


@pytest.mark.parametrize(
    ("results", "expect", "why"),
    [
        (measured({"guest_boot_cost": (20, 19)}), "", "inconclusive"),
        (measured({"bar_maps_per_boot": (12, 12)}), "bar_maps_per_boot=improved",
         "equivalent"),
        (measured(BETTER)[:1], "", "invalid"),
    ],
)  # fmt: skip
def test_what_is_no_result_has_no_tag(results: list[TrialResult], expect: str, why: str) -> None:
    lines = block(*results, expect=expect)
    assert has_in_order("\n".join(lines), "(no Tested-by:", why)
    assert not [line for line in lines if line.startswith(("Tested-by", "Reported-by"))]


def test_equivalent_run_that_is_expected_to_be_is_tested() -> None:
    both = measured({"bar_maps_per_boot": (12, 12)})
    for expect in ("", "bar_maps_per_boot=equivalent"):
        assert block(*both, expect=expect)[-2] == f"Tested-by: {TESTER}"


def test_kernel_against_itself_tests_nothing() -> None:
    same = dict.fromkeys(ARMS, KERNELS["baseline"])
    lines = block(*measured({"bar_maps_per_boot": (12, 12)}), kernels=same)
    assert lines[-2] == "(no Tested-by: both arms ran the same kernel)"


def test_runs_that_are_compared_have_no_tag() -> None:
    chosen, results = scenario(), measured(BETTER)
    comparison = compare_trials(chosen, KERNELS, results, len(results), "tcg", paired=False)
    assert format_trailer(describe_setup(chosen, PLAN), comparison, PLAN, None).splitlines()[
        -2
    ] == ("(no Tested-by: the trials are of two runs)")


def test_what_got_worse_is_never_left_out() -> None:
    worse = BETTER | {"bar_unmap_cost": (1.0, 2.0), "bar_unmap_cost_per_boot": (9.0, 19.0)}
    lines = block(*measured(worse))
    assert [line.partition(":")[0] for line in lines[1:4]] == [
        "one DMA map", "guest boot to userspace", "one DMA unmap",
    ]  # fmt: skip
    other = BETTER | {"bar_unmap_cost_per_boot": (9.0, 19.0)}
    assert has_in_order(block(*measured(other))[3], "all unmaps until exit", "9 s -> 19 s")


def test_of_the_points_that_got_worse_the_plain_one_or_the_worst_is_told() -> None:
    chosen = map_scenario()
    for plain, worst in ((2.0, "one DMA unmap:"), (0.9, "one DMA unmap (full/1GiB/cold):")):
        values: dict[Metric, tuple[float, ...]] = {
            "bar_map_cost": (8.0, 1.0), "bar_unmap_cost": (1.0, plain),
            "bar_unmap_cost@full/1GiB/cold": (1.0, 3.0),
            "bar_unmap_cost@1GiB/1GiB/cold": (1.0, 2.5),
        }  # fmt: skip
        comparison = compare_trials(chosen, KERNELS, measured(values), 2, "exact")
        plan = plan_of(accel="exact", guest_kernel=GUEST)
        text = format_trailer(describe_setup(chosen, plan), comparison, plan, TESTER)
        assert f"\n{worst} 1 Ginsn -> " in text
        assert has_in_order(text, "workload:", "map")


def test_spread_and_interval_are_explained() -> None:
    values = [(20 + n % 3, (20 + n % 3) * (0.95 + 0.0001 * (n % 5))) for n in range(12)]
    trials = [t for n, v in enumerate(values, 1) for t in measured({"guest_boot_cost": v}, n)]
    text = "\n".join(block(*trials))
    assert has_in_order(text, "(+-:", "interquartile", "change:", "by pairs", "95 %")
    assert "12 + 12 trials" in text
    [of_few] = [line for line in block(*trials[:4]) if "(+-:" in line]
    assert "interquartile" not in of_few


def test_settings_that_differ_are_pasted_too() -> None:
    chosen = scenario()
    knob = Differing("setting", "m.p", "N", "Y")
    kernel = Differing("kernel", "kernel", "6.12", "7.3")
    compared = compare_trials(chosen, KERNELS, measured(BETTER), 2, PLAN.accel)
    for differs, shown in (((knob,), ["m.p: N | Y"]), ((kernel, knob), ["m.p: N | Y"]),
                          ((kernel,), [])):  # fmt: skip
        explained = replace(compared, variable=Variable(differs, (), 57, (), ()))
        lines = format_trailer(describe_setup(chosen, PLAN), explained, PLAN, TESTER).splitlines()
        starts = "arms differ in: "
        assert [x.removeprefix(starts) for x in lines if x.startswith(starts)] == shown


def test_kernels_of_one_release_are_told_apart() -> None:
    kernels: dict[ArmName, dict[str, str]] = {
        arm: {"release": "7.3", "source": arm} for arm in ARMS
    }
    chosen = scenario()
    explained = Variable((Differing("kernel", "kernel 7.3", "deb:a", "dir:b"),), (), 57, (), ())
    compared = compare_trials(chosen, kernels, measured(BETTER), 2, PLAN.accel)
    compared = replace(compared, variable=explained)
    lines = format_trailer(describe_setup(chosen, PLAN), compared, PLAN, TESTER).splitlines()
    assert [line for line in lines if line.endswith(": kernel 7.3: deb:a | dir:b")]
