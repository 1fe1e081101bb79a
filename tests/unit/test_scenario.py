from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.base.spelling import nearest_name
from orchestrator.formats.units import GIB, KIB, MIB, TIB, format_size, parse_size
from orchestrator.scenario.explaining import build_schema
from orchestrator.scenario.factors import load_scenarios
from orchestrator.scenario.kernel_forms import DebKernel, DirKernel
from orchestrator.scenario.loading import load_scenario, parse_scenario
from orchestrator.scenario.machines import MetalHost
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import explain_no_condition
from orchestrator.scenario.vocabulary import AT_POINTS, METRICS, current_name
from tests.unit.scenarios import MAPS, METAL, MINIMAL, map_scenario, metal_scenario, scenario

UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


def error_of(text: str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, "x.toml", overrides=overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("32GiB", 32 * GIB), (" 512 MiB ", 512 * MIB), ("1TiB", TIB), ("4KiB", 4096)],
)
def test_size_with_a_binary_unit_is_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["32GB", "32", "GiB", "", "-1GiB", "1.5GiB", "0GiB", "٣GiB", "1gib", "1GiB x", 32, None],
)
def test_size_without_a_binary_unit_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.integers(1, 10**6), st.sampled_from(sorted(UNITS)))
def test_size_survives_being_written_and_read(number: int, unit: str) -> None:
    size = number * UNITS[unit]
    assert parse_size(f"{number}{unit}") == size
    assert parse_size(format_size(size)) == size
    assert len(format_size(size)) <= len(f"{number}{unit}")


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_size(text) > 0


