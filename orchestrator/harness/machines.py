"""The live half: machines that boot once for all tests that ask for the same, and runs that are
measured. This process has one machine at a time; workers of pytest-xdist have one each."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

from filelock import FileLock
from rich.console import Console

from orchestrator.analysis.doctor.finding import STATUSES, Finding
from orchestrator.analysis.verdict.power import check_power
from orchestrator.base.cache import Cache
from orchestrator.base.errors import EvidenceError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.installed import missing_extra_explained
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir
from orchestrator.harness.options import machine_digest, run_digest
from orchestrator.run.doctor import diagnose
from orchestrator.run.holding import HeldHost, held_host
from orchestrator.run.judging.judge import Run, judge, stop_rule
from orchestrator.run.kernels import RunKernels
from orchestrator.run.prepare import list_trials
from orchestrator.run.trials import Runner, ready_bench, ready_runner, run_plan
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import has_control, has_warm_up
from orchestrator.scenario.vocabulary import ArmName

MachineKey = tuple[str, ArmName]
"""What a host depends on: digest of its scenario, and its arm."""
_MORE_PAIRS = 2
"""Pairs that a repeated test adds to its run: a block."""


class Machines:
    """Everything live of one pytest run. Nothing boots until a test asks for it."""

    def __init__(self, out: Path, *, keep: bool) -> None:
        """`out`: folder for runs and for what held hosts leave. `keep`: that of `ready_runner`."""
        self._out, self._keep = out, keep
        self._stack = ExitStack()
        self._runner: Runner | None = None
        self._current: tuple[MachineKey, ExitStack, HeldHost] | None = None
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self.boots: list[MachineKey] = []
        """Hosts that were booted for tests, in order."""

    def close(self) -> None:
        """End the host, and put everything back."""
        try:
            self._give_back()
        finally:
            self._stack.close()

    @property
    def held(self) -> HeldHost | None:
        """The host that is booted now."""
        return self._current[2] if self._current is not None else None

    def hold(self, scenario: Scenario, text: str, arm: ArmName) -> HeldHost:
        """Return the host of an arm. It is booted unless the last test had it, too, and it still
        works."""
        digest = machine_digest(scenario)
        if self._current is not None:
            key, _, held = self._current
            if key == (digest, arm) and held.ready.host.is_alive():
                held.ready.host.check()
                return held
        self._give_back()
        out = self._out / "hosts" / digest[:8] / arm
        with ExitStack() as stack:
            stack.enter_context(_turn(scenario))
            runner = self._ready_runner()
            stack.enter_context(only_writer(out))
            bench = stack.enter_context(ready_bench(scenario, text, out, runner))
            held = stack.enter_context(held_host(bench, arm))
            self._current = (digest, arm), stack.pop_all(), held
        self.boots.append((digest, arm))
        return held

    def measure(self, scenario: Scenario, text: str, attempt: int) -> Run:
        """Measure what is not measured yet, and judge it. `attempt`: number of times that the test
        has run; each one after the first adds pairs to the run, and all pairs count."""
        self._give_back()  # a host beside it would cost time
        check_power(scenario)
        folder = self._out / "runs" / f"{scenario.name}-{run_digest(scenario)[:8]}"
        if attempt > 1 and scenario.trials.until is None:
            scenario, text = _add_pairs(scenario, text, _MORE_PAIRS * (attempt - 1))
            if (folder / "plan.json").exists():
                RunDir.open(folder).extend(text, list_trials(scenario))
        with _turn(scenario):
            run_plan(scenario, text, folder, self._ready_runner(), stop_rule(scenario))
        run = judge(RunDir.open(folder))
        run.save()
        return run

    def find_missing(self, scenario: Scenario, names: tuple[str, ...]) -> list[Finding]:
        """Return the findings of these names that are warnings or problems of the machine that
        carries the scenario's hosts. Raises EvidenceError for a name that the doctor does not tell
        about for this kind of host: what was not looked at is not there."""
        digest = machine_digest(scenario)
        if digest not in self._findings:
            with missing_extra_explained():
                self._findings[digest] = diagnose(scenario, None, None, Cache()).findings
        findings = [f for f in self._findings[digest] if f.name in names]
        if unknown := sorted({*names} - {finding.name for finding in findings}):
            raise EvidenceError(
                f"the doctor tells nothing about {', '.join(unknown)} for {scenario.host.kind}"
                " hosts", reason=Reason.NOT_JUDGED,
            )  # fmt: skip
        return [f for f in findings if STATUSES.index(f.status) <= STATUSES.index("warning")]

    def _give_back(self) -> None:
        if self._current is not None:
            (_, stack, _), self._current = self._current, None
            stack.close()

    def _ready_runner(self) -> Runner:
        if self._runner is None:
            # pytest captures standard error, and shows it with a failure
            progress = Progress(Console(file=io.StringIO()))
            self._runner = self._stack.enter_context(
                ready_runner(RunKernels(Cache()), progress, keep=self._keep)
            )
        return self._runner


def _turn(scenario: Scenario) -> AbstractContextManager[object]:
    """Wait until no other worker of pytest-xdist has a host whose numbers are times. Instructions
    are the same whatever else the machine does."""
    if scenario.host.exact:
        return nullcontext()
    folder = Cache().root
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "timed-hosts.lock")


def _add_pairs(scenario: Scenario, text: str, more: int) -> tuple[Scenario, str]:
    """Return a scenario with more pairs, whose plan begins with that of the scenario: a warm-up or
    a control that its number of pairs would add are left out."""
    return parse_scenario(text, "trials", overrides=[
        f"trials.pairs={scenario.trials.pairs + more}",
        f"trials.warm_up={str(has_warm_up(scenario)).lower()}",
        f"trials.control={str(has_control(scenario)).lower()}",
    ])  # fmt: skip
