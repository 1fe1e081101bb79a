from __future__ import annotations

from orchestrator.analysis.conditions.conditions import compare_conditions
from orchestrator.report.text.conditions_text import describe_conditions
from tests.unit.stable import has_in_order

BEFORE = {"host.kernel.release": "6.12", "runner.qemu": "10.0", "host.thp": "always"}
AFTER = BEFORE | {"host.kernel.release": "7.3"}


def describe(after: dict[str, str], *allow: str, configs: bool = False) -> list[str]:
    texts = ("CONFIG_HZ=250\nCONFIG_USB=y\n", "CONFIG_HZ=1000\n") if configs else (None, None)
    conditions = compare_conditions({"baseline": [BEFORE], "candidate": [after]}, texts, allow)
    return describe_conditions(conditions).splitlines()


def test_what_was_not_planned_stands_first() -> None:
    lines = describe(AFTER | {"runner.qemu": "11.0"})
    assert lines[:3] == [
        "Conditions: 1 the same in both arms.",
        "  NOT PLANNED: runner.qemu: 10.0 | 11.0",
        "  planned: host.kernel.release: 6.12 | 7.3",
    ]


def test_what_was_allowed_is_said_as_such() -> None:
    lines = describe(AFTER | {"runner.qemu": "11.0"}, "runner.*")
    assert [line for line in lines if has_in_order(line, "allowed", "runner.qemu", "10.0 | 11.0")]


def test_configurations_are_compared_where_they_were_recorded() -> None:
    assert describe(AFTER)[-1] == "  the kernels' configurations were not recorded"
    lines = describe(AFTER, configs=True)
    assert "    CONFIG_HZ: 250 | 1000" in lines
    assert "CONFIG_USB" not in "\n".join(lines)
    assert lines[-1] == "    all: RUN/kernels/*.config"


def test_what_one_arm_lacks_is_said() -> None:
    lines = describe(AFTER | {"runner.smt": "1"})
    assert [line for line in lines if has_in_order(line, "one arm", "runner.smt")]


def test_nothing_recorded_is_no_section() -> None:
    assert describe_conditions(None) == ""
    assert describe_conditions(compare_conditions({"baseline": [], "candidate": []})) == ""