@given(st.integers(1, 4 * TIB // MIB))
def test_bar_that_is_no_power_of_two_is_refused_with_the_nearest(mebibytes: int) -> None:
    size = mebibytes * MIB
    override = f"device.bar={format_size(size)}"
    if size <= TIB and size & (size - 1) == 0:
        assert scenario(override, "guest.memory=384MiB").device.bar == size
        return
    message = error_of(MINIMAL, override)
    assert "device.bar" in message
    nearest = [
        parse_size(word) for word in message.split("nearest: ")[1].split("\n")[0].split(" or ")
    ]
    assert all(MIB <= n <= TIB and n & (n - 1) == 0 for n in nearest)
    if size < TIB:
        assert nearest[0] < size < nearest[-1]


def test_bar_below_a_mebibyte_is_refused() -> None:
    assert "nearest: 1MiB" in error_of(MINIMAL, "device.bar=512KiB")


def test_defaults_fill_what_a_scenario_does_not_say() -> None:
    small = scenario()
    assert small.device.bar == 32 * GIB
    assert small.trace.passes == ("plain", "timing", "counts")
    assert small.trials.pairs == 1
    assert small.expect == {}
    assert small.nested.accel == "auto"


def test_folder_of_a_kernel_is_taken_from_the_scenarios_folder(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(MINIMAL)
    loaded, _ = load_scenario(file)
    assert loaded.arms["candidate"].kernel == DirKernel(dir=tmp_path / "new")
    assert loaded.guest is not None
    assert loaded.guest.kernel == DirKernel(dir=tmp_path / "guest")
    assert str(loaded.arms.baseline.kernel) == f"dir:{tmp_path}/old"


def test_package_kernel_names_its_suite_and_version() -> None:
    assert (
        str(DebKernel(deb="linux-image-amd64", suite="trixie")) == "deb:linux-image-amd64@trixie"
    )
    assert str(DebKernel(deb="linux-image-amd64", version="6.12-1")) == (
        "deb:linux-image-amd64=6.12-1"
    )


def test_package_kernel_without_suite_and_version_is_refused() -> None:
    text = MINIMAL.replace('{ dir = "old" }', '{ deb = "linux-image-amd64" }')
    message = error_of(text)
    assert "arms.baseline.kernel: " in message
    assert "needs a suite or a version" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("device.baar=1GiB", 'device.baar: unknown key; did you mean "bar"?'),
        ("device.kind=ivshmen", 'device.kind: "ivshmen" is not one of the valid values; '
                                'did you mean "ivshmem"?'),
        ("hots.accel=kvm", 'hots: unknown key; did you mean "host"?'),
        ("arms.baseline.kernel.dri=x", 'kernel.dri: unknown key; did you mean "dir"?'),
        ("expect.bar_map_secs=improved", 'did you mean "bar_map_cost"?'),
        ("expect.bar_map_secs=improved", 'expect.bar_map_secs: "bar_map_secs" is '),
        ("expect.bar_map_cost=better", "one of improved, equivalent, not-regressed, regressed"),
        ("expect.bar_map_cost=improve", 'did you mean "improved"?'),
        ("expect.bar_map_cost=<= x", 'a bound of the ratio as "<= 1.02"'),
        ("trials.until={precision = 2}", "trials.until.precision: 2 is not a percentage"),
        ('trials.until={precision = "60%"}', "not a percentage above 0 and up to 50"),
        ("trials={pairs = 3, until = {}}", "pairs and until exclude one another"),
        ("trials.control=maybe", "trials.control"),
        ('judgement={floor = "5%"}', "floor is 5.00%, more than margin"),
        ("judgement.margin=1", "judgement.margin: 1 is not a percentage"),
        ("trials.pairs=0", "trials.pairs: "),
        ("host.memory=4GB", 'host.memory: \'4GB\' is not a size; write it like "32GiB"'),
        ("host.phys_bits=53", "host.phys_bits: "),
        ('trace.passes=["plain", "plain"]', "each pass is named once"),
        ("trace.passes=[]", "trace.passes: "),
        ("name=a b", "name: "),
        ("workload=mop", 'workload: "mop" is not one of the valid values'),
    ],
)  # fmt: skip
def test_wrong_key_is_named_with_the_nearest_valid_one(override: str, expected: str) -> None:
    message = error_of(MINIMAL, override)
    assert expected in message
    assert message.startswith("x.toml: ")


def test_exact_host_has_one_cpu_by_default() -> None:
    assert scenario().nested.cpus == 2
    assert scenario("host.accel=exact").nested.cpus == 1
    assert scenario("host.accel=exact", "host.cpus=1").nested.cpus == 1


@pytest.mark.parametrize("cpus", [2, 64])
def test_exact_host_with_more_cpus_is_refused(cpus: int) -> None:
    message = error_of(MINIMAL, "host.accel=exact", f"host.cpus={cpus}")
    assert f'host: accel = "exact" counts the instructions of one CPU; cpus is {cpus}' in message


def test_guest_boot_needs_a_guest() -> None:
    assert 'workload = "guest-boot" needs a [guest] with a kernel' in error_of(
        MAPS, "workload=guest-boot", "host.accel=tcg"
    )
    assert map_scenario().guest is None


def test_guest_of_a_map_is_not_asked_to_fit() -> None:
    assert map_scenario("guest.kernel.dir=guest", "guest.memory=64GiB").guest is not None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["workload=guest-boot", "guest.kernel.dir=x"], 'profile is a pass of workload = "map"'),
        (["host.accel=tcg"], 'profile needs host.accel = "exact"'),
        (["host.accel=auto"], 'profile needs host.accel = "exact"'),
        ([], None),
    ],
)
def test_profile_needs_maps_on_an_exact_host(overrides: list[str], expected: str | None) -> None:
    profile = 'trace.passes=["plain", "profile"]'
    if expected is None:
        assert "profile" in map_scenario(profile, *overrides).trace.passes
    else:
        assert expected in error_of(MAPS, profile, *overrides)


def test_timing_of_iommufd_is_refused() -> None:
    assert "vfio_iommu_type1" in error_of(MAPS, "map.backend=iommufd")
    kept = map_scenario("map.backend=iommufd", 'trace.passes=["plain", "counts"]')
    assert kept.map.backend == "iommufd"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ('map.sizes=["64GiB"]', "map.sizes: 64GiB is more than the BAR, 32GiB"),
        ('map.sizes=["1TiB", "full"]', "map.sizes: 1TiB is more than the BAR, 32GiB"),
        ('map.sizes=["2KiB"]', "map.sizes: 2KiB is "),
        ('map.sizes=["half"]', "'half' is not a size"),
        ('map.sizes=["0GiB"]', "is not a size"),
        ("map.sizes=[]", "map.sizes"),
        ("map.sizes=[4096]", "4096 is not a size"),
        ('map.sizes=["1GiB", "1024MiB"]', "map: sizes names 1GiB twice"),
        ('map.alignment=["1GiB", "1GiB"]', "map: alignment names 1GiB twice"),
        ('map.state=["warm", "warm"]', "map: state names warm twice"),
        ('map.alignment=["2MB"]', 'did you mean "2MiB"?'),
        ('map.state=["hot"]', "map.state"),
        ("map.repeats=0", "map.repeats"),
        ("map.backend=type2", 'did you mean "type1"?'),
        ("map.thp=never", "map.thp"),
        ("map.size=full", 'map.size: unknown key; did you mean "sizes"?'),
        ("host.settle=-1", "host.settle"),
        ("host.memory=1023MiB", "host.memory"),
        ('trace.passes=["timing"]', "trace.passes: needs plain or counts"),
        ('trace.passes=["timing", "profile"]', "trace.passes: needs plain or counts"),
    ],
)
def test_wrong_map_is_refused(override: str, expected: str) -> None:
    assert expected in error_of(MAPS, override)


