"""The ladder of one trial, and the loop over a plan."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout

from orchestrator import __version__
from orchestrator.bench import hypervisor, images
from orchestrator.bench.accel import Accel, chosen_accel
from orchestrator.bench.device import bound_device
from orchestrator.bench.host import Host
from orchestrator.bench.keys import RunKeys
from orchestrator.bench.nested import proven_host, running_machine
from orchestrator.bench.state import BenchState, bench_state
from orchestrator.bench.workload import guest_boots
from orchestrator.cache import Cache, disk_full
from orchestrator.errors import ArmFailedError, BarometerError, BenchError, ScenarioError
from orchestrator.evidence import RunDir, TrialDir, TrialWriter
from orchestrator.hashing import digest_of
from orchestrator.kernels import KernelBundle, materialised
from orchestrator.plan import PlannedTrial, make_plan
from orchestrator.progress import Progress
from orchestrator.scenario import ARMS, ArmName, Scenario

log = logging.getLogger("barometer.run")
_SAME_BENCH_FAILURES = 2


@dataclass(frozen=True)
class Prepared:
    """Everything a plan needs that is built before anything boots."""

    kernels: dict[ArmName, KernelBundle]
    hosts: dict[ArmName, images.HostImage]
    guest_kernel: KernelBundle
    guest: images.GuestImage
    accel: Accel
    accel_reason: str


def prepare(scenario: Scenario, cache: Cache, progress: Progress) -> Prepared:
    """Accelerator, kernels and images; nothing is booted but the probe of KVM.

    Raises ScenarioError for what the scenario asks and cannot be had, BenchError otherwise.
    """
    with progress.stage("accelerator"):
        accel, reason = chosen_accel(scenario.host.accel)
    progress.note(f"accelerator: {accel} ({reason})")
    kernels: dict[ArmName, KernelBundle] = {}
    for arm in ARMS:
        kernel_stage = progress.stage(f"kernel of the {arm}: {scenario.arms[arm].kernel}")
        with kernel_stage, key_named(f"arms.{arm}.kernel"):
            kernels[arm] = materialised(scenario.arms[arm].kernel, cache)
    guest_stage = progress.stage(f"kernel of the guest: {scenario.guest.kernel}")
    with guest_stage, key_named("guest.kernel"):
        guest_kernel = materialised(scenario.guest.kernel, cache)
    with progress.stage("images"):
        return Prepared(
            kernels=kernels,
            hosts={arm: images.host_image(kernel, cache) for arm, kernel in kernels.items()},
            guest_kernel=guest_kernel,
            guest=images.guest_image(guest_kernel, cache),
            accel=accel,
            accel_reason=reason,
        )


@contextlib.contextmanager
def key_named(key: str) -> Iterator[None]:
    """Put the scenario's key in front of what is wrong with its value."""
    try:
        yield
    except ScenarioError as exc:
        raise ScenarioError(
            f"{key}: {exc.message}", hint=exc.hint, evidence=exc.evidence, reason=exc.reason
        ) from exc


