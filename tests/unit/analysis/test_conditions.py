from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.conditions import (
    Conditions,
    Difference,
    collect_conditions,
    compare_conditions,
    conditions_json,
    find_differences,
    is_recorded_in_all,
)
from orchestrator.analysis.trial import read_result
from orchestrator.evidence.layout import RunDir
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.manifests import DEVICE, NO_SETTINGS, guest_of, host_of, manifest_of
from tests.unit.recorded import copied, sealed

RECORDED = Path(__file__).parents[3] / "fixtures/recorded"
RUNS = sorted(p.parent for p in RECORDED.rglob("plan.json") if "verdicts" not in p.parts)


def of_arms(run: Path, **replaced: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    results = [read_result(trial) for trial in RunDir.open(run).trials()]
    return {arm: [r.conditions for r in results if r.arm == arm] for arm in ARMS} | replaced


def named(differences: tuple[Difference, ...]) -> dict[str, tuple[str, str]]:
    return {
        d.name: tuple("|".join(values) for values in d.values.values())  # type: ignore[misc]
        for d in differences
    }


# of one trial --------------------------------------------------------------------------------


def of_facts(**facts: Any) -> dict[str, str]:
    return collect_conditions(manifest_of(), host_of(**facts), None)


def test_recorded_trial_has_its_conditions() -> None:
    conditions = of_arms(RECORDED / "boot-exact")["candidate"][0]
    assert conditions["host.kernel.release"] == "7.3.4+deb13-cloud-amd64"
    assert conditions["host.qemu"] == "10.0.13"
    assert conditions["host.thp"] == "always"
    assert conditions["host.cmdline"] == "console=ttyS0 panic=-1 intel_iommu=on tsc=reliable"
    assert conditions["host.lockdown"] == "absent"
    assert conditions["host.packages.seabios"] == "1.16.3-2"
    assert conditions["host.parameters.vfio_iommu_type1.disable_hugepages"] == "N"
    assert conditions["guest.kernel.release"] == "6.12.107+deb13-cloud-amd64"
    assert conditions["guest.memory"] == "512MiB"
    assert conditions["device.bar"] == "32GiB"
    assert conditions["device.mmap"] == "True"
    assert conditions["runner.qemu"] == "10.0.2"
    assert list(conditions) == sorted(conditions)
    # conditions that were not recorded at that time
    later = {"runner.cpu", "runner.governor", "host.governor", "host.turbo", "host.smt",
             "host.firmware", "host.kernel.mitigations", "host.viommu"}  # fmt: skip
    assert not later & conditions.keys()
    assert not [name for name in conditions if "memtotal" in name.lower() or "boot_id" in name]


def test_maps_have_no_guest() -> None:
    conditions = of_arms(RECORDED / "map-exact")["baseline"][0]
    assert not [name for name in conditions if name.startswith("guest.")]


@pytest.mark.parametrize(
    ("value", "setting"),
    [("always [madvise] never", "madvise"), ("[none] integrity", "none"), ("tsc", "tsc"),
     (None, "absent")],
)  # fmt: skip
def test_setting_is_what_was_chosen(value: str | None, setting: str) -> None:
    conditions = of_facts(settings={"transparent_hugepage": value})
    assert conditions["host.thp"] == setting
    assert "host.clocksource" not in conditions


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"no_turbo": "0", "boost": None}, "on"),
        ({"no_turbo": "1", "boost": None}, "off"),
        ({"no_turbo": None, "boost": "1"}, "on"),
        ({"no_turbo": None, "boost": "0"}, "off"),
        ({"no_turbo": None, "boost": None}, "absent"),
        ({}, None),
    ],
)
def test_turbo_is_said_by_one_of_two_files(
    settings: dict[str, str | None], setting: str | None
) -> None:
    assert of_facts(settings=settings).get("host.turbo") == setting


@pytest.mark.parametrize(
    ("tainted", "by_kernel", "by_others"),
    [("0", "none", "none"), ("12288", "EO", "none"), ("512", "W", "none"),
     ("16", "none", "M"), ("4112", "O", "M"), (str(1 << 30 | 1), "?P", "none")],
)  # fmt: skip
def test_taint_of_the_machine_is_no_taint_of_the_kernel(
    tainted: str, by_kernel: str, by_others: str
) -> None:
    conditions = of_facts(settings={"tainted": tainted})
    assert (conditions["host.kernel.taint"], conditions["host.taint"]) == (by_kernel, by_others)


