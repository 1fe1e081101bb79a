from __future__ import annotations

import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ScenarioError
from orchestrator.formats.units import GIB
from orchestrator.scenario.factors import (
    MOST_CELLS,
    ScenarioFile,
    build_file_schema,
    format_toml,
    list_factor_keys,
    load_scenarios,
    parse_scenarios,
)
from orchestrator.scenario.kernel_forms import DebKernel, DirKernel
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from tests.unit.scenarios import MINIMAL

SCENARIOS = Path(__file__).parents[2] / "fixtures/scenarios"
SHIPPED = sorted(SCENARIOS.glob("*.toml"))
FIRMWARE = '"guest.firmware" = ["seabios", "ovmf"]\n'
COUNT = '"device.count" = [1, 4]\n'


def matrix(*lines: str, overrides: tuple[str, ...] = (), base: str = MINIMAL) -> ScenarioFile:
    return parse_scenarios(base + "[matrix]\n" + "".join(lines), "x.toml", overrides=overrides)


def error_of(*lines: str, overrides: tuple[str, ...] = (), base: str = MINIMAL) -> str:
    with pytest.raises(ScenarioError) as caught:
        matrix(*lines, overrides=overrides, base=base)
    assert caught.value.exit_code == 2
    return str(caught.value)


def scenarios(file: ScenarioFile) -> list[Scenario]:
    return [cell.scenario for cell in file.cells]


def cell_names(file: ScenarioFile) -> list[str]:
    return [cell.name for cell in file.cells]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenario_is_valid(path: Path) -> None:
    loaded = load_scenarios(path)
    assert loaded.text == path.read_text()
    assert tomllib.loads(loaded.text)["name"] == loaded.name
    assert loaded.has_matrix == ("matrix" in tomllib.loads(loaded.text))


def test_there_are_shipped_scenarios() -> None:
    assert SHIPPED


def test_shipped_factors_are_eight_cells_of_the_main_jobs_kernels() -> None:
    file = load_scenarios(SCENARIOS / "factors.toml")
    assert cell_names(file) == [
        "trixie-seabios-1", "trixie-seabios-4", "trixie-ovmf-1", "trixie-ovmf-4",
        "trixie-backports-seabios-1", "trixie-backports-seabios-4",
        "trixie-backports-ovmf-1", "trixie-backports-ovmf-4",
    ]  # fmt: skip
    main = load_scenarios(SCENARIOS / "debian-6.12-vs-7.toml").cells[0].scenario
    for cell in file.cells:
        assert cell.scenario.arms == main.arms
        assert cell.scenario.device.bar == 32 * GIB
        assert cell.scenario.trace.passes == ("timing",)
        assert cell.scenario.nested.memory == 6 * GIB
        assert cell.scenario.expect == {}


def test_file_without_a_matrix_is_one_cell_without_a_name() -> None:
    overrides = ["device.bar=1GiB"]
    file = parse_scenarios(MINIMAL, "x.toml", overrides=overrides)
    scenario, text = parse_scenario(MINIMAL, "x.toml", overrides=overrides)
    [cell] = file.cells
    assert (cell.name, cell.settings, cell.scenario, cell.text) == ("", {}, scenario, text)
    assert (file.name, file.text, file.has_matrix) == ("small", text, False)
    assert file.select_cells([]) == file.cells


def test_cells_are_the_product_in_the_files_order_the_last_key_fastest() -> None:
    file = matrix(FIRMWARE, COUNT)
    assert cell_names(file) == ["seabios-1", "seabios-4", "ovmf-1", "ovmf-4"]
    assert file.cells[3].settings == {"guest.firmware": "ovmf", "device.count": 4}
    assert list(file.cells[3].settings) == ["guest.firmware", "device.count"]
    last = file.cells[3].scenario
    assert last.guest is not None
    assert (last.guest.firmware, last.device.count) == ("ovmf", 4)
    assert cell_names(matrix(COUNT, FIRMWARE)) == ["1-seabios", "1-ovmf", "4-seabios", "4-ovmf"]