def plan_facts(scenario: Scenario, prepared: Prepared) -> dict[str, Any]:
    """plan.json: the order of the trials, and exactly what they will use."""
    return {
        "schema": 1, "barometer": __version__, "scenario": scenario.name,
        "accel": prepared.accel, "accel_reason": prepared.accel_reason,
        "kernels": {
            arm: {"release": k.release, "source": str(scenario.arms[arm].kernel),
                  "digest": k.digest, "provenance": k.provenance}
            for arm, k in prepared.kernels.items()
        },
        "guest_kernel": {"release": prepared.guest_kernel.release,
                         "source": str(scenario.guest.kernel),
                         "digest": prepared.guest_kernel.digest,
                         "provenance": prepared.guest_kernel.provenance},
        "runner": {"system": platform.platform(), "machine": platform.machine(),
                   "cpus": os.cpu_count()},
        "trials": [{"name": t.name, "pair": t.pair, "arm": t.arm} for t in make_plan(scenario)],
    }  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every trial of a run shares."""

    scenario: Scenario
    prepared: Prepared
    run: RunDir
    state: BenchState
    libvirt: hypervisor.Connection
    progress: Progress
    keep: bool = False
    """Leave the evidence of a trial that is interrupted."""


def run_plan(
    scenario: Scenario,
    text: str,
    out: Path,
    cache: Cache,
    progress: Progress,
    *,
    keep: bool = False,
) -> RunDir:
    """Every trial of the plan that is not complete yet, in order; evidence under `out`.

    Goes on after a failed trial; stops when the bench fails twice in a row for the same reason.
    """
    with no_space_explained(out), _only_run_in(out, cache):
        prepared = prepare(scenario, cache, progress)
        run = RunDir.create(out, text, plan_facts(scenario, prepared))
        with (
            bench_state(keep=keep) as state,
            hypervisor.embedded(state.folder / "libvirt", cache.folder("libvirt")) as libvirt,
        ):
            run_trials(Bench(scenario, prepared, run, state, libvirt, progress, keep))
            if keep:
                progress.note(f"kept: {state.folder}")
    return run


@contextlib.contextmanager
def _only_run_in(out: Path, cache: Cache) -> Iterator[None]:
    """Raises ScenarioError when another process writes the same run."""
    lock = cache.lock(f"runs/{digest_of({'out': str(out)})}")
    try:
        lock.acquire(timeout=0)
    except Timeout as exc:
        raise ScenarioError(f"another process is at work in {out}", reason="run-exists") from exc
    try:
        yield
    finally:
        lock.release()


def run_trials(bench: Bench) -> None:
    plan = make_plan(bench.scenario)
    bench_failures: list[str] = []
    for planned in plan:
        done = bench.run.trials_path / planned.name
        if done.exists() and not TrialDir.open(done).manifest["outcome"].get("by_bench"):
            bench.progress.note(f"trial {planned.name}: complete already")
            continue
        shutil.rmtree(done, ignore_errors=True)  # the bench failed then: again
        title = f"trial {planned.number}/{len(plan)} {planned.arm}"
        release = bench.prepared.kernels[planned.arm].release
        try:
            with bench.progress.stage(f"{title} ({release})"):
                run_trial(bench, planned)
            bench_failures = []
        except BarometerError as exc:
            bench.progress.note(f"{title}: {exc}")
            bench_failures = [*bench_failures, exc.reason] if isinstance(exc, BenchError) else []
            if len(bench_failures) >= _SAME_BENCH_FAILURES and len(set(bench_failures)) == 1:
                bench.progress.note("the bench failed twice for the same reason: stopping here")
                return


def run_trial(bench: Bench, planned: PlannedTrial) -> None:
    """One host boot with its workload; the trial is complete on disk whatever happened, unless
    the run itself is interrupted. Raises what ended it early."""
    final = bench.run.trials_path / planned.name
    partial = TrialWriter.partial_path(final)
    shutil.rmtree(partial, ignore_errors=True)  # what an interrupted run left of this trial
    bench.state.add(partial=str(partial))
    trial = TrialWriter(final, _trial_facts(bench, planned))
    try:
        _climb(bench, planned, trial)
    except BarometerError as exc:
        stages = [s["name"] for s in trial.manifest["stages"] if s["outcome"] != "ok"]
        trial.failed(exc, stages[0] if stages else "start")
        trial.complete()
        raise
    except (KeyboardInterrupt, OSError):  # interrupted, or no space: there is nothing to judge
        if not bench.keep:
            shutil.rmtree(trial.path, ignore_errors=True)
        raise
    except Exception as exc:
        unexpected = BenchError(f"a bug in barometer: {type(exc).__name__}: {exc}", reason="bug")
        trial.failed(unexpected, "unknown")
        trial.complete()
        raise
    trial.complete()


def _climb(bench: Bench, planned: PlannedTrial, trial: TrialWriter) -> None:
    """Provisioned machine > proven kernel > bound device > workload under its passes."""
    scenario, prepared, progress = bench.scenario, bench.prepared, bench.progress
    kernel, keys = prepared.kernels[planned.arm], RunKeys.make()
    with contextlib.ExitStack() as ladder:
        with progress.stage("host: boot"), trial.stage("host-boot"):
            machine = ladder.enter_context(
                running_machine(
                    scenario, kernel, prepared.hosts[planned.arm], prepared.guest.payload,
                    accel=prepared.accel, keys=keys, state=bench.state, libvirt=bench.libvirt,
                    trial=trial,
                )
            )  # fmt: skip
            host = ladder.enter_context(
                proven_host(
                    machine, kernel, keys=keys, state=bench.state, trial=trial, progress=progress
                )
            )
        ladder.callback(_save_dmesg, host, trial)
        ladder.enter_context(_charged_to_the_arm(host))
        with progress.stage("host: device"), trial.stage("device"):
            device = ladder.enter_context(bound_device(host, scenario.device))
            facts = host.shell.run(host.agent("facts", device.address), doing="reading facts")
            (trial.host / "facts.json").write_text(json.dumps(json.loads(facts.stdout), indent=1))
            trial.record(guest_accel="kvm" if host.kvm else "tcg")
        guest_boots(host, device, scenario, keys=keys, trial=trial, progress=progress)
        host.check()


@contextlib.contextmanager
def _charged_to_the_arm(host: Host) -> Iterator[None]:
    """The kernel is proven: where it has oopsed or its machine is gone, a failure is the arm's."""
    try:
        yield
    except BenchError as exc:
        try:
            host.check()
        except ArmFailedError as broken:
            raise broken from exc
        raise


def _trial_facts(bench: Bench, planned: PlannedTrial) -> dict[str, Any]:
    scenario, prepared = bench.scenario, bench.prepared
    image = prepared.hosts[planned.arm]
    return {
        "arm": planned.arm, "pair": planned.pair, "number": planned.number,
        "barometer": __version__, "workload": scenario.workload, "accel": prepared.accel,
        "kernel": {"release": prepared.kernels[planned.arm].release,
                   "source": str(scenario.arms[planned.arm].kernel),
                   "digest": prepared.kernels[planned.arm].digest},
        "guest_kernel": {"release": prepared.guest_kernel.release,
                         "source": str(scenario.guest.kernel)},
        "bar": scenario.device.bar, "device_kind": scenario.device.kind,
        "passes": list(scenario.trace.passes),
        "runner_versions": bench.libvirt.version(),
        "host_packages": image.packages, "guest_packages": prepared.guest.packages,
    }  # fmt: skip


def _save_dmesg(host: Host, trial: TrialWriter) -> None:
    if host.shell.alive():
        with contextlib.suppress(BarometerError):
            (trial.host / "dmesg.txt").write_text(host.shell.run("dmesg", timeout=30).stdout)


@contextlib.contextmanager
def no_space_explained(out: Path) -> Iterator[None]:
    """A full disk is said as such, with what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(out) from exc
        raise