def test_mitigations_are_named() -> None:
    mitigations = {"meltdown": "Mitigation: PTI", "itlb_multihit": "KVM: Mitigation: VMX disabled",
            "mds": "Not affected", "retbleed": "Vulnerable", "tsa": None}  # fmt: skip
    conditions = of_facts(vulnerabilities=mitigations)
    assert conditions["host.kernel.mitigations"] == "meltdown itlb_multihit"
    assert of_facts(vulnerabilities={})["host.kernel.mitigations"] == "none"
    assert "host.kernel.mitigations" not in of_facts()


def test_boot_loader_and_token_are_no_part_of_a_command_line() -> None:
    line = "BOOT_IMAGE=/boot/vmlinuz-7.3 root=/dev/vda quiet  barometer.token=1f initrd=/x"
    host, guest = host_of(settings={"cmdline": line}), guest_of(cmdline=line)
    conditions = collect_conditions(manifest_of(), host, guest)
    assert conditions["host.cmdline"] == conditions["guest.cmdline"] == "root=/dev/vda quiet"


def test_devices_have_every_kind_of_group() -> None:
    devices = [DEVICE | {"group_type": kind} for kind in ("DMA-FQ", "DMA", "DMA-FQ")]
    assert of_facts(devices=devices)["host.iommu_group_type"] == "DMA DMA-FQ"
    assert of_facts()["host.iommu_group_type"] == "DMA-FQ"
    assert of_facts(iommus=[])["host.iommu"] == "absent"


def test_trial_that_failed_has_what_was_collected(tmp_path: Path) -> None:
    trial = copied(tmp_path)
    (trial / "host/facts.json").unlink()
    result = read_result(sealed(trial))
    assert result.kind == "invalid"
    assert result.conditions["host.qemu"]
    assert "host.thp" not in result.conditions


@pytest.mark.parametrize("facts", ["{", "[1]", '"x"', '{"settings": 3}', '{"devices": 1}'])
def test_facts_without_their_form_give_no_conditions(tmp_path: Path, facts: str) -> None:
    trial = copied(tmp_path)
    (trial / "host/facts.json").write_text(facts)
    result = read_result(sealed(trial))
    assert (result.kind, result.reason, result.conditions) == ("invalid", "bad-evidence", {})
    assert "host/facts.json: " in result.message


# of an arm -----------------------------------------------------------------------------------

HUGE = "vfio_iommu_type1.disable_hugepages"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def of_settings(line: str, **settings: Any) -> dict[str, str]:
    manifest = manifest_of(arm_settings=NO_SETTINGS | settings)
    return collect_conditions(manifest, host_of(settings={"cmdline": line}), None)


def test_words_of_an_arm_are_its_own_and_no_others() -> None:
    conditions = of_settings(
        f"panic=-1 intel_iommu=on quiet intel_iommu=on nosmt {HUGE}=Y",
        cmdline={"asked": "intel_iommu=on nosmt", "found": "intel_iommu=on nosmt"},
        parameters={HUGE: {"asked": "Y", "found": "Y"}, "vfio.x": {"asked": None, "found": "3"}},
    )
    assert conditions["host.cmdline"] == "panic=-1 intel_iommu=on quiet"
    assert conditions["host.arm.cmdline"] == "intel_iommu=on nosmt"


def test_settings_are_what_was_read_back() -> None:
    conditions = of_settings(
        "panic=-1",
        parameters={"m.bool": {"asked": "1", "found": "Y"},
                    "m.hidden": {"asked": "3", "found": None},
                    "m.absent": {"asked": None, "found": None}},
        sysfs={THP: {"asked": None, "found": "madvise"}},
    )  # fmt: skip
    assert {name: value for name, value in conditions.items() if name.startswith("host.arm")} == {
        "host.arm.parameters.m.bool": "Y", "host.arm.parameters.m.hidden": "3",
        f"host.arm.sysfs.{THP}": "madvise",
    }  # fmt: skip


def test_trial_that_recorded_no_settings_has_none() -> None:
    conditions = of_facts(settings={"cmdline": "quiet"})
    assert conditions["host.cmdline"] == "quiet"
    assert not [name for name in conditions if name.startswith("host.arm")]


