"""Short questions as scenario files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.scenario.builder import (
    ArmSettings,
    Setting,
    build_ab_file,
    build_arms,
    build_bisect_file,
    build_commit_file,
    build_template,
    parse_metric,
    parse_settings,
)
from orchestrator.scenario.kernel_forms import (
    DebKernel,
    DirKernel,
    Kernel,
    ModuleKernel,
    SourceKernel,
    TreeKernel,
)
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from tests.unit.scenarios import MAPS, MINIMAL

DEB = DebKernel(deb="linux-image-cloud-amd64", suite="trixie")
NEW = DebKernel(deb="linux-image-cloud-amd64", suite="trixie-backports")
TREE = TreeKernel(tree=Path("/linux"), ref="v7.3")
SOURCE = SourceKernel(source="linux-source", suite="trixie")
DIR = DirKernel(dir=Path("/kernels/7.3"))
EXACT = Setting("exact")
HERE = Path("/home/dev")


def asked(
    base: Kernel = DEB, candidate: Kernel = NEW, settings: ArmSettings | None = None,
    setting: Setting = EXACT, pairs: int | None = None,
) -> Scenario:  # fmt: skip
    text = build_ab_file(setting, base, candidate, settings or ArmSettings(), pairs)
    return parse_scenario(text, "ab", Path("/elsewhere"))[0]


@pytest.mark.parametrize(
    ("base", "candidate"),
    [
        (DEB, NEW),
        (DEB, DEB.model_copy(update={"version": "6.12.1-1"})),
        (DEB, ModuleKernel(deb=DEB.deb, suite="trixie", module=Path("/fix"), ref="abc")),
        (DEB, ModuleKernel(deb=DEB.deb, suite="trixie", series=("/a.mbox", "1-2@lore.org"))),
        (TREE, TREE.model_copy(update={"series": ("/a b/ü.mbox",)})),
        (SOURCE, SOURCE.model_copy(update={"config": ("CONFIG_A=y", "/x.config")})),
        (DIR, TREE),
    ],
)
def test_text_is_the_scenario_of_these_kernels(base: Kernel, candidate: Kernel) -> None:
    arms = asked(base, candidate).arms
    assert (arms.baseline.kernel, arms.candidate.kernel) == (base, candidate)
    assert not arms.baseline.is_set
    assert not arms.candidate.is_set


def test_default_is_a_small_exact_map_of_which_no_half_may_regress() -> None:
    scenario = asked()
    assert [point.name for point in scenario.points()] == ["full/1GiB/cold", "full/1GiB/warm"]
    assert (scenario.map.repeats, scenario.trace.passes) == (2, ("plain", "counts"))
    assert scenario.expect == {
        "bar_map_cost": "not-regressed", "bar_unmap_cost": "not-regressed"
    }  # fmt: skip
    assert [trial.arm for trial in make_plan(scenario)] == ["baseline", "candidate"]


def test_two_verdicts_of_times_take_twelve_pairs() -> None:
    scenario = asked(setting=Setting("kvm"))
    assert (scenario.trials.pairs, scenario.map.repeats) == (12, 3)
    assert asked(setting=Setting("kvm"), pairs=4).trials.pairs == 4


def test_why_it_is_that_accelerator_is_a_comment() -> None:
    text = build_ab_file(
        Setting("exact", "no KVM: there is no /dev/kvm"), DEB, NEW, ArmSettings(), None
    )
    assert 'accel = "exact" # no KVM: there is no /dev/kvm\n' in text
    assert text.startswith("# Made by `barometer ab`.")


def test_guest_boots_have_a_guest() -> None:
    scenario = asked(setting=Setting("tcg", workload="guest-boot", bar="4GiB", guest=DIR))
    assert scenario.workload == "guest-boot"
    assert scenario.guest is not None
    assert scenario.guest.kernel == DIR
    assert scenario.trace.passes == ("plain", "timing", "counts")


def test_knobs_are_the_candidate_s() -> None:
    settings = parse_settings(
        "iommu.strict=1",
        ["vfio_iommu_type1.disable_hugepages=true", "vfio.x=a=b"],
        ["/sys/kernel/mm/transparent_hugepage/enabled=never"],
    )
    arms = asked(DEB, DEB, settings).arms
    assert not arms.baseline.is_set
    assert arms.candidate.cmdline == "iommu.strict=1"
    assert arms.candidate.parameters == {
        "vfio_iommu_type1.disable_hugepages": "Y", "vfio.x": "a=b",
    }  # fmt: skip
    assert arms.candidate.sysfs == {"/sys/kernel/mm/transparent_hugepage/enabled": "never"}


@pytest.mark.parametrize("text", ["", "a.b", "=1", "a.b="])
def test_knob_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(ScenarioError, match=r"--candidate-param .*: expected NAME=VALUE"):
        parse_settings("", [text], [])
    with pytest.raises(ScenarioError, match=r"--candidate-sysfs .*: expected NAME=VALUE"):
        parse_settings("", [], [text])


def test_knob_that_is_set_twice_is_refused() -> None:
    with pytest.raises(ScenarioError, match=r"a\.b is given twice"):
        parse_settings("", ["a.b=1", "a.b=2"], [])


def arms(
    base: Kernel, candidate: Kernel | None = None, *series: str, config: tuple[str, ...] = (),
    settings: ArmSettings | None = None,
) -> tuple[Kernel, Kernel]:  # fmt: skip
    return build_arms(base, candidate, series, config, settings or ArmSettings(), HERE)


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (DEB, ModuleKernel(deb=DEB.deb, suite="trixie", series=("/home/dev/a.mbox",))),
        (TREE, TREE.model_copy(update={"series": ("/home/dev/a.mbox",)})),
        (SOURCE, SOURCE.model_copy(update={"series": ("/home/dev/a.mbox",)})),
    ],
)
def test_series_is_on_top_of_the_base(base: Kernel, expected: Kernel) -> None:
    assert arms(base, None, "a.mbox") == (base, expected)


def test_series_is_on_top_of_the_candidate_where_there_is_one() -> None:
    assert arms(DEB, TREE, "a.mbox", "v7.3..fix", "1-2@lore.org") == (
        DEB,
        TREE.model_copy(update={"series": ("/home/dev/a.mbox", "v7.3..fix", "1-2@lore.org")}),
    )
    changed = ModuleKernel(deb=DEB.deb, suite="trixie", module=Path("/fix"))
    assert arms(DEB, changed, "a")[1] == changed.model_copy(update={"series": ("/home/dev/a",)})


def test_configuration_is_of_both_kernels_that_are_built() -> None:
    before, after = arms(TREE, None, "a.mbox", config=("CONFIG_A=y", "b.config"))
    assert getattr(before, "config", ()) == ("CONFIG_A=y", "/home/dev/b.config")
    assert getattr(after, "config", ()) == ("CONFIG_A=y", "/home/dev/b.config")
    assert arms(DEB, TREE, config=("CONFIG_A=y",))[0] == DEB
    with pytest.raises(ScenarioError, match=r"^--config "):
        arms(DEB, NEW, config=("CONFIG_A=y",))


def test_arms_that_do_not_differ_are_refused() -> None:
    with pytest.raises(ScenarioError, match=r"nothing differs") as caught:
        arms(DEB)
    assert "--candidate KERNEL, --series PATCHES" in caught.value.hint
    assert arms(DEB, settings=ArmSettings("x")) == (DEB, DEB)
    assert arms(DEB, DEB) == (DEB, DEB)  # an explicit placebo


def test_kernel_that_is_built_takes_no_series() -> None:
    with pytest.raises(ScenarioError, match=r"--series: dir:/kernels/7.3 is built already"):
        arms(DIR, None, "a.mbox")


@pytest.mark.parametrize(
    ("base", "candidate", "settings", "name"),
    [
        (DEB, NEW, {}, "ab-trixie-backports"),
        (DEB, ModuleKernel(deb="a1", suite="trixie", series=("/x/my fix.mbox",)), {},
         "ab-my-fix.mbox"),
        (DEB, ModuleKernel(deb="a1", suite="trixie", module=Path("/x/fix")), {}, "ab-fix"),
        (DEB, TREE, {}, "ab-v7.3"),
        (DEB, DIR, {}, "ab-7.3"),
        (TREE, TREE.model_copy(update={"ref": "origin/@"}), {}, "ab-kernels"),
        (TREE, TREE.model_copy(update={"config": ("CONFIG_A=y",)}), {}, "ab-v7.3"),
        (DEB, DEB, {"sysfs": {"/sys/kernel/mm/enabled": "1"}}, "ab-enabled"),
        (DEB, DEB, {"parameters": {"vfio.x": "1"}}, "ab-vfio.x"),
        (DEB, DEB, {"cmdline": "iommu.strict=1 x"}, "ab-iommu.strict-1-x"),
        (DEB, DEB, {}, "ab-kernels"),
    ],
)  # fmt: skip
def test_name_says_what_differs(
    base: Kernel, candidate: Kernel, settings: dict[str, Any], name: str
) -> None:
    assert asked(base, candidate, ArmSettings(**settings)).name == name


@pytest.mark.parametrize(
    ("workload", "metric", "passes"),
    [
        ("map", "bar_map_cost", ("plain",)),
        ("map", "bar_unmap_cost@full/1GiB/cold", ("plain",)),
        ("map", "pfn_lookups_per_map", ("counts",)),
        ("guest-boot", "guest_boot_cost", ("plain",)),
        ("guest-boot", "bar_maps_per_boot", ("timing",)),
        ("guest-boot", "pfn_lookups_per_map", ("counts",)),
    ],
)
def test_bisection_takes_the_pass_of_its_metric(
    workload: Any, metric: str, passes: tuple[str, ...]
) -> None:
    text = build_bisect_file(Setting("exact", workload=workload, guest=DIR), metric, TREE)
    scenario = parse_scenario(text, "bisect")[0]
    assert scenario.trace.passes == passes
    assert metric in scenario.metrics()


def test_what_is_not_measured_is_said_with_the_nearest_name() -> None:
    with pytest.raises(ScenarioError, match=r'did you mean "bar_map_cost"'):
        build_bisect_file(EXACT, "bar_map_second", TREE)
    with pytest.raises(ScenarioError, match=r"bar_maps_per_boot: is not measured by the workload"):
        build_bisect_file(EXACT, "bar_maps_per_boot", TREE)


def test_bisection_can_be_set_further() -> None:
    metric = "bar_map_cost@1GiB/2MiB/warm"
    overrides = ['map.sizes=["1GiB"]', 'map.alignment=["2MiB"]']
    text = build_bisect_file(EXACT, metric, TREE, overrides)
    assert metric in parse_scenario(text, "bisect")[0].metrics()


def test_former_name_of_a_metric_is_accepted_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_metric("bar_map_cost@full/1GiB/cold") == "bar_map_cost@full/1GiB/cold"
    assert not caplog.records
    assert parse_metric("bar_map_seconds@full/1GiB/cold") == "bar_map_cost@full/1GiB/cold"
    assert "is bar_map_cost@full/1GiB/cold now" in caplog.text


def test_scenario_of_a_commit_has_its_kernel_and_nothing_to_expect() -> None:
    text = build_commit_file(MAPS + '[expect]\nbar_map_cost = "improved"\n', "one", TREE, DEB, 3)
    scenario = parse_scenario(text, "one")[0]
    assert (scenario.name, scenario.nested.accel, scenario.expect) == ("one", "exact", {})
    assert (scenario.arms.baseline.kernel, scenario.arms.candidate.kernel) == (TREE, DEB)
    plan = make_plan(parse_scenario(build_commit_file(MINIMAL, "one", TREE, DEB, 12), "one")[0])
    assert [trial.arm for trial in plan].count("candidate") == 12
    assert len(plan) == 24  # neither warm-up nor control


def test_scenario_file_is_a_template_that_stands_alone() -> None:
    scenario, text = parse_scenario(MINIMAL, "x.toml", HERE)
    template = build_template(scenario, text, "tcg", "guest_boot_cost")
    again = parse_scenario(template, "x.toml", Path("/elsewhere"))[0]
    assert again.nested.accel == "tcg"
    assert again.guest is not None
    assert again.guest.kernel == DirKernel(dir=HERE / "guest")


def test_scenario_file_measures_the_metric_and_has_no_settings_of_an_arm() -> None:
    scenario, text = parse_scenario(MAPS, "x.toml")
    with pytest.raises(ScenarioError, match=r"is not measured by maps and its passes"):
        build_template(scenario, text, "exact", "guest_boot_cost")
    scenario, text = parse_scenario(MAPS, "x.toml", overrides=["arms.candidate.cmdline=quiet"])
    with pytest.raises(ScenarioError, match=r"arms\.candidate: has settings besides its kernel"):
        build_template(scenario, text, "exact", "bar_map_cost")


@pytest.mark.parametrize("override", ["trials.pairs=3", "arms.candidate.cmdline=x", "expect={}"])
def test_what_a_bisection_makes_itself_is_not_to_be_set(override: str) -> None:
    with pytest.raises(ScenarioError, match=f"^--set {re.escape(override)}: "):
        build_bisect_file(EXACT, "bar_map_cost", TREE, [override])
