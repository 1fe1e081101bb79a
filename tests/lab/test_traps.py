"""Boots that are not what they seem to be, each provoked for real, and other ways to boot."""

from __future__ import annotations

import threading
from statistics import median
from typing import Any

import pytest

from orchestrator.analysis.boot.timeline import RAM
from orchestrator.machine.guest import workload
from orchestrator.machine.guest.guest import boot_guest
from orchestrator.machine.host.host import Host
from orchestrator.scenario import machines
from tests.lab.conftest import Outcome, RunOne

pytestmark = pytest.mark.nested
TRACED = 'trace.passes=["timing"]'


def notes(outcome: Outcome) -> set[str]:
    assert outcome.result.kind == "measured", outcome.result
    (timeline,) = outcome.result.findings.timelines
    return {note.name for note in timeline.notes}


@pytest.mark.full
def test_bars_that_qemu_does_not_map_are_a_note_and_no_maps(one_trial: RunOne) -> None:
    outcome = one_trial("device.mmap=false", TRACED)
    assert notes(outcome) == {"no-mmap"}
    assert outcome.result.value("bar_maps_per_boot") == 0


@pytest.mark.full
def test_a_bar_that_the_guest_cannot_place_makes_the_trial_invalid(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such a scenario is refused, with the bits that would do. A guest that places less than was
    # computed must be seen all the same.
    monkeypatch.setattr(machines, "_check_guest_window", lambda *_: None)
    patched = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="trixie-backports"}'
    outcome = one_trial("guest.phys_bits=36", "device.bar=64GiB", patched, TRACED)
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "bar-not-placed")


@pytest.mark.full
def test_a_guests_own_iommu_and_a_stepped_clock_are_named(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    def boot(host: Host, *arguments: Any, **more: Any) -> None:
        step = threading.Timer(20, host.undo, ["date --set '+1 hour'"])
        step.start()
        boot_guest(host, *arguments, **more)
        step.join()

    monkeypatch.setattr(workload, "boot_guest", boot)
    outcome = one_trial("guest.viommu=intel", "guest.cmdline=intel_iommu=on", TRACED)
    assert notes(outcome) == {"guest-viommu", "clock-step"}


def test_a_boot_from_disk_of_two_devices_on_a_host_with_a_slow_clock(one_trial: RunOne) -> None:
    outcome = one_trial(
        "guest.boot=disk", "device.count=2", "guest.backing=memfd", TRACED,
        "host.cmdline=clocksource=hpet hpet=force",
    )  # fmt: skip
    assert notes(outcome) == {"clock-source"}
    (timeline,) = outcome.result.findings.timelines
    bars = {step.bar for step in timeline.steps if step.size == 256 * 2**20} - {RAM}
    assert bars == {"01:00.0 BAR 2", "02:00.0 BAR 2"}
    assert {"boot loader", "userspace: systemd"} <= {phase.name for phase in timeline.phases}
    assert timeline.systemd["userspace"] < timeline.systemd["finish"]
    assert timeline.attributed_share > 0.98
    # time that a busy runner takes between two records of a step is in no part of it
    assert median(s.attributed_share for s in timeline.steps if s.seconds > 0.02) > 0.95