# of many -------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
def test_arms_of_recorded_runs_differ_by_what_was_planned_alone(run: Path) -> None:
    conditions = compare_conditions(of_arms(run))
    assert conditions.unplanned == ()
    stride = "vfio_iommu_type1.pfnmap_stride"
    assert {d.name for d in conditions.differences} == (
        {f"host.arm.parameters.{stride}", f"host.parameters.{stride}"}
        if run.name == "stride-clamp"
        else {f"host.kernel.{name}" for name in (
            "release", "source", "digest", "version", "vfio_iommu_type1")}
    )  # fmt: skip
    assert all(d.planned for d in conditions.differences)
    assert conditions.config is None
    assert conditions.common["host.kernel.taint"] == "none"
    if run.name != "metal":  # on somebody else's machine the packages are not read
        assert int(conditions.common["host.packages"]) >= 210


def test_recorded_runs_differ_in_what_they_were_made_for() -> None:
    first, other = (of_arms(RECORDED / name)["candidate"] for name in ("map-exact", "boot-exact"))
    conditions = compare_conditions({"map-exact": first, "boot-exact": other})
    assert named(conditions.unplanned) == {
        "host.packages.ovmf": ("absent", "2025.02-8+deb13u1"),
        "workload": ("map", "guest-boot"),
    }
    assert {"guest.accel", "guest.packages", "host.qemu"} <= {*conditions.not_recorded}
    assert "guest.packages.libc6" not in conditions.not_recorded


BASE = {"accel": "tcg", "host.kernel.release": "6.12", "host.thp": "always", "runner.cpu": "a"}
NEW = {**BASE, "host.kernel.release": "7.3"}


def test_kernel_is_what_is_to_differ_between_arms() -> None:
    [difference] = find_differences({"baseline": [BASE, BASE], "candidate": [NEW]})
    assert difference == Difference(
        "host.kernel.release", {"baseline": ("6.12",), "candidate": ("7.3",)},
        planned=True, allowed=False,
    )  # fmt: skip


def test_kernel_is_not_to_differ_within_an_arm() -> None:
    [difference] = find_differences({"baseline": [BASE, NEW], "candidate": [NEW]})
    assert difference.values == {"baseline": ("6.12", "7.3"), "candidate": ("7.3",)}
    assert not difference.planned


def test_default_that_the_kernels_have_otherwise_is_not_planned() -> None:
    other = {**NEW, "host.thp": "madvise"}
    conditions = compare_conditions({"baseline": [BASE], "candidate": [other]})
    assert [d.name for d in conditions.unplanned] == ["host.thp"]


ALIKE = {"host.cmdline": "quiet", "host.kernel.digest": "d", "host.thp": "always",
         "host.smt": "1", "host.kernel.mitigations": "mds"}  # fmt: skip