@pytest.mark.parametrize(
    "lines",
    [
        'guest.firmware = ["seabios", "ovmf"]\ndevice.count = [1, 4]\n',
        '[matrix.guest]\nfirmware = ["seabios", "ovmf"]\n[matrix.device]\ncount = [1, 4]\n',
        'guest = { firmware = ["seabios", "ovmf"] }\n"device.count" = [1, 4]\n',
        '"guest"."firmware" = ["seabios", "ovmf"]\n"device".count = [1, 4]\n',
    ],
)
def test_quoted_keys_and_tables_are_the_same(lines: str) -> None:
    assert matrix(lines).cells == matrix(FIRMWARE, COUNT).cells


def test_matrix_may_stand_anywhere() -> None:
    first = parse_scenarios('matrix."device.count" = [1, 4]\n' + MINIMAL, "x.toml")
    split = MINIMAL.replace("[arms.baseline]", "[matrix.device]\ncount = [1, 4]\n[arms.baseline]")
    for file in (first, parse_scenarios(split, "x.toml")):
        assert [c.scenario for c in file.cells] == [c.scenario for c in matrix(COUNT).cells]


def test_text_of_a_cell_is_a_scenario_file_of_its_own() -> None:
    base = "# why this is measured\n" + MINIMAL
    for cell in matrix(FIRMWARE, COUNT, base=base).cells:
        assert cell.text.startswith("# why this is measured\n")
        assert "matrix" not in tomllib.loads(cell.text)
        assert parse_scenario(cell.text, "x.toml")[0] == cell.scenario
        [alone] = parse_scenarios(cell.text, "x.toml").cells
        assert alone.scenario == cell.scenario
        assert cell.scenario.name == f"small-{cell.name}"


def test_key_that_only_the_matrix_has_is_enough() -> None:
    base = MINIMAL.replace('[guest]\nkernel = { dir = "guest" }\n', "")
    file = matrix('"guest.kernel" = [{ dir = "a/6.12" }, { dir = "b/7.3/" }]\n', base=base)
    assert cell_names(file) == ["6.12", "7.3"]
    guest = file.cells[0].scenario.guest
    assert guest is not None
    assert guest.kernel == DirKernel(dir=Path("a/6.12").resolve())


def test_folder_of_a_kernel_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(MINIMAL + '[matrix]\n"guest.kernel" = [{ dir = "k" }]\n')
    [cell] = load_scenarios(path).cells
    assert cell.scenario.guest is not None
    assert cell.scenario.guest.kernel == DirKernel(dir=tmp_path / "k")


