"""The stages of a trial, on a host that does nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.run import trial as one_trial
from orchestrator.run.trial import Bench, run_stages
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from tests.unit.manifests import facts_of
from tests.unit.scenarios import map_scenario, scenario


class Machine:
    """A machine whose hosts are empty, and the record of what runs on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        for name, recorded in (
            ("explained_by_the_host", lambda host: contextlib.nullcontext()),
            ("read_host_facts", lambda host, devices: {}),
            ("settle_host", self._settle),
            ("run_guest_boots", self._run_guest_boots),
            ("run_maps", lambda h, d, m, p, passes, **k: self.done.append(f"map {passes}")),
        ):
            monkeypatch.setattr(one_trial, name, recorded)

    @contextlib.contextmanager
    def boot(self, arm: str, words: object, *how: object, **more: Any) -> Iterator[Any]:
        self.done.append(f"{arm} with libvirt" if more["with_libvirt"] else arm)
        try:
            yield SimpleNamespace(
                kvm=True, check=lambda: self.done.append("check"),
                shell=SimpleNamespace(alive=lambda: False),
                kernel=SimpleNamespace(reports=list),
                change=SimpleNamespace(put_back=lambda: self.done.append("put back")),
            )  # fmt: skip
        finally:
            self.done.append("down")

    def bind_devices(self, *how: object) -> list[str]:
        return ["a device"]

    def _settle(self, *how: object, trial: TrialWriter, **more: object) -> None:
        with trial.stage("settle"):
            self.done.append("settle")

    def _run_guest_boots(self, *how: Any, settle: Any, **more: Any) -> None:
        settle()
        self.done.append(f"boot {how[4]}")


@pytest.mark.parametrize(
    ("chosen", "steps"),
    [
        (scenario(), ["settle", "boot ['plain', 'timing']", "map ['counts']"]),
        (scenario('trace.passes=["plain"]'), ["settle", "boot ['plain']"]),
        (scenario('trace.passes=["counts"]'), ["settle", "map ['counts']"]),
        (map_scenario('trace.passes=["plain", "counts"]'), ["settle", "map ['plain', 'counts']"]),
    ],
)
def test_counts_are_taken_from_maps_and_only_boots_need_libvirt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: Scenario, steps: list[str]
) -> None:
    machine, trial = Machine(monkeypatch), TrialWriter(tmp_path / "0001-baseline", facts_of())
    planned = next(trial for trial in make_plan(chosen) if trial.arm == "candidate")
    bench = cast(
        Bench, SimpleNamespace(scenario=chosen, progress=Progress(), hosts=machine, visit=None)
    )
    run_stages(bench, planned, trial)
    boots = any(step.startswith("boot") for step in steps)
    assert machine.done == [
        "candidate with libvirt" if boots else "candidate", *steps, "put back", "check", "down"
    ]  # fmt: skip
    assert json.loads((trial.host / "facts.json").read_text()) == {}
    assert (trial.manifest.guest_accel is not None) == (chosen.workload == "guest-boot")


def test_stages_after_the_last_one_are_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine, trial = Machine(monkeypatch), TrialWriter(tmp_path / "0001-baseline", facts_of())
    chosen = scenario()
    bench = cast(
        Bench, SimpleNamespace(scenario=chosen, progress=Progress(), hosts=machine, visit=None)
    )
    run_stages(bench, make_plan(chosen)[0], trial, through="device")
    assert machine.done == ["baseline with libvirt", "down"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_person_visits_before_anything_is_put_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    machine, trial = Machine(monkeypatch), TrialWriter(tmp_path / "0001-baseline", facts_of())
    chosen, seen = map_scenario(), list[BarometerError | None]()

    def run_maps(*_: object, **__: object) -> None:
        machine.done.append("map")
        if fails:
            raise BenchError("no map", reason=Reason.MAP_SILENT)

    def visit(_host: object, failure: BarometerError | None) -> None:
        machine.done.append("visit")
        seen.append(failure)

    monkeypatch.setattr(one_trial, "run_maps", run_maps)
    bench = SimpleNamespace(scenario=chosen, progress=Progress(), hosts=machine, visit=visit)
    with pytest.raises(BenchError) if fails else contextlib.nullcontext():
        run_stages(cast(Bench, bench), make_plan(chosen)[0], trial)
    after = ["down"] if fails else ["put back", "check", "down"]
    assert machine.done == ["baseline", "settle", "map", "visit", *after]
    (failure,) = seen
    assert (failure is not None) == fails
