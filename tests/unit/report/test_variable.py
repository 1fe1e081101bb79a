from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.analysis.conditions.variable import Differing, Variable
from orchestrator.report.words.variable_words import describe_differing, describe_variable

KNOB = Differing("setting", "vfio_iommu_type1.disable_hugepages", "N", "Y")
CONFIG = Differing("kernel", "configuration (3 symbols)", "", "")
ALL = Variable((KNOB,), ("same kernel 7.3.4",), 57, (), ())


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (ALL, "Arms differ in: vfio_iommu_type1.disable_hugepages: N | Y; nothing else (same"
         " kernel 7.3.4). Checked: 57 conditions the same."),
        (replace(ALL, differs=(Differing("kernel", "kernel", "6.12", "7.3"), CONFIG), same=()),
         "Arms differ in: kernel: 6.12 | 7.3; configuration (3 symbols); nothing else. Checked: 57"
         " conditions the same."),
        (replace(ALL, unplanned=("runner.qemu", "host.thp"), checked=1),
         "Arms differ in: vfio_iommu_type1.disable_hugepages: N | Y (same kernel 7.3.4). NOT all"
         " that differs: runner.qemu, host.thp. Checked: 1 condition the same."),
        (replace(ALL, allowed=("runner.cpu",)),
         "Arms differ in: vfio_iommu_type1.disable_hugepages: N | Y (same kernel 7.3.4). Also"
         " different, which is allowed: runner.cpu. Checked: 57 conditions the same."),
        (replace(ALL, checked=None),
         "Arms differ in: vfio_iommu_type1.disable_hugepages: N | Y (same kernel 7.3.4). Whether"
         " that is all is not known: not every arm recorded its conditions."),
        (replace(ALL, differs=(), same=("same kernel 7.3.4", "nosmt in both")),
         "Arms do not differ (A/A): same kernel 7.3.4, nosmt in both. Checked: 57 conditions the"
         " same."),
        (None, ""),
    ],
)  # fmt: skip
def test_what_arms_differ_in_is_said_and_whether_that_is_all(
    found: Variable | None, said: str
) -> None:
    assert describe_variable(found) == said


def test_number_of_conditions_can_be_left_out_but_never_that_they_differ() -> None:
    assert "Checked" not in describe_variable(ALL, counted=False)
    assert "NOT all" in describe_variable(replace(ALL, unplanned=("host.thp",)), counted=False)
    assert "not known" in describe_variable(replace(ALL, checked=None), counted=False)


def test_nothing_else_is_only_said_where_that_was_checked() -> None:
    for less in ({"checked": None}, {"unplanned": ("a.b",)}, {"allowed": ("a.b",)}):
        assert "nothing else" not in describe_variable(replace(ALL, **less))


def test_things_that_differ_are_a_list() -> None:
    assert describe_differing([KNOB, CONFIG]) == (
        "vfio_iommu_type1.disable_hugepages: N | Y; configuration (3 symbols)"
    )
