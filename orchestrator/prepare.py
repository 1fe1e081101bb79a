"""Everything that a plan needs before anything boots: accelerator, kernels, images."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.bench import images, metal
from orchestrator.bench.accel import Accel, chosen_accel
from orchestrator.bench.domain import Disk
from orchestrator.bench.guest import GUEST_SERIAL, guest_cmdline
from orchestrator.bench.guestdisk import GuestDisk, grub_config, guest_disk
from orchestrator.bench.metal import Met
from orchestrator.bench.shell import Shell
from orchestrator.cache import Cache
from orchestrator.doctor import preflight
from orchestrator.errors import ScenarioError, key_named
from orchestrator.evidence.layout import SCHEMA
from orchestrator.evidence.plan import Plan
from orchestrator.kernels import KernelBundle, checked, materialised
from orchestrator.kernels.parameters import check_parameter
from orchestrator.plan import make_plan
from orchestrator.progress import Progress
from orchestrator.scenario import ARMS, ArmName, HostDevice, MetalHost, Scenario

_TAGS: dict[ArmName, str] = {"baseline": "base", "candidate": "cand"}
"""Part of the release of a kernel that is built. Both have the same length, so that nothing else
in the kernel moves."""


@dataclass(frozen=True)
class Prepared:
    """Everything a plan needs that is built before anything boots."""

    kernels: dict[ArmName, KernelBundle]
    hosts: dict[ArmName, images.HostImage]
    guest_kernel: KernelBundle | None
    """Kernel of the guest; None if the workload has no guest."""
    payload: images.PayloadImage | images.PayloadFiles
    guest_disk: GuestDisk | None
    """Disk that the guest boots from; None if its kernel is in the payload."""
    accel: Accel
    accel_reason: str
    met: Met | None = None
    """Survey of the metal host; None for a nested one, and if all trials are complete."""

    def disks(self) -> tuple[Disk, ...]:
        """Return the disks that a nested host gets besides its own."""
        assert isinstance(self.payload, images.PayloadImage)
        more = [Disk(self.guest_disk.path, GUEST_SERIAL)] if self.guest_disk else []
        return (Disk(self.payload.disk, "payload"), *more)

    def configs(self) -> dict[ArmName, str]:
        """Return the configurations of the kernels that come with one."""
        return {
            arm: kernel.config.read_text("utf-8", errors="replace")
            for arm, kernel in self.kernels.items()
            if kernel.config
        }

    def guest_packages(self) -> dict[str, str]:
        return self.guest_disk.packages if self.guest_disk else self.payload.packages


def prepare(
    scenario: Scenario, cache: Cache, progress: Progress, found: tuple[Accel, str] | None = None
) -> Prepared:
    """Prepare accelerator, kernels and images. Nothing is booted but the probe of KVM. `found`:
    the accelerator of a run whose trials are all complete, and the reason for it; then only the
    kernels are prepared.

    Raises ScenarioError if something that the scenario requires is unavailable, BenchError
    otherwise.
    """
    met = None
    if found is not None:
        accel, reason = found
    elif isinstance(scenario.host, MetalHost) and isinstance(scenario.device, HostDevice):
        look = progress.stage(f"looking at {scenario.host.address}")
        with look, _looked_at(scenario.host, progress) as shell:
            met = metal.met(shell, scenario.host, scenario.device)
            preflight(scenario, cache, progress, shell)
        accel, reason = met.accel, met.accel_reason
        for note in (f"device: {met.device}", *met.notes):
            progress.note(note)
    else:
        with progress.stage("looking at this machine"):
            preflight(scenario, cache, progress)
        with progress.stage("accelerator"):
            accel, reason = chosen_accel(scenario.nested.accel)
    progress.note(f"accelerator: {accel} ({reason})")
    kernels = _kernels(scenario, cache, progress)
    guest_kernel = None
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        guest_stage = progress.stage(f"kernel of the guest: {scenario.guest.kernel}")
        with guest_stage, key_named("guest.kernel"):
            guest_kernel = materialised(scenario.guest.kernel, cache, progress, "gues")
    if found is not None:
        nothing = images.PayloadFiles({}, {})
        return Prepared(kernels, {}, guest_kernel, nothing, None, accel, reason, None)
    with progress.stage("images"):
        disk = _guest_disk(scenario, guest_kernel, cache)
        hosts: dict[ArmName, images.HostImage] = {}
        payload: images.PayloadImage | images.PayloadFiles
        if isinstance(scenario.host, MetalHost):
            with _looked_at(scenario.host, progress) as shell:
                metal.check_kernels(shell, kernels)
            payload = images.guest_files(guest_kernel, cache)
        else:
            suite = scenario.host.suite
            hosts = {arm: images.host_image(k, suite, cache) for arm, k in kernels.items()}
            payload = images.payload_image(None if disk else guest_kernel, cache)
        return Prepared(kernels, hosts, guest_kernel, payload, disk, accel, reason, met)


@contextlib.contextmanager
def _looked_at(host: MetalHost, progress: Progress) -> Iterator[Shell]:
    host = host.model_copy(update={"console": None})  # a look at the machine needs no console
    with (
        tempfile.TemporaryDirectory(prefix="barometer-look-") as scratch,
        metal.looked_at(host, "barometer run", Path(scratch), progress) as shell,
    ):
        yield shell


def _kernels(scenario: Scenario, cache: Cache, progress: Progress) -> dict[ArmName, KernelBundle]:
    """Resolve and build the kernels of both arms. Raises ScenarioError if one is unavailable or
    lacks what the scenario requires."""
    with progress.stage("looking at the kernels"):  # all of them, before any is built
        for arm in ARMS:
            with key_named(f"arms.{arm}.kernel"):
                checked(scenario.arms[arm].kernel, cache)
        if scenario.workload == "guest-boot" and scenario.guest is not None:
            with key_named("guest.kernel"):
                checked(scenario.guest.kernel, cache)
    kernels: dict[ArmName, KernelBundle] = {}
    for arm in ARMS:
        if kernels and scenario.arms[arm].kernel == scenario.arms.baseline.kernel:
            kernels[arm] = kernels["baseline"]  # the same, even in its release
        else:
            kernel_stage = progress.stage(f"kernel of the {arm}: {scenario.arms[arm].kernel}")
            with kernel_stage, key_named(f"arms.{arm}.kernel"):
                kernels[arm] = materialised(scenario.arms[arm].kernel, cache, progress, _TAGS[arm])
                _has_backend(kernels[arm], scenario)
        for word in scenario.arms[arm].cmdline.split():
            name = word.partition("=")[0]
            # other words with a dot belong to the kernel's core, which lists them nowhere
            if "." in name and kernels[arm].has_module(name.partition(".")[0]):
                with key_named(f"arms.{arm}.cmdline"):
                    check_parameter(kernels[arm], name)
        for name in scenario.arms[arm].parameters:
            with key_named(f'arms.{arm}.parameters."{name}"'):
                check_parameter(kernels[arm], name)
    return kernels


def _guest_disk(scenario: Scenario, kernel: KernelBundle | None, cache: Cache) -> GuestDisk | None:
    if kernel is None or scenario.guest is None or scenario.guest.boot != "disk":
        return None
    cmdline = guest_cmdline(scenario.guest)
    with key_named("guest.cmdline"):
        grub_config(kernel.release, cmdline)
    with key_named("guest.kernel"):
        return guest_disk(kernel, cmdline, cache)


def _has_backend(kernel: KernelBundle, scenario: Scenario) -> None:
    room = "map" if scenario.workload == "map" else "guest"
    backend = getattr(getattr(scenario, room), "backend", "type1")
    if backend == "iommufd" and not kernel.has_module("iommufd"):
        raise ScenarioError(
            f'{room}.backend = "iommufd", and the kernel {kernel.release} has no iommufd',
            hint=f'CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; or {room}.backend = "type1"',
            reason="kernel-lacks-module",
        )


def plan_facts(scenario: Scenario, prepared: Prepared) -> Plan:
    """Return the content of plan.json, as a reader will see it."""
    plan = {
        "schema": SCHEMA, "barometer": __version__, "scenario": scenario.name,
        "accel": prepared.accel, "accel_reason": prepared.accel_reason,
        "kernels": {
            arm: {"release": k.release, "source": str(scenario.arms[arm].kernel),
                  "digest": k.digest, "provenance": k.provenance}
            for arm, k in prepared.kernels.items()
        },
        "arm_settings": {arm: scenario.arms[arm].settings for arm in ARMS},
        "guest_kernel": guest_kernel_facts(scenario, prepared),
        "runner": {"system": platform.platform(), "machine": platform.machine(),
                   "cpus": os.cpu_count()},
        "trials": [{"name": t.name, "pair": t.pair, "arm": t.arm, "passes": list(t.passes)}
                   for t in make_plan(scenario)],
    }  # fmt: skip
    return Plan.model_validate_json(json.dumps(plan))


def guest_kernel_facts(scenario: Scenario, prepared: Prepared) -> dict[str, Any] | None:
    """Return the kernel that the guests of both arms boot; None if there is no guest."""
    if prepared.guest_kernel is None or scenario.guest is None:
        return None
    return {"release": prepared.guest_kernel.release, "source": str(scenario.guest.kernel),
            "digest": prepared.guest_kernel.digest,
            "provenance": prepared.guest_kernel.provenance}  # fmt: skip