def test_part_of_a_kernel_can_be_a_factor() -> None:
    base = MINIMAL.replace('{ dir = "guest" }', '{ deb = "linux-image-amd64", suite = "sid" }')
    file = matrix('guest.kernel.suite = ["trixie", "trixie-backports"]\n', base=base)
    assert cell_names(file) == ["trixie", "trixie-backports"]
    guest = file.cells[1].scenario.guest
    assert guest is not None
    assert guest.kernel == DebKernel(deb="linux-image-amd64", suite="trixie-backports")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ('"device.mmap" = [true, false]', ["mmap", "no-mmap"]),
        ('"device.bar" = ["1GiB", "32 GiB"]', ["1GiB", "32-GiB"]),
        ('"guest.cmdline" = ["", "a/../b=c"]', ["cmdline", "a-..-b-c"]),
        ('"guest.cmdline" = ["../..", "/"]', ["1-cmdline", "2-cmdline"]),
        ('"trace.passes" = [["plain"], ["timing", "counts"]]', ["plain", "timing-counts"]),
        ('"guest.kernel" = [{ deb = "aa", suite = "sid" }, { deb = "bb", suite = "sid" }]',
         ["1-sid", "2-sid"]),
        ('"guest.kernel" = [{ deb = "linux-a", version = "6.12.1-1~b+c" }]', ["6.12.1-1-b-c"]),
    ],
)  # fmt: skip
def test_name_of_a_cell_is_made_of_its_values(line: str, names: list[str]) -> None:
    assert cell_names(matrix(line + "\n")) == names


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('"guest.firmwear" = ["ovmf"]',
         'x.toml: matrix.guest.firmwear: unknown key; did you mean "guest.firmware"?'),
        ("device.conut = [1]", 'matrix.device.conut: unknown key; did you mean "device.count"?'),
        ('"device" = [{ bar = "1GiB" }]', "matrix.device: unknown key"),
        ('"guest.kernel.dri" = ["x"]', 'did you mean "guest.kernel.dir"?'),
        ("x = [1]", "matrix.x: unknown key; valid: host.kind, host.accel"),
        ('"device.count" = []', "matrix.device.count: "),
        ('"device.count" = 4', "matrix.device.count: expected a list of values, for example [4]"),
        ('"guest.firmware" = "ovmf"', 'expected a list of values, for example ["ovmf"]'),
        ('"device.count" = [1, 4, 1]', "matrix.device.count: names 1 twice"),
        ('"guest.kernel" = [{ dir = "a" }, { dir = "a" }]', 'names {dir = "a"} twice'),
        ('"device.bar" = ["1GiB", "1024MiB"]',
         'matrix.device.bar: "1GiB" and "1024MiB" are the same'),
        ('"device.count" = [1]\ndevice.count = [4]',
         "matrix.device.count: named twice, as a quoted key and in tables"),
        ('"arms.baseline.kernel" = [{ dir = "x" }]', "matrix.arms.baseline.kernel: arms "),
        ("trials.pairs = [1, 2]", "matrix.trials.pairs: trials "),
        ('"expect.bar_map_cost" = ["improved"]', "matrix.expect.bar_map_cost: expect "),
        ('name = ["a", "b"]', "matrix.name: name "),
        ('workload = ["map", "guest-boot"]', "every cell asks the same question"),
        ("matrix.x = [1]", "matrix.matrix.x: matrix "),
        ('"guest.firmware" = ["seabios", "uefi"]',
         'x.toml: cell uefi: guest.firmware: "uefi" is not one of the valid values'),
        ('"device.bar" = ["1GiB", "3GiB"]', "x.toml: cell 3GiB: device.bar: a BAR is a power"),
        ('"host.memory" = ["4GiB", "1GiB"]', "x.toml: cell 1GiB: guest.memory is 512MiB"),
        ('"guest.cpus" = [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"host.cpus" = [1, 2, 3, 4, 5, 6, 7, 8]',
         "x.toml: matrix: 9 of guest.cpus x 8 of host.cpus are 72 cells, more than 64"),
    ],
)  # fmt: skip
def test_wrong_matrix_is_refused(line: str, expected: str) -> None:
    assert expected in error_of(line + "\n")


def test_matrix_that_is_no_table_is_refused() -> None:
    with pytest.raises(ScenarioError, match="matrix: expected a table"):
        parse_scenarios("matrix = 3\n" + MINIMAL, "x.toml")


def test_most_cells_are_accepted() -> None:
    eight = "[1, 2, 3, 4, 5, 6, 7, 8]\n"
    file = matrix('"guest.cpus" = ' + eight, '"host.cpus" = ' + eight)
    assert len(set(cell_names(file))) == MOST_CELLS


def test_overrides_are_applied_before_the_expansion() -> None:
    file = matrix(COUNT, overrides=("device.bar=1GiB", "trials.pairs=3"))
    assert [c.scenario.device.bar for c in file.cells] == [GIB, GIB]
    assert [c.scenario.trials.pairs for c in file.cells] == [3, 3]
    assert scenarios(parse_scenarios(file.text, "x.toml")) == scenarios(file)


@pytest.mark.parametrize("key", ["matrix.device.count", 'matrix."device.count"'])
@pytest.mark.parametrize("lines", [COUNT, "device.count = [1, 4]\n", "[matrix.device]\ncount=[1]"])
def test_override_replaces_a_factor_in_its_place(key: str, lines: str) -> None:
    file = matrix(lines, overrides=(f"{key}=[2, 3]", "matrix.guest.firmware=['ovmf']"))
    assert cell_names(file) == ["2-ovmf", "3-ovmf"]
    assert scenarios(parse_scenarios(file.text, "x.toml")) == scenarios(file)


def test_override_keeps_the_order_of_kernels() -> None:
    kernels = '"guest.kernel" = [\n  { dir = "a" }, # old\n  { dir = "b" },\n]\n'
    file = matrix(kernels, COUNT, overrides=("matrix.device.count=[2]",))
    assert cell_names(file) == ["a-2", "b-2"]