def arms(first: dict[str, str], other: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    return {"baseline": [ALIKE | first] * 2, "candidate": [ALIKE | other] * 2}


def test_what_only_one_arm_is_set_to_is_not_set_in_the_other() -> None:
    sides = arms({}, {"host.arm.cmdline": "nosmt", "host.arm.sysfs./sys/x": "1"})
    conditions = compare_conditions(sides)
    assert named(conditions.differences) == {
        "host.arm.cmdline": ("not set", "nosmt"), "host.arm.sysfs./sys/x": ("not set", "1"),
    }  # fmt: skip
    assert conditions.unplanned == ()
    assert conditions.not_recorded == ()


def test_settings_are_not_to_differ_within_an_arm() -> None:
    sides = arms({}, {"host.arm.cmdline": "nosmt"})
    sides["candidate"][1] = ALIKE | {"host.arm.cmdline": "nosmt=force"}
    assert [d.name for d in compare_conditions(sides).unplanned] == ["host.arm.cmdline"]


def test_trial_that_ended_before_its_settings_were_proven_is_no_other() -> None:
    sides = arms({}, {"host.arm.cmdline": "nosmt"})
    sides["candidate"][1] = {"host.kernel.digest": "d"}
    assert compare_conditions(sides).unplanned == ()


@pytest.mark.parametrize(
    ("name", "values", "changed"),
    [
        ("host.arm.cmdline", ("a", "a transparent_hugepage=never"), {"host.thp": "never"}),
        ("host.arm.cmdline", ("nosmt b", "b"), {"host.smt": "0"}),
        ("host.arm.cmdline", ("a", "mitigations=off a"),
         {"host.kernel.mitigations": "none", "host.smt": "0"}),
        ("host.arm.cmdline", ("m.p=1", "m.p=2"), {"host.parameters.m.p": "2"}),
        (f"host.arm.parameters.{HUGE}", ("N", "Y"), {f"host.parameters.{HUGE}": "Y"}),
        (f"host.arm.sysfs.{THP}", ("always", "never"), {"host.thp": "never"}),
    ],
)  # fmt: skip
def test_what_follows_from_a_setting_is_planned_where_that_differs(
    name: str, values: tuple[str, str], changed: dict[str, str]
) -> None:
    before = dict.fromkeys(changed, "?")
    apart = compare_conditions(arms({name: values[0]} | before, {name: values[1]} | changed))
    assert apart.unplanned == ()
    assert {d.name for d in apart.differences} == {name, *changed}
    alike = compare_conditions(arms({name: values[1]} | before, {name: values[1]} | changed))
    assert {d.name for d in alike.unplanned} == {*changed}


def test_what_does_not_follow_from_a_setting_is_not_planned() -> None:
    first = {"host.arm.cmdline": "nosmt", "host.thp": "never"}
    assert [d.name for d in compare_conditions(arms({}, first)).unplanned] == ["host.thp"]


def test_order_of_the_words_of_an_arm_is_a_difference_that_has_no_consequences() -> None:
    first, other = ({"host.arm.cmdline": text} for text in ("nosmt tsc=x", "tsc=x nosmt"))
    conditions = compare_conditions(arms(first, other | {"host.smt": "0"}))
    assert [d.name for d in conditions.unplanned] == ["host.smt"]


def test_one_kernel_does_the_same_in_both_arms() -> None:
    """The kernel's source may be spelled in two ways."""
    other = {"host.kernel.mitigations": "none", "host.kernel.source": "b"}
    conditions = compare_conditions(arms({"host.kernel.source": "a"}, other))
    assert [d.name for d in conditions.unplanned] == ["host.kernel.mitigations"]
    conditions = compare_conditions(arms({}, other | {"host.kernel.digest": "e"}))
    assert conditions.unplanned == ()


def test_run_taken_up_again_elsewhere_differs_within_both_arms() -> None:
    moved = [{**trial, "runner.cpu": "b"} for trial in (BASE, NEW)]
    conditions = compare_conditions({"baseline": [BASE, moved[0]], "candidate": [NEW, moved[1]]})
    assert named(conditions.unplanned) == {"runner.cpu": ("a|b", "a|b")}


@pytest.mark.parametrize(
    ("allow", "allowed"),
    [("runner.cpu", True), ("runner.*", True), ("runner.cp", False), ("runner", False),
     ("run.*", False), ("host.*", False)],
)  # fmt: skip
def test_difference_is_allowed_by_name_or_room(allow: str, allowed: bool) -> None:
    sides = {"baseline": [BASE], "candidate": [{**BASE, "runner.cpu": "b"}]}
    conditions = compare_conditions(sides, allow=[allow])
    assert [d.allowed for d in conditions.differences] == [allowed]
    assert bool(conditions.unplanned) != allowed


@pytest.mark.parametrize(("accel", "allowed"), [("exact", True), ("tcg", False), ("kvm", False)])
def test_counted_instructions_do_not_depend_on_the_runner(accel: str, allowed: bool) -> None:
    first = {"accel": accel, "runner.cpu": "a", "runner.qemu": "10.0.2"}
    other = {"accel": accel, "runner.cpu": "b", "runner.qemu": "10.0.3"}
    conditions = {
        d.name: d.allowed for d in find_differences({"baseline": [first], "candidate": [other]})
    }
    assert conditions == {"runner.cpu": allowed, "runner.qemu": False}


def test_what_is_not_recorded_is_no_difference_and_not_common() -> None:
    old = {name: value for name, value in BASE.items() if name != "runner.cpu"}
    conditions = compare_conditions({"old": [old], "new": [BASE]})
    assert conditions.differences == ()
    assert conditions.not_recorded == ("runner.cpu",)
    assert "runner.cpu" not in conditions.common
    assert compare_conditions({"old": [old, BASE], "new": [BASE]}).common["runner.cpu"] == "a"


def test_package_that_only_one_has_is_a_difference() -> None:
    first = {"host.packages.a": "1", "host.packages.b": "1"}
    other = {"host.packages.a": "1", "host.packages.c": "2"}
    conditions = compare_conditions({"baseline": [first], "candidate": [other]})
    assert named(conditions.differences) == {
        "host.packages.b": ("1", "absent"), "host.packages.c": ("absent", "2"),
    }  # fmt: skip
    assert conditions.common == {"host.packages": "1"}


def test_packages_that_nobody_listed_are_not_absent() -> None:
    conditions = compare_conditions({"baseline": [{"host.packages.a": "1"}], "candidate": [BASE]})
    assert conditions.differences == ()
    assert "host.packages" in conditions.not_recorded


def test_arm_without_trials_says_nothing() -> None:
    conditions = compare_conditions({"baseline": [BASE], "candidate": [{}]})
    assert conditions == Conditions(BASE, (), (), None)
    assert compare_conditions({"baseline": [], "candidate": []}) == Conditions({}, (), (), None)


def test_arms_are_compared_where_both_recorded_anything() -> None:
    assert is_recorded_in_all({"baseline": [BASE], "candidate": [{}, NEW]})
    assert not is_recorded_in_all({"baseline": [BASE], "candidate": [{}]})
    assert not is_recorded_in_all({"baseline": [], "candidate": [NEW]})


def test_json_has_what_differs_and_what_does_not() -> None:
    sides = {"baseline": [BASE], "candidate": [NEW]}
    conditions = compare_conditions(sides, ("CONFIG_A=y\n", "CONFIG_A=m\n"))
    assert json.loads(json.dumps(conditions_json(conditions))) == {
        "common": {"accel": "tcg", "host.thp": "always", "runner.cpu": "a"},
        "differences": [
            {"name": "host.kernel.release", "planned": True, "allowed": False,
             "values": {"baseline": ["6.12"], "candidate": ["7.3"]}},
        ],
        "not_recorded": [],
        "config": {"CONFIG_A": ["y", "m"]},
    }  # fmt: skip
    assert conditions_json(compare_conditions(sides, ("CONFIG_A=y\n", None)))["config"] is None
    assert conditions_json(compare_conditions(sides, ("", "")))["config"] == {}


NAMES = st.sampled_from(["accel", "host.kernel.release", "host.thp", "host.packages.a", "x.y"])
TRIALS = st.lists(st.dictionaries(NAMES, st.sampled_from(["", "a", "b"])), max_size=4)


@given(TRIALS, TRIALS)
def test_each_condition_is_common_or_different_or_not_recorded(
    first: list[dict[str, str]], other: list[dict[str, str]]
) -> None:
    conditions = compare_conditions({"one": first, "other": other})
    different = {d.name for d in conditions.differences}
    known = {name.replace("packages.a", "packages") for t in (*first, *other) for name in t}
    folded = {name.replace("packages.a", "packages") for name in different}
    assert {*conditions.common} | folded | {*conditions.not_recorded} == known
    assert not {*conditions.common} & ({*conditions.not_recorded} | different)
    common = conditions.common
    assert all(common[n] == t[n] for t in (*first, *other) for n in t if n in common)
    swapped = find_differences({"other": other, "one": first})
    assert [(d.name, d.planned) for d in swapped] == [
        (d.name, d.planned) for d in conditions.differences
    ]


@given(TRIALS)
def test_trials_do_not_differ_from_themselves(trials: list[dict[str, str]]) -> None:
    within = {d.name for d in find_differences({"one": trials})}
    assert {d.name for d in find_differences({"one": trials, "again": trials})} == within


def test_kernel_that_taints_itself_in_some_trials_is_no_other_kernel() -> None:
    """Otherwise an occasional oops would make a run invalid instead of regressed."""
    clean, broken = ({"host.kernel.taint": taint} for taint in ("none", "DW"))
    [difference] = find_differences({"baseline": [clean, clean], "candidate": [clean, broken]})
    assert (difference.name, difference.planned) == ("host.kernel.taint", True)
