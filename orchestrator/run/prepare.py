"""Everything that a plan needs before anything boots: accelerator, kernels, images."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass

from orchestrator import __version__
from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError, key_named
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.layout import SCHEMA
from orchestrator.evidence.plan import Plan, TrialRecord
from orchestrator.kernels import KernelBundle
from orchestrator.kernels.module.parameters import check_parameter
from orchestrator.machine.host.machine import Machine
from orchestrator.machine.runner.accel import Accel
from orchestrator.run.doctor import preflight
from orchestrator.run.kernels import RunKernels
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS, ArmName

_TAGS: dict[ArmName, str] = {"baseline": "base", "candidate": "cand"}
"""Part of the release of a kernel that is built. Both have the same length, so that nothing else
in the kernel moves."""


@dataclass(frozen=True)
class Prepared:
    """Everything a plan needs that is built before anything boots."""

    kernels: dict[ArmName, KernelBundle]
    guest_kernel: KernelBundle | None
    """Kernel of the guest; None if the workload has no guest."""
    accel: Accel
    accel_reason: str

    def configs(self) -> dict[ArmName, str]:
        """Return the configurations of the kernels that come with one."""
        return {
            arm: kernel.config.read_text("utf-8", errors="replace")
            for arm, kernel in self.kernels.items()
            if kernel.config
        }


def prepare(
    scenario: Scenario,
    machine: Machine | tuple[Accel, str],
    kernels: RunKernels,
    progress: Progress,
) -> Prepared:
    """Prepare accelerator, kernels, and all that hosts on `machine` need. Nothing is booted but
    the probe of KVM. If all trials of the run are complete, no machine is needed, and only the
    kernels are prepared: then the run's accelerator takes its place, with the reason for it.

    Raises ScenarioError if something that the scenario requires is unavailable, BenchError
    otherwise.
    """
    if isinstance(machine, tuple):
        accel, reason = machine
    else:
        accel, reason = _examine(scenario, machine, kernels.cache, progress)
    progress.note(f"accelerator: {accel} ({reason})")
    bundles = _build_kernels(scenario, kernels, progress)
    guest_kernel = None
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        guest_stage = progress.stage(f"kernel of the guest: {scenario.guest.kernel}")
        with guest_stage, key_named("guest.kernel"):
            guest_kernel = kernels.materialise(scenario.guest.kernel, progress, "gues")
    if not isinstance(machine, tuple):
        with progress.stage("images"):
            machine.provide(bundles, scenario.guest, guest_kernel, kernels.cache)
    return Prepared(bundles, guest_kernel, accel, reason)


def _examine(
    scenario: Scenario, machine: Machine, cache: Cache, progress: Progress
) -> tuple[Accel, str]:
    """Examine the machine before anything is built for it. Return the accelerator of its hosts,
    and the reason for it."""
    with progress.stage(f"looking at {machine.name}"):
        notes = machine.survey()
        preflight(scenario, cache, progress, machine)
    for note in notes:
        progress.note(note)
    with progress.stage("accelerator"):
        return machine.choose_accel()


def _build_kernels(
    scenario: Scenario, kernels: RunKernels, progress: Progress
) -> dict[ArmName, KernelBundle]:
    """Resolve and build the kernels of both arms. Raises ScenarioError if one is unavailable or
    lacks what the scenario requires."""
    with progress.stage("looking at the kernels"):  # all of them, before any is built
        for arm in ARMS:
            with key_named(f"arms.{arm}.kernel"):
                kernels.check(scenario.arms[arm].kernel)
        if scenario.workload == "guest-boot" and scenario.guest is not None:
            with key_named("guest.kernel"):
                kernels.check(scenario.guest.kernel)
    bundles: dict[ArmName, KernelBundle] = {}
    for arm in ARMS:
        if bundles and scenario.arms[arm].kernel == scenario.arms.baseline.kernel:
            bundles[arm] = bundles["baseline"]  # the same, even in its release
        else:
            kernel_stage = progress.stage(f"kernel of the {arm}: {scenario.arms[arm].kernel}")
            with kernel_stage, key_named(f"arms.{arm}.kernel"):
                bundles[arm] = kernels.materialise(scenario.arms[arm].kernel, progress, _TAGS[arm])
                _check_backend(bundles[arm], scenario)
        for word in scenario.arms[arm].cmdline.split():
            name = word.partition("=")[0]
            # other words with a dot belong to the kernel's core, which lists them nowhere
            if "." in name and bundles[arm].has_module(name.partition(".")[0]):
                with key_named(f"arms.{arm}.cmdline"):
                    check_parameter(bundles[arm], name)
        for name in scenario.arms[arm].parameters:
            with key_named(f'arms.{arm}.parameters."{name}"'):
                check_parameter(bundles[arm], name)
    return bundles


def _check_backend(kernel: KernelBundle, scenario: Scenario) -> None:
    """Raise ScenarioError if the scenario needs iommufd and the kernel has none."""
    table = "map" if scenario.workload == "map" else "guest"
    backend = getattr(getattr(scenario, table), "backend", "type1")
    if backend == "iommufd" and not kernel.has_module("iommufd"):
        raise ScenarioError(
            f'{table}.backend = "iommufd", and the kernel {kernel.release} has no iommufd',
            hint=f'CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; or {table}.backend = "type1"',
            reason=Reason.KERNEL_LACKS_MODULE,
        )


def build_plan(scenario: Scenario, prepared: Prepared) -> Plan:
    """Return the content of plan.json, as a reader will see it."""
    kernels = {
        arm: _kernel_record(kernel, scenario.arms[arm].kernel).to_json()
        for arm, kernel in prepared.kernels.items()
    }
    guest_kernel = guest_kernel_record(scenario, prepared)
    plan = {
        "schema": SCHEMA, "barometer": __version__, "scenario": scenario.name,
        "accel": prepared.accel, "accel_reason": prepared.accel_reason,
        "kernels": kernels,
        "arm_settings": {arm: scenario.arms[arm].settings for arm in ARMS},
        "guest_kernel": guest_kernel and guest_kernel.to_json(),
        "runner": {"name": platform.node(), "system": platform.platform(),
                   "machine": platform.machine(), "cpus": os.cpu_count()},
        "trials": [trial.to_json() for trial in list_trials(scenario)],
    }  # fmt: skip
    return Plan.model_validate_json(json.dumps(plan))


def list_trials(scenario: Scenario) -> list[TrialRecord]:
    """Return the trials of a scenario as plan.json has them."""
    return [
        TrialRecord(name=t.name, pair=t.pair, arm=t.arm, passes=t.passes)
        for t in make_plan(scenario)
    ]


def guest_kernel_record(scenario: Scenario, prepared: Prepared) -> KernelRecord | None:
    """Return the kernel that the guests of both arms boot; None if there is no guest."""
    if prepared.guest_kernel is None or scenario.guest is None:
        return None
    return _kernel_record(prepared.guest_kernel, scenario.guest.kernel)


def _kernel_record(bundle: KernelBundle, kernel: Kernel) -> KernelRecord:
    record = {"release": bundle.release, "source": str(kernel), "digest": bundle.digest,
              "provenance": bundle.provenance.to_json()}  # fmt: skip
    return KernelRecord.model_validate_json(json.dumps(record))