@pytest.mark.parametrize("override", ["matrix={}", "matrix = { }"])
def test_override_takes_the_matrix_away(override: str) -> None:
    file = matrix(FIRMWARE, COUNT, overrides=(override,))
    assert not file.has_matrix
    assert file.cells[0].scenario == parse_scenario(MINIMAL, "x")[0]


@pytest.mark.parametrize(
    ("line", "override"),
    [
        (COUNT, "device.count=2"),
        ('"guest.kernel" = [{ dir = "a" }]\n', "guest.kernel.dir=b"),
        ('"guest.kernel" = [{ dir = "a" }]\n', 'guest.kernel={ dir = "b" }'),
    ],
)
def test_override_that_the_matrix_would_undo_is_refused(line: str, override: str) -> None:
    message = error_of(line, overrides=(override,))
    assert f"--set {override}: [matrix] gives" in message
    assert "or --cell NAME, or --set matrix={}" in message


def test_cells_are_chosen_in_the_files_order() -> None:
    file = matrix(FIRMWARE, COUNT)
    assert [c.name for c in file.select_cells(["ovmf-4", "seabios-1"])] == ["seabios-1", "ovmf-4"]
    assert file.select_cells([]) == file.cells
    with pytest.raises(ScenarioError, match=r'no such cell; did you mean "seabios-4"\?'):
        file.select_cells(["seabois-4"])
    with pytest.raises(ScenarioError, match=r"small has no \[matrix\]"):
        parse_scenarios(MINIMAL, "x.toml").select_cells(["seabios-1"])


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "guest.firmware": st.sampled_from(["seabios", "ovmf"]),
    "guest.viommu": st.sampled_from(["none", "intel"]),
    "guest.cmdline": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=90),
    "guest.kernel": st.fixed_dictionaries({"dir": st.text("ab/.~ é", min_size=1, max_size=6)}),
    "device.count": st.integers(1, 8),
    "device.mmap": st.booleans(),
}
MATRIX = st.dictionaries(
    st.sampled_from(sorted(VALUES)), st.none(), min_size=1, max_size=3
).flatmap(
    lambda keys: st.fixed_dictionaries(
        {key: st.lists(VALUES[key], min_size=1, max_size=3, unique_by=format_toml) for key in keys}
    )
)


@given(MATRIX)
def test_any_matrix_is_a_product_of_cells_that_run_alone_or_is_refused(
    factors: dict[str, list[Any]],
) -> None:
    lines = (f'"{key}" = {format_toml(values)}\n' for key, values in factors.items())
    try:
        file = matrix(*lines)
    except ScenarioError as exc:
        assert "are the same" in str(exc)  # noqa: PT017  # folders may be, spelled differently
        return
    expected = [dict(zip(factors, v, strict=True)) for v in itertools.product(*factors.values())]
    assert [cell.settings for cell in file.cells] == expected
    names = cell_names(file)
    assert len(set(names)) == len(names)
    for cell in file.cells:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", cell.name)
        assert len(cell.name) < 70
        assert parse_scenario(cell.text, "x.toml")[0] == cell.scenario


@given(st.text(max_size=40))
def test_any_text_in_a_matrix_is_read_or_refused(text: str) -> None:
    try:
        file = matrix(text)
    except ScenarioError:
        return
    assert file.cells


@given(st.sampled_from(["matrix", "matrix.device.count", "matrix.x"]), st.text(max_size=20))
def test_any_override_of_a_matrix_is_applied_or_refused(key: str, value: str) -> None:
    try:
        file = matrix(COUNT, FIRMWARE, overrides=(f"{key}={value}",))
    except ScenarioError:
        return
    assert scenarios(parse_scenarios(file.text, "x.toml")) == scenarios(file)


def test_schema_describes_every_factor() -> None:
    schema = json.loads(json.dumps(build_file_schema()))
    assert set(schema["properties"]) == {*Scenario.model_fields, "matrix"}
    factors = schema["properties"]["matrix"]["properties"]
    assert set(factors) == set(list_factor_keys())
    assert {"guest.kernel", "guest.firmware", "device.count", "map.sizes"} <= set(factors)
    assert not [k for k in factors if k.startswith(("arms", "trials", "expect", "name"))]
    assert factors["guest.firmware"]["items"]["enum"] == ["seabios", "ovmf"]
    assert factors["device.count"]["minItems"] == 1
    assert "default" not in factors["device.count"]["items"]
