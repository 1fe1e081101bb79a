"""Marks that merge, and that are checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.harness.marks import merge_tables
from orchestrator.scenario.loading import set_key

pytest_plugins = ["pytester"]
# the plugin is loaded by its entry point; -p would warn where it was imported before
PLUGIN = ("-p", "no:cacheprovider")

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(tuple)
settings = st.lists(st.tuples(paths, st.integers()), max_size=8)


def nested(path: tuple[str, ...], value: object) -> dict[str, Any]:
    whole: Any = value
    for part in reversed(path):
        whole = {part: whole}
    return dict(whole)


def merged_changes(changes: list[tuple[tuple[str, ...], int]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for change in changes:
        merged = merge_tables(merged, nested(*change))
    return merged


def leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    found: set[tuple[str, ...]] = set()
    for key, value in table.items():
        path = (*above, key)
        found |= leaves(value, path) if isinstance(value, Mapping) else {path}
    return found


@given(settings)
def test_marks_merge_as_overrides_do(changes: list[tuple[tuple[str, ...], int]]) -> None:
    """One key after another, as `--set` sets them, if no key is both a value and a table."""
    names = {path for path, _ in changes}
    clash = any(p != q and q[: len(p)] == p for p in names for q in names)
    merged = merged_changes(changes)
    if not clash:
        document = tomlkit.document()
        for path, value in changes:
            set_key(document, path, value)
        assert merged == document.unwrap()
    assert leaves(merged) <= names


@given(settings, settings)
def test_merging_changes_neither_table(
    first: list[tuple[tuple[str, ...], int]], second: list[tuple[tuple[str, ...], int]]
) -> None:
    base, over = merged_changes(first), merged_changes(second)
    before = repr((base, over))
    merged = merge_tables(base, over)
    merged["added"] = 1
    assert repr((base, over)) == before


def test_a_kernel_and_another_kind_take_the_whole_table() -> None:
    kernel = {"kernel": {"deb": "linux-image-cloud-amd64", "suite": "trixie"}}
    assert merge_tables(kernel, {"kernel": {"tree": "x"}}) == {"kernel": {"tree": "x"}}
    nested_host = {"host": {"kind": "nested", "accel": "exact"}}
    metal = {"kind": "metal", "address": "root@gpu"}
    assert merge_tables(nested_host, {"host": metal}) == {"host": metal}


TEST = """\
import pytest

pytestmark = {module}

{klass}
class TestBar:
    {function}
    @pytest.mark.parametrize("leaf", [1, pytest.param(2, marks={parameter})])
    def test_it(self, leaf):
        open("it-ran", "w").close()
"""
FINE = 'pytest.mark.barometer("map.repeats=3", device={"kind": "ivshmem"})'
WRONG = [
    ('pytest.mark.barometer(device={"baar": "1GiB"})', "device.baar"),
    ('pytest.mark.barometer("device.bar=3GiB")', "device.bar"),
    ('pytest.mark.barometer(workload="mapp")', "workload"),
    ('pytest.mark.barometer("device.bar")', "key=value"),
    ("pytest.mark.barometer(7)", "7"),
    ('pytest.mark.barometer(expect={"bar_map_cost": "faster"})', "expect"),
]
PLACES = {"module": 3, "klass": 5, "function": 7, "parameter": 8}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("mark", "names"), WRONG)
def test_a_wrong_mark_is_found_at_collection(
    pytester: pytest.Pytester, place: str, mark: str, names: str
) -> None:
    marks = {
        "module": FINE, "klass": f"@{FINE}", "function": f"@{FINE}", "parameter": FINE,
        place: mark if place in ("module", "parameter") else f"@{mark}",
    }  # fmt: skip
    path = pytester.makepyfile(test_marks=TEST.format(**marks))
    done = pytester.runpytest_inprocess(*PLUGIN)
    text = done.stdout.str() + done.stderr.str()
    assert done.ret not in (0, 1, 5)
    assert names in text
    is_located = "key=value" not in names and names != "7"
    line = PLACES[place] if is_located else None
    assert f"{path}:{line}:" in text if line else f"{path}:" in text
    assert not (pytester.path / "it-ran").exists()


def test_right_marks_of_all_places_are_taken_together(pytester: pytest.Pytester) -> None:
    marks = {
        "module": 'pytest.mark.barometer(workload="map", device={"bar": "1GiB"})',
        "klass": '@pytest.mark.barometer("map.repeats=3")',
        "function": '@pytest.mark.barometer(device={"kind": "pci-testdev"})',
        "parameter": 'pytest.mark.barometer("device.bar=2GiB")',
    }
    pytester.makepyfile(test_marks=TEST.format(**marks))
    pytester.makeconftest(
        """
        from orchestrator.harness.options import PluginOptions, resolve_test

        def pytest_collection_modifyitems(config, items):
            for item in items:
                scenario, text, _ = resolve_test(item, (), PluginOptions.of(config))
                print(scenario.device.bar >> 30, scenario.device.kind, scenario.map.repeats)
        """
    )
    done = pytester.runpytest_inprocess(*PLUGIN, "-s")
    assert done.ret == 0
    assert "1 pci-testdev 3\n2 pci-testdev 3" in done.stdout.str()


@pytest.mark.parametrize("mark", ["barometer_arms('baselin')", "barometer_needs('kmv')"])
def test_a_wrong_name_is_found_at_collection(pytester: pytest.Pytester, mark: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.{mark}
        def test_it(arm):
            open("it-ran", "w").close()
        """
    )
    done = pytester.runpytest_inprocess(*PLUGIN)
    assert done.ret not in (0, 1, 5)
    assert mark.split("'")[1] in done.stdout.str()
    assert not (pytester.path / "it-ran").exists()
