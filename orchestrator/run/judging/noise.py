"""The noise that this machine remembers: written when a run has been judged, read by `plan`."""

from __future__ import annotations

import logging
import os

from orchestrator.analysis.verdict.power import measure_noise
from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.base.installed import missing_extra_explained
from orchestrator.evidence.noise import MOST_NIGHTS, MetricNoise, load_noise, save_noise
from orchestrator.history.place import find_place
from orchestrator.machine.runner.state import default_state_folder
from orchestrator.run.judging.judge import Run
from orchestrator.scenario.machines import HostSpec
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import Metric

log = logging.getLogger("barometer.noise")
_FOLDER = "noise"


def machine_of(host: HostSpec) -> str:
    """Return the name of the machine whose noise it is: a metal host, or for nested hosts this
    machine."""
    return host.name if host.kind == "metal" else os.uname().nodename


def recall_noise(scenario: Scenario, metric: Metric) -> MetricNoise | None:
    """Return what earlier runs of the scenario on this machine showed of a metric."""
    memory = load_noise(default_state_folder() / _FOLDER)
    own = memory.find(machine_of(scenario.host), scenario.name, metric)
    stored = _recall_from_history(scenario, metric)
    known = [noise for noise in (own, stored) if noise is not None]
    return max(known, key=lambda noise: len(noise.nights), default=None)


def _recall_from_history(scenario: Scenario, metric: Metric) -> MetricNoise | None:
    """Return what the history has of the machine's noise. None if there is no history, or if it
    cannot be read: noise is a help, and no evidence."""
    if not (place := find_place(scenario.history.store)):
        return None
    machine = machine_of(scenario.host)
    try:
        with missing_extra_explained():
            # only here: it loads the libraries for databases, which are an extra
            from orchestrator.history.store import Store  # noqa: PLC0415

        with Store.open(place, create=False) as store:
            nights = store.noise(machine, scenario.name, metric, MOST_NIGHTS)
    except (OSError, BarometerError) as exc:
        log.warning("barometer: the history is not asked for noise: %s", exc)
        return None
    if not nights:
        return None
    return MetricNoise(
        machine=machine, scenario=scenario.name, metric=metric, nights=tuple(nights)
    )


def recall_usual_change(scenario: Scenario, metric: Metric) -> float | None:
    """Return the largest usual change of a metric's ratio from one night to the next, or None if
    too few nights are remembered."""
    noise = recall_noise(scenario, metric)
    return None if noise is None else noise.usual_change


def remember_noise(run: Run) -> None:
    """Add a judged run to the memory. It never fails: a run is worth more than its memory."""
    scenario = run.scenario
    nights = measure_noise(run.comparison, shares_boots=not scenario.host.fresh_boots)
    if not nights:
        return
    folder = default_state_folder() / _FOLDER
    try:
        with only_writer(folder):  # two runs may end at the same time
            memory = load_noise(folder).add(machine_of(scenario.host), scenario.name, nights)
            save_noise(folder, memory)
    except (OSError, BarometerError) as exc:
        log.warning("barometer: the noise of %s is not remembered: %s", run.path, exc)
