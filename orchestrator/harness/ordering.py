"""The order of live tests: those that share a machine stand together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.harness.options import PluginOptions, machine_digest, resolve_test, run_digest

_MEASURES = frozenset({"ab", "run_dir"})
_HOLDS = frozenset({"bar", "devices", "guest", "host", "kmsg"})
_TIMED = "timed"
"""Group of all tests whose hosts have times: one worker of pytest-xdist runs them."""
Groups = Mapping[str, str]
"""Test -> what it shares with others: the run that it is judged by, or the host."""


def group_by_machine(items: Iterable[pytest.Item], config: pytest.Config) -> Groups:
    """Return the groups of tests. Each gets a mark for pytest-xdist. Raises ScenarioError for what
    is wrong with the scenarios of tests."""
    options, groups, wrong = PluginOptions.of(config), {}, []
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        try:
            scenario, _, _ = resolve_test(item, fixtures, options)
        except ScenarioError as exc:
            wrong.append(str(exc))
            continue
        if options.replay is not None or not (_MEASURES | _HOLDS) & set(fixtures):
            continue
        if _MEASURES & set(fixtures):  # first: they end a host that is held
            group = f"0-run-{run_digest(scenario)}"
        else:
            arm = getattr(getattr(item, "callspec", None), "params", {}).get("arm", "")
            group = f"1-host-{machine_digest(scenario)}-{arm}"
        groups[item.nodeid] = group
        item.add_marker(pytest.mark.xdist_group(group if scenario.host.exact else _TIMED))
    if wrong:
        raise ScenarioError("\n".join(dict.fromkeys(wrong)), reason=Reason.SCENARIO)
    return groups


def order_by_machine(items: Sequence[pytest.Item], groups: Groups) -> list[pytest.Item]:
    """Return the tests that boot nothing in their order, then the others by groups, each where its
    first test was."""
    places: dict[str, int] = {}

    def place(item: pytest.Item) -> tuple[str, int]:
        group = groups.get(item.nodeid.partition("@")[0], "")  # pytest-xdist appends @GROUP
        return group[:1], places.setdefault(group, len(places))

    return sorted(items, key=place)
