from __future__ import annotations

import contextlib
import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ScenarioError
from orchestrator.scenario import (
    GIB,
    KIB,
    MIB,
    TIB,
    DebKernel,
    DirKernel,
    Scenario,
    format_size,
    json_schema,
    load_scenario,
    nearest_name,
    parse_scenario,
    parse_size,
)
from tests.unit.scenarios import MINIMAL, scenario

SHIPPED = sorted((Path(__file__).parents[2] / "fixtures/scenarios").glob("*.toml"))
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
        assert scenario(override).device.bar == size
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
    assert small.host.accel == "auto"


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
        ("expect.bar_map_secs=improved", 'expect.bar_map_secs: "bar_map_secs" is no metric of '
                                         'this scenario; did you mean "bar_map_seconds"?'),
        ("expect.bar_map_seconds=better", "valid: improved, not-regressed, regressed"),
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenario_is_valid(path: Path) -> None:
    loaded, text = load_scenario(path)
    assert text == path.read_text()
    assert tomllib.loads(text)["name"] == loaded.name


def test_there_are_shipped_scenarios() -> None:
    assert SHIPPED


def test_schema_describes_every_key() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == set(Scenario.model_fields)
    bar = schema["$defs"]["Device"]["properties"]["bar"]
    assert bar["type"] == "string"
    assert "power of two" in bar["description"]
    assert bar["default"] == "32GiB"
    assert schema["additionalProperties"] is False


def test_scenario_survives_its_own_json() -> None:
    small = scenario("device.bar=64GiB", "guest.memory=768MiB")
    assert Scenario.model_validate_json(small.model_dump_json()) == small


def test_nearest_name_lists_everything_where_nothing_is_near() -> None:
    assert nearest_name("zzz", ["alpha", "beta"], ["alpha", "beta"]) == "; valid: alpha, beta"