def test_bar_needs_room_in_the_addresses_of_the_iommu() -> None:
    narrow = "host.viommu_aw_bits=39"
    assert map_scenario(narrow, "device.bar=256GiB").nested.viommu_aw_bits == 39
    assert map_scenario("device.bar=512GiB", "host.phys_bits=46").device.bar == 512 * GIB
    assert "host.viommu_aw_bits: 39 bits have no room for a BAR of 512GiB" in error_of(
        MAPS, narrow, "device.bar=512GiB", "host.phys_bits=46"
    )


@pytest.mark.parametrize("override", ["map.backend=iommufd", "map.repeats=7", "map.thp=disable"])
def test_guest_boot_has_nothing_of_a_map(override: str) -> None:
    assert ": map: " in error_of(MINIMAL, override)
    assert scenario("map.backend=type1").workload == "guest-boot"  # the default


def test_points_are_in_the_order_of_measuring() -> None:
    points = map_scenario(
        'map.sizes=["full", "1GiB"]',
        'map.alignment=["4KiB", "1GiB"]',
        'map.state=["warm", "cold"]',
    ).points()
    assert [p.name for p in points] == [
        "full/1GiB/cold", "full/1GiB/warm", "1GiB/1GiB/cold", "1GiB/1GiB/warm",
        "full/4KiB/cold", "full/4KiB/warm", "1GiB/4KiB/cold", "1GiB/4KiB/warm",
    ]  # fmt: skip
    assert [p.size for p in points[:3]] == [32 * GIB, 32 * GIB, GIB]
    assert [p.name for p in points if p.headline] == ["full/1GiB/warm"]


def test_metric_of_a_point_has_its_name_but_for_the_headline() -> None:
    cold, warm = map_scenario().points()
    assert cold.metric("bar_map_cost") == "bar_map_cost@full/1GiB/cold"
    assert warm.metric("bar_map_cost") == "bar_map_cost"


@pytest.mark.parametrize("sizes", [["32GiB"], ["full"], ["32GiB", "full"], ["full", "32GiB"]])
def test_size_of_the_whole_bar_is_the_headline_once(sizes: list[str]) -> None:
    points = map_scenario(f"map.sizes={json.dumps(sizes)}").points()
    name = "full" if "full" in sizes else "32GiB"
    assert [p.name for p in points] == [f"{name}/1GiB/cold", f"{name}/1GiB/warm"]
    assert [p.headline for p in points] == [False, True]


def test_scenario_without_the_best_point_has_no_headline() -> None:
    for override in ('map.state=["cold"]', 'map.alignment=["2MiB"]', 'map.sizes=["1GiB"]'):
        assert not [p for p in map_scenario(override).points() if p.headline]


def test_guest_boot_has_one_point_for_its_counts() -> None:
    [point] = scenario().points()
    assert (point.name, point.metric("pfn_lookups_per_map")) == (
        "full/1GiB/cold", "pfn_lookups_per_map",
    )  # fmt: skip


@given(
    st.sets(st.sampled_from(["full", "4KiB", "2MiB", "1GiB", "32GiB"]), min_size=1),
    st.sets(st.sampled_from(["1GiB", "2MiB", "4KiB"]), min_size=1),
    st.sets(st.sampled_from(["cold", "warm"]), min_size=1),
)
def test_points_have_names_of_their_own(
    sizes: set[str], alignments: set[str], states: set[str]
) -> None:
    points = map_scenario(
        f"map.sizes={json.dumps(sorted(sizes))}",
        f"map.alignment={json.dumps(sorted(alignments))}",
        f"map.state={json.dumps(sorted(states))}",
    ).points()
    kinds = len(sizes - {"32GiB"} if "full" in sizes else sizes)
    assert len(points) == len({p.name for p in points}) == kinds * len(alignments) * len(states)
    assert sum(p.headline for p in points) <= 1
    names = {p.metric(base) for p in points for base in AT_POINTS}
    assert len(names) == len(points) * len(AT_POINTS)


