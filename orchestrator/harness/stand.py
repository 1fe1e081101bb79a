"""What the fixtures of one pytest run share: the saved runs, or the machines."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.base.installed import missing_extra_explained
from orchestrator.harness.claims import JudgedPair
from orchestrator.harness.kernel_log import KernelLog, read_consoles
from orchestrator.harness.marks import collect_keys
from orchestrator.harness.options import PluginOptions, resolve_test
from orchestrator.harness.saved import SavedRuns
from orchestrator.run.judging.judge import Run
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ArmName

if TYPE_CHECKING:
    from orchestrator.harness.live import LiveBar, LiveGuest, LiveHost
    from orchestrator.harness.machines import Machines
    from orchestrator.machine.transport.shell import Shell
    from orchestrator.run.holding import HeldHost

NEEDS = "barometer_needs"


class Stand:
    """Gives each test its run, or its host."""

    def __init__(self, options: PluginOptions) -> None:
        self.options = options
        self._saved = SavedRuns(options.replay) if options.replay is not None else None
        self._runs: dict[tuple[str, int], Run] = {}

    def close(self) -> None:
        if "machines" in self.__dict__:
            self.machines.close()

    @cached_property
    def machines(self) -> Machines:
        """What is live. Raises MissingExtraError if this installation can only judge."""
        with missing_extra_explained():
            # only here: judging saved runs needs no bench
            module: Any = importlib.import_module("orchestrator.harness.machines")
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        out = self.options.out or Path("runs") / f"pytest-{stamp}"
        machines: Machines = module.Machines(out.absolute(), keep=self.options.keep)
        return machines

    def find_shell(self) -> Shell | None:
        """Return the shell of the host that is held now; None if there is none."""
        held = self.machines.held if "machines" in self.__dict__ else None
        return held.ready.host.shell if held is not None else None

    def run(self, node: pytest.Item) -> Run:
        """Return the judged run that a test asks for. A run that is saved stays as it is, however
        often the test is repeated."""
        if self._saved is not None:
            return self._saved.judge(collect_keys(node))
        scenario, text, _ = self._resolve(node)
        self._check_needs(node, scenario)
        attempt = getattr(node, "execution_count", 1)  # of pytest-rerunfailures
        key = scenario.model_dump_json(), attempt
        if key not in self._runs:
            self._runs[key] = self.machines.measure(scenario, text, attempt)
        return self._runs[key]

    def judge_pair(self, node: pytest.Item) -> JudgedPair:
        return JudgedPair(
            self.run(node), lambda name, value: node.user_properties.append((name, str(value)))
        )

    def kernel_log(self, node: pytest.Item, arm: ArmName) -> KernelLog:
        """Return what the arm's kernel printed: in a saved run, or on the test's host until
        now."""
        if self._saved is not None:
            return read_consoles(self.run(node), arm)
        return self.host(node, arm).log

    def host(self, node: pytest.Item, arm: ArmName) -> LiveHost:
        """Return the test's host."""
        held, _ = self.hold(node, arm)
        # only here, and below: judging saved runs needs no bench
        from orchestrator.harness.live import LiveHost  # noqa: PLC0415

        return LiveHost(held)

    def bars(self, node: pytest.Item, arm: ArmName) -> tuple[LiveBar, ...]:
        """Return the BARs of the test's devices."""
        held, text = self.hold(node, arm)
        from orchestrator.harness.live import LiveBar  # noqa: PLC0415

        return tuple(LiveBar(held, text, device) for device in held.ready.devices)

    def guest(self, node: pytest.Item, arm: ArmName) -> LiveGuest:
        held, _ = self.hold(node, arm)
        from orchestrator.harness.live import LiveGuest  # noqa: PLC0415

        return LiveGuest(held)

    def hold(self, node: pytest.Item, arm: ArmName) -> tuple[HeldHost, str]:
        """Return the host of an arm, and the text of its scenario. A test that has only saved runs
        is skipped."""
        if self._saved is not None:
            pytest.skip("needs a live host, and --barometer-replay judges saved runs")
        scenario, text, _ = self._resolve(node)
        self._check_needs(node, scenario)
        return self.machines.hold(scenario, text, arm), text

    def scenario(self, node: pytest.Item) -> Scenario:
        """Return the scenario of a test."""
        return self.run(node).scenario if self._saved is not None else self._resolve(node)[0]

    def _resolve(self, node: pytest.Item) -> tuple[Scenario, str, object]:
        fixtures = getattr(node, "fixturenames", ())
        return resolve_test(node, fixtures, self.options)

    def _check_needs(self, node: pytest.Item, scenario: Scenario) -> None:
        """Fail the test, or skip it if its mark asks for that, unless the machine has what it
        needs."""
        mark = node.get_closest_marker(NEEDS)
        if mark is None:
            return
        missing = self.machines.find_missing(scenario, tuple(map(str, mark.args)))
        if not missing:
            return
        advice = "\n".join(f"{f.name}: {f.what}; {f.fix}" for f in missing)
        if mark.kwargs.get("otherwise") == "skip":
            pytest.skip(advice)
        pytest.fail(f"the machine lacks what the test needs:\n{advice}", pytrace=False)


@contextmanager
def open_stand(config: pytest.Config) -> Iterator[Stand]:
    """Keep what the tests share while the block runs."""
    stand = Stand(PluginOptions.of(config))
    try:
        yield stand
    finally:
        stand.close()
