from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.analysis.trial import TrialResult
from orchestrator.analysis.verdict.comparison import Comparison, compare_trials
from orchestrator.report.text.matrix_text import matrix_report
from orchestrator.scenario.vocabulary import METRICS, ArmName, Metric
from tests.unit.scenarios import scenario

KERNELS: dict[ArmName, dict[str, str]] = {
    "baseline": {"release": "6.12.107+deb13", "source": "deb:old"},
    "candidate": {"release": "7.3.4+deb13", "source": "deb:new"},
}


def cell(values: Mapping[Metric, tuple[float, float]], accel: str = "tcg") -> Comparison:
    """Compare one pair. `values` maps a metric to its values in the baseline's and the candidate's
    trial."""
    results = [
        TrialResult(arm, arm, "measured", samples={m: (v[i],) for m, v in values.items()})
        for i, arm in enumerate(KERNELS)
    ]
    return compare_trials(scenario(), KERNELS, results, 2, accel)


def report(cells: Mapping[str, Comparison | None], *, emulated: bool = False) -> str:
    text = matrix_report("factors", "improved", cells, emulated=emulated)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 76
    assert not [line for line in text.splitlines() if line != line.rstrip()]
    return text


_COSTS = st.just(0.0) | st.floats(1e-12, 1e12)
BOOTED: dict[Metric, tuple[float, float]] = {
    "guest_boot_cost": (25.791, 20.12),
    "bar_maps_per_boot": (12, 12),
    "bar_map_cost_per_boot": (6.0, 0.0012345),
    "bar_unmap_cost_per_boot": (0.55, 0.54),
}


def test_each_cell_is_a_row_with_its_headlines() -> None:
    lines = report({"seabios-1": cell(BOOTED), "ovmf-1": None}).splitlines()
    assert lines[0] == "factors: improved, 2 cells"
    assert lines[2] == "baseline   6.12.107+deb13  (deb:old)"
    assert [" ".join(line.split()) for line in lines[5:10]] == [
        "cell: verdict", "boot maps all maps all unmaps",
        "seabios-1: inconclusive",
        "25.79 s -> 20.12 s 12 -> 12 6 s -> 1.234 ms 550 ms -> 540 ms",
        "ovmf-1: not run",
    ]  # fmt: skip
    assert lines[-1] == "report of each cell: RUN/cells/NAME/report.txt"


def test_what_the_arms_differ_in_is_said_once_and_of_a_cell_where_it_is_not_all() -> None:
    variable = Variable((Differing("setting", "m.p", "N", "Y"),), (), 57, (), ())
    same = replace(cell(BOOTED), variable=variable)
    other = replace(same, variable=replace(variable, checked=56))
    text = report({"a": same, "b": other, "c": None})
    assert text.count("m.p: N | Y") == 1
    worse = replace(same, variable=replace(variable, unplanned=("host.thp",)))
    text = report({"a": same, "b": worse, "c": same})
    assert re.search(r"(?m)^a, c: .*m\.p: N \| Y\b(?!.*host\.thp)", text)
    assert re.search(r"(?m)^b: .*m\.p: N \| Y\b.*host\.thp", text)


def test_metric_that_no_cell_has_is_no_column() -> None:
    text = report(
        {"a": cell({"bar_maps_per_boot": (12, 8)}), "b": cell({"bar_map_cost": (1, 0.1)})}
    )
    assert text.splitlines()[5:8] == [
        "cell: verdict  maps", "a: improved    12 -> 8", "b: improved    -",
    ]  # fmt: skip


def test_cells_of_maps_show_a_map() -> None:
    maps: dict[Metric, tuple[float, float]] = {
        "bar_map_cost": (9.5, 0.001), "pfn_lookups_per_map": (8388608, 32),
    }  # fmt: skip
    text = report({"type1": cell(maps, "exact")})
    assert "9.5 Ginsn -> 1 Minsn" in text
    assert "8388608 -> 32" in text


def test_each_value_has_its_unit() -> None:
    values: dict[Metric, tuple[float, float]] = {"bar_map_cost": (1, 2)}
    text = report({"tcg": cell(values), "exact": cell(values, "exact")})
    assert "1 s -> 2 s" in text
    assert "1 Ginsn -> 2 Ginsn" in text


@pytest.mark.parametrize("length", [10, 40, 64])
def test_table_fits_a_mail(length: int) -> None:
    wide: dict[Metric, tuple[float, float]] = {
        "guest_boot_cost": (12345678.9, 0.000123456),
        "bar_maps_per_boot": (12, 12),
        "bar_map_cost_per_boot": (0.00123456, 1.23456e-05),
        "bar_unmap_cost_per_boot": (123456.7, 0.0123456),
    }
    name = "x" * length
    lines = report({name: cell(wide), "short": cell(BOOTED)}).splitlines()
    assert any(line.startswith(name) for line in lines)


def test_cells_that_are_too_wide_are_a_line_for_each_value() -> None:
    text = report({"a": cell(dict.fromkeys(BOOTED, (12.34, 0.01234)), "exact")})
    assert "\na: improved\n    boot        12.34 Ginsn -> 12.34 Minsn\n" in text


@given(
    st.dictionaries(
        st.text(max_size=100),
        st.none() | st.dictionaries(st.sampled_from([*METRICS]), st.tuples(_COSTS, _COSTS)),
        min_size=1, max_size=3,
    ),
    st.sampled_from(["kvm", "tcg", "exact"]),
)  # fmt: skip
def test_no_line_is_longer_than_mail_has_columns(
    cells: dict[str, dict[Metric, tuple[float, float]] | None], accel: str
) -> None:
    report({name: None if costs is None else cell(costs, accel) for name, costs in cells.items()})


def test_emulated_seconds_are_said_to_be() -> None:
    assert "EMULATED" in report({"a": cell(BOOTED)}, emulated=True)
    assert "EMULATED" not in report({"a": cell(BOOTED)})


def test_matrix_of_which_nothing_has_run_is_shown() -> None:
    lines = report({"a": None}, emulated=True).splitlines()
    assert lines[0] == "factors: improved, 1 cell"
    assert lines[2:4] == ["cell: verdict", "a: not run"]
    assert len(lines) == 6