def test_expectation_of_a_point_is_set_with_a_quoted_key() -> None:
    name = "pfn_lookups_per_map@full/1GiB/cold"
    chosen, text = parse_scenario(MAPS, "x", overrides=[f'expect."{name}"=improved'])
    assert chosen.expect == {name: "improved"}
    assert parse_scenario(text, "x")[0] == chosen
    assert map_scenario(f"expect.'{name}'=improved").expect == {name: "improved"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "pfn_lookups_per_map@full/1GiB/warm",
            'is not measured by this workload and its passes; its name is "pfn_lookups_per_map"',
        ),
        (
            "pfn_lookups_per_map@full/2MiB/cold",
            'by this workload and its passes; did you mean "pfn_lookups_per_map@full/1GiB/cold"?',
        ),
        ("guest_boot_cost@full/1GiB/cold", "did you mean"),
        ("@full/1GiB/cold", "did you mean"),
    ],
)
def test_expectation_of_a_point_that_there_is_not_is_refused(name: str, expected: str) -> None:
    message = error_of(MAPS, f'expect."{name}"=improved')
    assert f'expect.{name}: "{name}" is ' in message
    assert expected in message


def test_only_what_is_always_seconds_is_called_seconds() -> None:
    for name, kind in METRICS.items():
        assert ("seconds" in name) == (kind == "s")
        assert ("cost" in name) == (kind == "cost")


@pytest.mark.parametrize("point", ["", "@full/1GiB/cold"])
def test_former_name_of_a_metric_is_accepted(point: str) -> None:
    chosen = map_scenario(f"expect.'bar_map_seconds{point}'=improved")
    assert chosen.expect == {f"bar_map_cost{point}": "improved"}
    assert current_name(f"host_boot_seconds{point}") == f"host_boot_seconds{point}"


@pytest.mark.parametrize("names", [
    ("bar_map_cost", "bar_map_seconds"), ("bar_map_seconds", "bar_map_cost"),
])  # fmt: skip
def test_override_replaces_an_expectation_by_either_name(names: tuple[str, str]) -> None:
    in_file, on_command_line = names
    text = f'{MAPS}[expect]\n{in_file} = "improved"\n'
    chosen, saved = parse_scenario(text, "x", overrides=[f"expect.{on_command_line}=equivalent"])
    assert chosen.expect == {"bar_map_cost": "equivalent"}
    assert parse_scenario(saved, "x")[0] == chosen


def test_one_metric_by_both_its_names_is_refused() -> None:
    both = 'bar_map_cost = "improved"\nbar_map_seconds = "improved"\n'
    with pytest.raises(ScenarioError, match=r"bar_map_seconds.*bar_map_cost"):
        parse_scenario(f"{MAPS}[expect]\n{both}", "x")


