"""The noise that this machine remembers: written when a run has been judged, read by `plan`."""

from __future__ import annotations

import logging
import os

from orchestrator.analysis.verdict.power import measure_noise
from orchestrator.base.errors import BarometerError
from orchestrator.base.folderlock import only_writer
from orchestrator.evidence.noise import MetricNoise, load_noise, save_noise
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
    return memory.find(machine_of(scenario.host), scenario.name, metric)


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
