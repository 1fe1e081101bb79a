from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.report.words.variable_words import describe_differing, describe_variable
from tests.unit.stable import has_in_order

KNOB = Differing("setting", "vfio_iommu_type1.disable_hugepages", "N", "Y")
CONFIG = Differing("kernel", "configuration (3 symbols)", "", "")
DISABLED = "vfio_iommu_type1.disable_hugepages: N | Y"
NOTHING_ELSE = "nothing else"
ALL = Variable((KNOB,), ("same kernel 7.3.4",), 57, (), ())


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        (ALL, (DISABLED, "same kernel 7.3.4", "57")),
        (replace(ALL, differs=(Differing("kernel", "kernel", "6.12", "7.3"), CONFIG), same=()),
         ("kernel: 6.12 | 7.3", "configuration (3 symbols", "57")),
        (replace(ALL, unplanned=("runner.qemu", "host.thp"), checked=1),
         (DISABLED, "same kernel 7.3.4", "runner.qemu", "host.thp", "1")),
        (replace(ALL, allowed=("runner.cpu",)),
         (DISABLED, "same kernel 7.3.4", "allowed", "runner.cpu", "57")),
        (replace(ALL, checked=None), (DISABLED, "same kernel 7.3.4")),
        (replace(ALL, differs=(), same=("same kernel 7.3.4", "nosmt in both")),
         ("A/A", "same kernel 7.3.4", "nosmt in both", "57")),
    ],
)  # fmt: skip
def test_what_arms_differ_in_is_said_and_whether_that_is_all(
    variable: Variable, words: tuple[str, ...]
) -> None:
    assert has_in_order(describe_variable(variable), *words)


def test_golden_text_of_a_variable() -> None:
    assert describe_variable(ALL) == (
        f"Arms differ in: {DISABLED}; {NOTHING_ELSE} (same kernel 7.3.4). Checked: 57 conditions"
        " the same."
    )
    assert describe_variable(None) == ""


def test_number_of_conditions_can_be_left_out_but_never_that_they_differ() -> None:
    assert "Checked" not in describe_variable(ALL, counted=False)
    assert "host.thp" in describe_variable(replace(ALL, unplanned=("host.thp",)), counted=False)
    unchecked = describe_variable(replace(ALL, checked=None), counted=False)
    assert unchecked not in describe_variable(ALL)


def test_nothing_else_is_only_said_where_that_was_checked() -> None:
    for less in ({"checked": None}, {"unplanned": ("a.b",)}, {"allowed": ("a.b",)}):
        assert NOTHING_ELSE not in describe_variable(replace(ALL, **less))


def test_things_that_differ_are_a_list() -> None:
    assert describe_differing([KNOB, CONFIG]) == (
        "vfio_iommu_type1.disable_hugepages: N | Y; configuration (3 symbols)"
    )