@pytest.mark.parametrize("load", [load_scenario, load_scenarios])
def test_file_with_former_names_is_told_the_present_ones_once(
    load: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "nightly.toml"
    path.write_text(f'{MAPS}[expect]\nbar_map_seconds = "improved"\n')
    load(path)
    [record] = caplog.records
    assert str(path) in record.message
    assert "bar_map_seconds is bar_map_cost now" in record.message
    caplog.clear()
    path.write_text(f'{MAPS}[expect]\nbar_map_cost = "improved"\n')
    load(path)
    assert not caplog.records


def test_guest_boot_expects_nothing_of_points() -> None:
    message = error_of(MINIMAL, 'expect."bar_map_cost@full/1GiB/warm"=improved')
    assert "is not measured by this workload and its passes" in message


def names(*overrides: str, text: str = MAPS) -> set[str]:
    found = scenario(*overrides, text=text).metrics()
    assert len(found) == len(set(found))
    return set(found)


def test_metrics_of_maps_are_those_of_their_points_and_passes() -> None:
    seconds = {"bar_map_cost", "bar_unmap_cost"}
    counts = {"pfn_lookups_per_map", "pfn_faults_per_map", "iova_lookups_per_unmap"}

    def at_both(bases: set[str]) -> set[str]:
        return bases | {f"{base}@full/1GiB/cold" for base in bases}

    assert names('trace.passes=["plain"]') == at_both(seconds)
    assert names('trace.passes=["counts", "timing"]') == at_both(counts)
    assert names('trace.passes=["plain", "counts"]') == at_both(seconds | counts)
    assert names('trace.passes=["plain"]', "host.accel=tcg") == {
        *at_both(seconds), "host_boot_seconds",
    }  # fmt: skip


def test_metrics_of_guest_boots_are_those_of_their_passes() -> None:
    plain = names('trace.passes=["plain"]', text=MINIMAL)
    assert plain == {"guest_boot_cost", "guest_ssh_cost", "host_boot_seconds"}
    counts = names('trace.passes=["counts"]', text=MINIMAL)
    assert counts == {
        "pfn_lookups_per_map", "pfn_faults_per_map", "iova_lookups_per_unmap", "host_boot_seconds",
    }  # fmt: skip
    timing = names('trace.passes=["timing"]', text=MINIMAL)
    assert {"bar_map_cost", "bar_unmap_cost"} <= timing
    assert not timing & (plain | counts) - {"host_boot_seconds"}
    assert "host_boot_seconds" not in names("host.accel=exact", text=MINIMAL)
    assert "host_boot_seconds" not in names("host.fresh_boots=false", text=MINIMAL)


def test_nested_host_has_a_boot_for_each_trial_unless_it_is_asked_otherwise() -> None:
    assert scenario().host.fresh_boots
    assert not metal_scenario().host.fresh_boots
    for shared in (scenario("host.fresh_boots=false"), map_scenario("host.fresh_boots=false")):
        assert not shared.host.fresh_boots


def test_guest_boots_do_not_share_an_exact_host() -> None:
    message = error_of(MINIMAL, "host.accel=exact", "host.fresh_boots=false")
    assert "host.fresh_boots: false" in message
    assert "a second guest boot on one exact host all but stands still" in message


@pytest.mark.parametrize(
    ("text", "passes", "name"),
    [
        (MAPS, '["plain"]', "pfn_lookups_per_map"),
        (MAPS, '["counts"]', "bar_map_cost"),
        (MAPS, '["plain", "counts"]', "guest_boot_cost"),
        (MAPS, '["plain", "counts"]', "host_boot_seconds"),
        (MINIMAL, '["plain", "counts"]', "bar_map_cost"),
        (MINIMAL, '["timing", "counts"]', "guest_boot_cost"),
    ],
)
def test_expectation_of_what_is_not_measured_is_refused(text: str, passes: str, name: str) -> None:
    message = error_of(text, f"trace.passes={passes}", f"expect.{name}=improved")
    assert f'expect.{name}: "{name}" is not measured by this workload and its passes' in message


def test_point_may_be_expected_in_a_file() -> None:
    name = "bar_unmap_cost@1GiB/4KiB/warm"
    text = MAPS + f'[expect]\n"{name}" = "regressed"\n'
    overrides = ('map.sizes=["1GiB"]', 'map.alignment=["4KiB"]')
    assert scenario(*overrides, text=text).expect == {name: "regressed"}


def test_missing_key_is_named() -> None:
    assert "arms.candidate.kernel: this key is needed" in error_of(
        MINIMAL.replace('kernel = { dir = "new" }', "")
    )


def test_every_wrong_key_is_reported_at_once() -> None:
    message = error_of(MINIMAL, "device.bar=3GiB", "host.acel=kvm")
    assert "device.bar" in message
    assert "host.acel" in message


@pytest.mark.parametrize("text", ["a = ", "[a", "a=1\na=2", "\0", "[a]\nb=1\n[a]\nb=2"])
def test_text_that_is_no_toml_is_refused(text: str) -> None:
    assert "not valid TOML" in error_of(text)


def test_missing_file_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "debian.toml").write_text(MINIMAL)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(tmp_path / "debain.toml")
    assert "cannot be read" in caught.value.message
    assert caught.value.hint == f"did you mean {tmp_path}/debian.toml?"


def test_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(tmp_path / "s.toml")


def test_overrides_are_applied_and_written_into_the_text() -> None:
    parsed, text = parse_scenario(
        MINIMAL, "x", overrides=["device.bar=1GiB", "trials.pairs=3", 'host.cmdline="a b"']
    )
    assert (parsed.device.bar, parsed.trials.pairs, parsed.host.cmdline) == (GIB, 3, "a b")
    again, _ = parse_scenario(text, "x")
    assert again == parsed


def test_override_replaces_a_whole_kernel() -> None:
    changed = scenario('arms.baseline.kernel={ deb = "linux-image-amd64", suite = "sid" }')
    assert changed.arms.baseline.kernel == DebKernel(deb="linux-image-amd64", suite="sid")


