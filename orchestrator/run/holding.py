"""Hold a host of one arm: booted, proven, settled, its devices bound, as for a trial, for as long
as somebody works on it. What it leaves is below held/ in the run's folder, and is never judged."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from orchestrator.analysis.boot.boot import read_timelines
from orchestrator.analysis.boot.timeline import Timeline
from orchestrator.analysis.maps.level import Level, find_level
from orchestrator.analysis.maps.maps import Sample, check_alike, check_counts, read_pass
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.facts import HostFacts
from orchestrator.evidence.layout import TrialDir, TrialWriter
from orchestrator.evidence.maps import MapRecord
from orchestrator.evidence.model import parse_evidence, read_evidence
from orchestrator.machine.guest.workload import run_guest_boots, run_maps
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import explained_by_the_host
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import Shell
from orchestrator.run.trial import Bench, ReadyHost, describe_trial, ready_host
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import PlannedTrial
from orchestrator.scenario.vocabulary import ArmName, Pass

HELD = "held"
_PROVEN = (
    "guest_accel", "token", "boot_id", "release", "host_cmdline", "host_versions",
    "arm_settings", "host_restored",
)  # fmt: skip
"""Keys of a manifest that a boot of the host proves."""


@dataclass(frozen=True)
class Mapped:
    """One map and unmap of the BAR, untraced, and what the same ones counted."""

    sample: Sample
    """The times, which are instructions on an exact host (1e-9 s each)."""
    counted: Sample
    level: Level


class HeldHost:
    """A host that is ready for work."""

    def __init__(self, bench: Bench, arm: ArmName, ready: ReadyHost, trial: TrialWriter) -> None:
        self.bench, self.arm, self.ready = bench, arm, ready
        self._trial = trial
        self._boots = 0

    @property
    def facts(self) -> HostFacts:
        """What the machine and its kernel say of themselves."""
        return read_evidence(HostFacts, self._trial.host / "facts.json")

    def console(self) -> str:
        """Return what the host printed on its console in this boot."""
        return self._trial.text("host/console.log") or ""

    def map(self, scenario: Scenario, device: BoundDevice) -> tuple[Mapped, ...]:
        """Map and unmap the BAR at each point of a scenario that maps, with the checks of a trial:
        independent counts must agree. Raises EvidenceError if they do not."""
        host, trial = self.ready.host, self._trial
        with explained_by_the_host(host):
            run_maps(
                host, device, scenario.map, scenario.points(),
                ("plain", "counts"), trial=trial, progress=self.bench.progress,
            )  # fmt: skip
        passes = parse_evidence(MapRecord, trial.text("map.json") or "", "map.json").passes
        plain, counted = read_pass(passes["plain"]), read_pass(passes["counts"])
        check_counts(counted)
        check_alike(plain, counted)
        places = {place.name: place for place in counted.places}
        return tuple(
            Mapped(
                place.of_state(state)[-1], places[place.name].of_state(state)[-1],
                find_level(places[place.name], counted, self.facts.settings),
            )
            for place in plain.places for state in scenario.map.state
        )  # fmt: skip

    def boot_guest(self) -> Timeline:
        """Boot the scenario's guest once, traced. Raises EvidenceError if the boot's evidence
        disagrees."""
        trial = self._boot_guest("timing")
        (timeline,) = read_timelines(trial)
        if timeline.invalid:
            raise EvidenceError(f"{trial.path}: {timeline.invalid}", reason=Reason.NOT_JUDGED)
        return timeline

    def visit_guest(self, visit: Callable[[Shell], None]) -> None:
        """Boot the scenario's guest once, call `visit` with a shell on it, and shut it down."""
        self._boot_guest("plain", visit)

    def _boot_guest(
        self, which: Pass, visit: Callable[[Shell], None] = lambda _shell: None
    ) -> TrialDir:
        bench, (host, devices, settle) = self.bench, self.ready
        guest = bench.scenario.guest
        if guest is None:
            raise ScenarioError("the scenario has no guest", reason=Reason.SCENARIO)
        if host.accel == "exact" and self._boots:
            raise ScenarioError(
                "a second guest boot on one exact host all but stands still",
                hint='host.accel = "tcg" or "kvm"', reason=Reason.SCENARIO,
            )  # fmt: skip
        self._boots += 1
        final = self._trial.path.parent / f"{self.arm}-boot-{self._boots}"
        shutil.rmtree(final, ignore_errors=True)
        trial = _begin_trial(bench, self.arm, final.name, (which,))
        proven = {key: value for key, value in self._trial.manifest.to_json().items()
                  if key in _PROVEN and value is not None}  # fmt: skip
        trial.record(**proven)
        shutil.copy(self._trial.host / "facts.json", trial.host)
        with explained_by_the_host(host):
            run_guest_boots(
                host, devices, guest, bench.scenario.device, (which,), keys=RunKeys.make(),
                settle=settle, trial=trial, progress=bench.progress, visit=visit,
            )  # fmt: skip
        return trial.complete()


def _begin_trial(bench: Bench, arm: ArmName, name: str, passes: tuple[Pass, ...]) -> TrialWriter:
    """Begin what is written like a trial and is none."""
    final = bench.run.path / HELD / name
    partial = TrialWriter.partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)
    bench.state.add(partial=str(partial))
    planned = PlannedTrial(0, 0, arm, ())
    facts = describe_trial(bench, planned).model_copy(update={"passes": passes})
    return TrialWriter(final, facts)


@contextlib.contextmanager
def held_host(bench: Bench, arm: ArmName) -> Iterator[HeldHost]:
    """Keep a host of the arm ready while the block runs; then put back what was changed on it, and
    end it. Raises the errors of `ready_host`."""
    boots_guests = bench.scenario.workload == "guest-boot"
    trial = _begin_trial(bench, arm, arm, ())
    try:
        with ready_host(bench, arm, trial, boots_guests=boots_guests) as ready:
            if not boots_guests:  # else it settles once its libvirt runs
                ready.settle()
            yield HeldHost(bench, arm, ready, trial)
    finally:
        trial.complete()
