"""Failures with different causes, each provoked in a real machine and told apart. Failures of
guests share one host."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

import pytest

from orchestrator.base.bounded import CONSOLE_BYTES
from orchestrator.base.errors import ArmFailedError
from orchestrator.base.reasons import Reason
from orchestrator.machine.guest import guest, watching
from orchestrator.machine.host.host import Host
from orchestrator.machine.nested import nested
from orchestrator.machine.nested.nested import VmHost
from orchestrator.machine.vm.hypervisor import Deadlines
from orchestrator.run import trials
from tests.lab.conftest import RunOne

pytestmark = pytest.mark.vm


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a guest more time to end on a busy machine, so that the next test can have its host."""
    monkeypatch.setattr(nested, "_GUESTS", Deadlines(end=60.0, hurried=1.0))


PLAIN = 'trace.passes=["plain"]'


def test_a_host_that_panics_while_it_boots_is_a_finding_about_the_arm(one_trial: RunOne) -> None:
    outcome = one_trial("host.cmdline=rdinit=/nonexistent")
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "host-panic")
    assert not outcome.result.by_bench
    assert "Kernel panic" in outcome.result.evidence


def test_a_host_that_hangs_is_the_benchs_failure(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(nested._SILENT_SECONDS, "tcg", 15.0)
    outcome = one_trial("host.cmdline=rdinit=/usr/bin/busybox -- sleep 100000")
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "host-hang")


def test_a_host_whose_initramfs_fails_says_why(one_trial: RunOne) -> None:
    outcome = one_trial("host.cmdline=module_blacklist=virtio_net")
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "host-start")
    assert "virtio_net" in outcome.result.message


def test_parameter_that_a_module_does_not_take_is_the_benchs_failure(one_trial: RunOne) -> None:
    # the parameter is on the kernel's command line, so this test has a host of its own
    setting = 'parameters={"vfio_iommu_type1.disable_hugepages" = "maybe"}'
    outcome = one_trial(f"arms.baseline.{setting}")
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "setting-refused")
    assert outcome.result.by_bench
    assert "invalid for parameter" in outcome.result.evidence


def test_a_host_that_floods_its_console_is_ended_and_named(one_trial: RunOne) -> None:
    outcome = one_trial("host.cmdline=rdinit=/usr/bin/busybox -- yes")
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "console-flood")
    files = (path for path in outcome.evidence.path.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < 3 * CONSOLE_BYTES


@pytest.mark.full
def test_a_map_that_the_iommu_refuses_makes_the_trial_invalid(one_trial: RunOne) -> None:
    # The guest places the BAR above 512 GiB, where an IOMMU of 39 bits has no addresses. QEMU
    # warns, and the guest boots, quickly.
    outcome = one_trial("host.viommu_aw_bits=39", "device.bar=4GiB", 'trace.passes=["timing"]')
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "map-refused")
    assert not outcome.result.by_bench


def test_the_bar_of_a_pci_testdev_behind_a_virtio_iommu_is_mapped_and_counted(
    one_trial: RunOne,
) -> None:
    outcome = one_trial("device.kind=pci-testdev", "host.viommu=virtio", 'trace.passes=["counts"]')
    assert outcome.result.kind == "measured", outcome.result
    assert outcome.result.value("pfn_lookups_per_map") == 256 * 2**20 / 4096
    assert outcome.result.value("pfn_faults_per_map") == 128


@pytest.mark.usefixtures("patient")
def test_a_guest_that_panics_is_a_finding_about_the_arm(shared_trial: RunOne) -> None:
    outcome = shared_trial("guest.cmdline=quiet rdinit=/nonexistent", PLAIN)
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "guest-panic")
    assert "Kernel panic" in outcome.result.evidence
    assert outcome.evidence.text("guest-0/marks.txt")


@pytest.mark.usefixtures("patient")
@pytest.mark.full
def test_a_guest_that_floods_its_console_is_ended_and_named(shared_trial: RunOne) -> None:
    outcome = shared_trial("guest.cmdline=quiet rdinit=/usr/bin/busybox -- yes", PLAIN)
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "console-flood")
    assert outcome.result.evidence.endswith("y")


@pytest.mark.usefixtures("patient")
def test_a_guest_that_hangs_is_found_by_its_idleness(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_IDLE_SECONDS", 15.0)
    outcome = shared_trial("guest.cmdline=quiet rdinit=/usr/bin/busybox -- sleep 100000", PLAIN)
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "guest-hang")
    assert "idle" in outcome.result.message


@pytest.mark.usefixtures("patient")
def test_a_guest_without_ssh_is_a_finding_about_the_arm(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(watching._NO_SSH_SECONDS, True, 15.0)
    outcome = shared_trial("guest.cmdline=quiet module_blacklist=virtio_net", PLAIN)
    assert (outcome.result.kind, outcome.result.reason) == ("failed", "guest-no-ssh")


_STOP_ALL = (
    'for p in /proc/[0-9]*; do case "$(cat $p/comm)" in'
    ' libvirtd|virtqemud|qemu-system*) kill -STOP "${p#/proc/}";; esac; done'
)


@pytest.mark.full
def test_a_guest_that_cannot_be_destroyed_is_left_to_the_end_of_its_host(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's QEMU hangs in its exit, and with it libvirt's virDomainDestroy, for ever."""
    began: list[float] = []

    def stop(host: Host, *_: Any) -> None:
        host.shell.run(_STOP_ALL)
        began.append(time.monotonic())
        raise ArmFailedError("the guest hangs", reason=Reason.GUEST_HANG)

    monkeypatch.setattr(guest, "_interview", stop)
    outcome = one_trial(PLAIN)
    assert time.monotonic() - began[-1] < 60
    assert outcome.result.reason == "guest-hang"


@pytest.mark.full
def test_a_host_whose_qemu_is_stopped_is_found_and_ended(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "ATTEMPTS", 1)
    began: list[float] = []

    def stop(host: VmHost, *_: Any) -> None:
        ours = f"uuid {host.vm.domain.uuid}"  # the host that tests share runs beside it
        listed = subprocess.run(["pgrep", "-f", ours], capture_output=True, text=True, check=True)
        [pid] = map(int, listed.stdout.split())
        os.kill(pid, signal.SIGSTOP)
        began.append(time.monotonic())

    monkeypatch.setattr(guest, "_interview", stop)
    outcome = one_trial(PLAIN)
    assert time.monotonic() - began[-1] < 60
    assert outcome.result.reason == "host-stopped"
    assert outcome.result.by_bench


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("/sys/kernel/mm/transparent_hugepage/enabled", "sometimes", "Invalid argument"),
        ("/sys/kernel/mm/unheard_of", "1", "no such file"),
    ],
)
def test_setting_that_the_kernel_does_not_take_is_the_benchs_failure(
    shared_trial: RunOne, path: str, value: str, said: str
) -> None:
    outcome = shared_trial(f'arms.baseline.sysfs={{"{path}" = "{value}"}}')
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "setting-refused")
    assert outcome.result.by_bench
    assert said in outcome.result.evidence


def test_another_kernel_than_planned_is_refused(shared_trial: RunOne) -> None:
    outcome = shared_trial(release="6.12.0-not-this-one")
    assert (outcome.result.kind, outcome.result.reason) == ("invalid", "wrong-kernel")
    assert outcome.result.by_bench