@pytest.mark.parametrize("override", ["device.bar", "=1", ".bar=1", "device..bar=1GiB"])
def test_override_that_is_no_assignment_is_refused(override: str) -> None:
    assert "expected key=value" in error_of(MINIMAL, override)


def test_override_through_a_value_is_refused() -> None:
    assert "name is a value, not a table" in error_of(MINIMAL, "name.x=1")


KEYS = st.sampled_from(["name", "device.bar", "host.cmdline", "trials.pairs", "guest.kernel.dir"])


@given(KEYS | st.text(max_size=12), st.text(max_size=20))
def test_any_override_gives_a_scenario_that_reads_back_or_is_refused(key: str, value: str) -> None:
    try:
        parsed, text = parse_scenario(MINIMAL, "x", overrides=[f"{key}={value}"])
    except ScenarioError:
        return
    assert parse_scenario(text, "x")[0] == parsed


@given(st.text(max_size=60))
def test_any_text_after_a_scenario_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ScenarioError):
        parse_scenario(MINIMAL + text, "x")


def test_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(build_schema()))
    assert set(schema["properties"]) == set(Scenario.model_fields)
    bar = schema["$defs"]["EmulatedDevice"]["properties"]["bar"]
    assert bar["type"] == "string"
    assert "power of two" in bar["description"]
    assert bar["default"] == "32GiB"
    assert schema["additionalProperties"] is False


def test_schema_has_every_key_of_a_map() -> None:
    found = build_schema()["$defs"]["Map"]["properties"]
    assert set(found) == {"sizes", "alignment", "state", "repeats", "backend", "thp"}
    assert found["sizes"]["items"]["examples"] == ["full"]
    assert all(key["description"] for key in found.values())


def test_map_survives_its_own_json() -> None:
    chosen = map_scenario('map.sizes=["1GiB", "full"]')
    assert chosen.map.sizes == (GIB, "full")
    assert Scenario.model_validate_json(chosen.model_dump_json()) == chosen


def test_scenario_survives_its_own_json() -> None:
    small = scenario("device.bar=64GiB", "guest.memory=768MiB")
    assert Scenario.model_validate_json(small.model_dump_json()) == small


def test_nearest_name_lists_everything_where_nothing_is_near() -> None:
    assert nearest_name("zzz", ["alpha", "beta"], ["alpha", "beta"]) == "; valid: alpha, beta"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("map.sizes=full", 'map.sizes: expected a list, for example ["full"]'),
        ("host.memory=1MiB", "host.memory: needs 1GiB or more"),
        ("map.sizes=[]", "map.sizes: Tuple should have at least 1 item"),
    ],
)
def test_wrong_form_is_said_with_what_is_right(override: str, expected: str) -> None:
    assert expected in error_of(MAPS, override)


def test_wrong_element_of_a_list_is_said_once() -> None:
    message = error_of(MAPS, 'map.state=["hot"]')
    assert 'map.state.0: "hot" is not one of the valid values; valid: cold, warm' in message
    assert "at least 1 item" not in message


