"""What is run on a host with the device bound: guest boots, and one counted map."""

from __future__ import annotations

import contextlib

from orchestrator.bench.device import BoundDevice
from orchestrator.bench.guest import boot_guest, stage_initramfs
from orchestrator.bench.host import Host
from orchestrator.bench.keys import RunKeys
from orchestrator.bench.tracer import armed_tracer
from orchestrator.errors import BenchError, EvidenceError
from orchestrator.evidence import TrialWriter
from orchestrator.progress import Progress
from orchestrator.scenario import Pass, Scenario


def guest_boots(
    host: Host,
    device: BoundDevice,
    scenario: Scenario,
    *,
    keys: RunKeys,
    trial: TrialWriter,
    progress: Progress,
) -> None:
    """One guest boot for the `plain` pass and one for `timing`. The `counts` pass is taken from
    one map made from the host's user space: its probes fire for each page, and would make a
    guest's dozen maps on an unpatched kernel take minutes more."""
    boots: list[Pass] = [p for p in scenario.trace.passes if p != "counts"]
    if boots:
        with progress.stage("libvirt on the host"), trial.stage("host-libvirt"):
            stage_initramfs(host, keys)
            libvirt = contextlib.ExitStack()
            connection = libvirt.enter_context(host.libvirt())
            trial.record(host_versions=connection.version())
        with libvirt:
            for index, which in enumerate(boots):
                trial.manifest["guests"].append({"index": index, "pass": which})
                with contextlib.ExitStack() as stack:
                    stack.enter_context(progress.stage(f"guest boot, {which} pass"))
                    stack.enter_context(trial.stage(f"guest-{index}-{which}"))
                    if which == "timing":
                        stack.enter_context(
                            armed_tracer(host, "timing", f"guest-{index}", device.bar_bytes, trial)
                        )
                    boot_guest(
                        host, connection, device, scenario, index=index, traced=which == "timing",
                        keys=keys, trial=trial, progress=progress,
                    )  # fmt: skip
    if "counts" in scenario.trace.passes:
        with progress.stage("one map, counts pass"), trial.stage("map-counts"):
            counted_map(host, device, trial)


def counted_map(host: Host, device: BoundDevice, trial: TrialWriter) -> None:
    """Map and unmap the BAR once from the host's user space under the `counts` pass."""
    gib = device.bar_bytes / 2**30
    with armed_tracer(host, "counts", "counts", device.bar_bytes, trial):
        done = host.shell.run(
            host.agent("map", device.address), check=False, doing="mapping the BAR",
            timeout=120 + 30 * gib,
        )  # fmt: skip
    host.check()
    if done.code:
        # as in a boot, where a refused map is found by judging the trace
        raise EvidenceError(
            "the BAR could not be mapped from the host's user space",
            evidence=done.stderr[-1500:], reason="map-refused",
        )  # fmt: skip
    if not done.stdout.strip():
        raise BenchError("the map agent said nothing", reason="map-silent")
    (trial.path / "map.json").write_text(done.stdout)