def test_guest_and_device_are_what_they_were_by_default() -> None:
    small = scenario()
    assert (small.device.count, small.device.mmap) == (1, True)
    assert small.guest is not None
    assert (small.guest.firmware, small.guest.boot, small.guest.backing) == (
        "seabios", "direct", "anonymous",
    )  # fmt: skip
    assert (small.guest.viommu, small.guest.phys_bits) == ("none", None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["device.count=0"], "device.count: "),
        (["device.count=9"], "device.count: "),
        (["guest.firmware=uefi"], "guest.firmware: \"uefi\" is not one of the valid values"),
        (["guest.boot=disc"], 'did you mean "disk"?'),
        (["guest.backing=hugetlb-2MB"], 'did you mean "hugetlb-2MiB"?'),
        (["guest.viommu=virtio"], "valid: none, intel"),
        (["guest.phys_bits=31"], "guest.phys_bits: "),
        (["guest.phys_bits=53"], "guest.phys_bits: "),
        (["guest.boot=disk", "guest.memory=511MiB"],
         'guest.memory is 511MiB; guest.boot = "disk" needs 512MiB or more'),
        (["guest.backing=hugetlb-2MiB", "guest.memory=513MiB"],
         'guest.memory is 513MiB; guest.backing = "hugetlb-2MiB" needs a multiple of 2MiB'),
        (["guest.backing=hugetlb-1GiB"],
         'guest.memory is 512MiB; guest.backing = "hugetlb-1GiB" needs a multiple of 1GiB'),
        (["guest.memory=262145KiB"],
         'guest.memory is 262145KiB; guest.backing = "anonymous" needs a multiple of 4KiB'),
        (["guest.backing=hugetlb-1GiB", "guest.memory=2GiB", "host.memory=3GiB"],
         'guest.backing = "hugetlb-1GiB" needs 2GiB more than guest.memory (2GiB)'),
        (["device.count=2", "host.phys_bits=37"],
         "device.count x device.bar is 64GiB; host.phys_bits = 37 leaves 32GiB for BARs"),
        (["host.phys_bits=36"], "host.phys_bits = 36 leaves 16GiB for BARs"),
        (["guest.phys_bits=47", "host.phys_bits=46"],
         "guest.phys_bits is 47, more than host.phys_bits, 46"),
    ],
)  # fmt: skip
def test_device_and_guest_that_cannot_be_are_refused(overrides: list[str], expected: str) -> None:
    assert expected in error_of(MINIMAL, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["device.count=8", "host.phys_bits=40"],
        ["device.count=1", "host.phys_bits=37"],
        ["guest.phys_bits=40", "host.phys_bits=40"],
        ["device.mmap=false"],
        ["guest.backing=hugetlb-1GiB", "guest.memory=1GiB", "host.memory=3GiB"],
        ["guest.backing=hugetlb-2MiB"],
        ["guest.backing=memfd", "guest.boot=disk", "guest.firmware=ovmf", "guest.phys_bits=39"],
    ],
)
def test_device_and_guest_that_just_fit_are_accepted(overrides: list[str]) -> None:
    chosen = scenario(*overrides)
    assert Scenario.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "device.count=2",
            "device.count: 2",
        ),
        ("device.mmap=false", "device.mmap: false"),
    ],
)
def test_map_has_one_device_that_it_maps(override: str, expected: str) -> None:
    assert expected in error_of(MAPS, override)


def test_device_without_mmap_has_a_number_of_maps_and_no_time_of_one() -> None:
    usual, trapped = names(text=MINIMAL), names("device.mmap=false", text=MINIMAL)
    assert usual - trapped == {"bar_map_cost", "bar_unmap_cost", "iommu_map_cost"}
    assert {"bar_maps_per_boot", "bar_map_cost_per_boot", "pfn_lookups_per_map"} <= trapped
    assert "expect.bar_map_cost: " in error_of(
        MINIMAL, "device.mmap=false", "expect.bar_map_cost=equivalent"
    )


def test_dot_within_quotes_is_part_of_a_key() -> None:
    message = error_of(MINIMAL, "expect.'a.b'=improved")
    assert 'expect.a.b: "a.b" is ' in message


def test_matrix_is_more_than_one_scenario() -> None:
    assert "x.toml: matrix: " in error_of(MINIMAL + "[matrix]\n'device.count' = [1]\n")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("runner.qemu", None), ("runner.*", None), ("accel", None),
        ("runner", '"runner.*"'),
        ("qemu", "accel, barometer, device, guest, host, map, runner, workload"),
    ],
)  # fmt: skip
def test_name_of_a_condition_is_one_or_has_a_star(name: str, wrong: str | None) -> None:
    found = explain_no_condition([name])
    assert found is None if wrong is None else wrong in str(found)


# arms ----------------------------------------------------------------------------------------

THP = "/sys/kernel/mm/transparent_hugepage/enabled"
HUGE = "vfio_iommu_type1.disable_hugepages"


def test_arm_is_set_by_words_parameters_and_files() -> None:
    arm = scenario(
        "arms.candidate.cmdline=iommu.strict=1  nosmt",
        f'arms.candidate.parameters={{"{HUGE}" = true, "vfio.limit" = 0x10}}',
        f'arms.candidate.sysfs={{"{THP}" = "never"}}',
    ).arms.candidate
    assert arm.is_set
    assert arm.words == ("iommu.strict=1", "nosmt", f"{HUGE}=Y", "vfio.limit=16")
    assert arm.settings == {
        "cmdline": "iommu.strict=1  nosmt", "parameters": {HUGE: "Y", "vfio.limit": "16"},
        "sysfs": {THP: "never"},
    }  # fmt: skip
    assert not scenario().arms.candidate.is_set


@pytest.mark.parametrize("key", ["host.cmdline", "arms.baseline.cmdline"])
@pytest.mark.parametrize(
    "word",
    ["barometer.token=1", "console=tty0", "init=/bin/sh", "root=/dev/vda", "panic=0", "panic"],
)
def test_words_that_are_barometers_own_are_refused(key: str, word: str) -> None:
    error = error_of(MINIMAL, f"{key}=quiet {word}")
    assert f'{key}: "{word}": {word.partition("=")[0]} is set by barometer itself' in error


@pytest.mark.parametrize("word", ["--", "rdinit=/bin/sh"])
def test_arm_gives_init_nothing(word: str) -> None:
    message = error_of(MINIMAL, f"arms.candidate.cmdline=quiet {word}")
    assert f'arms.candidate: cmdline: "{word}"' in message
    assert scenario(f"host.cmdline=quiet {word}").host.cmdline


@pytest.mark.parametrize(
    ("cmdline", "expected"), [("a\nb", "printable ASCII"), ("x" * 1801, "1801 characters")]
)
def test_command_line_that_a_kernel_could_not_take_is_refused(cmdline: str, expected: str) -> None:
    text = MINIMAL + f"cmdline = {json.dumps(cmdline)}\n"
    assert expected in error_of(text)


def test_command_lines_that_are_too_long_together_are_refused() -> None:
    long = "arms.candidate.cmdline=" + "x" * 1000
    assert scenario(long)
    assert "there is room for 1800" in error_of(MINIMAL, long, "host.cmdline=" + "y" * 1000)


@pytest.mark.parametrize("word", [f"{HUGE}=1", "vfio-iommu-type1.disable-hugepages=0"])
def test_what_an_arm_sets_is_set_once(word: str) -> None:
    parameters = f'arms.candidate.parameters={{"{HUGE}" = true}}'
    twice = error_of(MINIMAL, parameters, f"arms.candidate.cmdline={word}")
    assert f'"{HUGE}" is set in parameters and in cmdline' in twice
    assert f'host.cmdline has "{word}"' in error_of(MINIMAL, parameters, f"host.cmdline={word}")
    assert scenario(parameters, f"arms.baseline.cmdline={word}")


def test_word_of_the_host_is_not_an_arms() -> None:
    error = error_of(
        MINIMAL, "arms.baseline.cmdline=iommu.strict=1", "host.cmdline=iommu.strict=0"
    )
    assert 'arms.baseline: "iommu.strict=1", and host.cmdline has "iommu.strict=0"' in error


def test_parameter_in_two_spellings_is_refused() -> None:
    both = 'arms.candidate.parameters={"vfio-pci.ids" = 1, "vfio_pci.ids" = 2}'
    assert '"vfio-pci.ids" and "vfio_pci.ids" are ' in error_of(MINIMAL, both)


@given(st.text(max_size=30))
def test_any_command_line_of_an_arm_is_words_or_is_refused(cmdline: str) -> None:
    text = MINIMAL + f"cmdline = {json.dumps(cmdline)}\n"
    try:
        parsed, _ = parse_scenario(text, "x")
    except ScenarioError:
        return
    words = parsed.arms.candidate.words
    assert " ".join(words).split() == cmdline.split() == [*words]


def test_metal_host_has_a_device_of_its_own() -> None:
    text = METAL.replace("[device]", 'ssh_config = "lab.conf"\n[device]')
    scenario, _ = parse_scenario(text, "x.toml", Path("/lab"))
    assert scenario.host.kind == "metal"
    assert scenario.host.ssh_config == Path("/lab/lab.conf")
    assert not scenario.host.exact
    assert scenario.device.count == 1


def test_deadline_of_a_metal_host_may_be_three_minutes() -> None:
    host = metal_scenario("host.deadline=180").host
    assert isinstance(host, MetalHost)
    assert host.deadline == 180


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("host.kind=nested", "host.address: unknown key"),
        ("host.kind=metall", 'host.kind: "metall" is not one of the valid values; did you mean'),
        ("host.address=-oProxyCommand=x", "host.address: "),
        ("host.console=ipmitool 'x", "host.console: "),
        ("host.deadline=179", "host.deadline: "),
        ("device.address=0000:01:00.0", "has address and pick"),
        ("device.id=10de", "device.id: "),
        ("trace.passes=['profile']", 'profile needs host.accel = "exact"'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_metal_host_is_said(override: str, expected: str) -> None:
    assert expected in error_of(METAL, override)


def test_metal_host_without_a_device_of_its_own_is_refused() -> None:
    text = METAL.replace('kind = "hostdev"\npick = "largest-bar"\n', "")
    assert 'here they are "ivshmem" and "metal"' in error_of(text)
