"""Run the workloads on a host whose device is bound: guest boots, and maps from the host's user
space."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.base.bounded import TRACE_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import TrialWriter, write_json
from orchestrator.formats.units import GIB
from orchestrator.machine.guest.guest import boot_guest, stage_guest
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing.instructions import log_instructions
from orchestrator.machine.tracing.mapagent import build_point_request, collect_answers
from orchestrator.machine.tracing.probes import FAULT, armed_tracer
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import Shell
from orchestrator.scenario.machines import Device, Guest, HostSpec
from orchestrator.scenario.map_workload import Map
from orchestrator.scenario.trials import Arms
from orchestrator.scenario.vocabulary import ARMS, Pass, Point

_HOUSEKEEPING = {
    "/proc/sys/kernel/watchdog": "0",
    "/proc/sys/kernel/sched_rt_runtime_us": "-1",  # never throttle the map agent (SCHED_FIFO)
    "/proc/sys/vm/compaction_proactiveness": "0",
    "/proc/sys/vm/stat_interval": "86400",
    "/proc/sys/vm/dirty_writeback_centisecs": "0",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs": "86400000",
}
"""Periodic kernel housekeeping that is switched off on exact hosts."""


def run_guest_boots(
    host: Host,
    devices: Sequence[BoundDevice],
    guest: Guest,
    device: Device,
    passes: Sequence[Pass],
    *,
    keys: RunKeys,
    settle: Callable[[], None],
    trial: TrialWriter,
    progress: Progress,
    visit: Callable[[Shell], None] = lambda _shell: None,
) -> None:
    """Boot one guest for each of the passes. `settle`: called once the host's libvirt runs, before
    the first boot. `visit` is that of `boot_guest`."""
    with progress.stage("libvirt on the host"), trial.stage("host-libvirt"):
        stage_guest(host, guest, keys)
        libvirt = contextlib.ExitStack()
        connection = libvirt.enter_context(host.libvirt())
        versions = connection.version()
        trial.record(host_versions=versions)
    with libvirt:
        settle()
        for index, which in enumerate(passes):
            trial.add_guest(index, which, guest.memory)
            with contextlib.ExitStack() as stack:
                stack.enter_context(progress.stage(f"guest boot, {which} pass"))
                stack.enter_context(trial.stage(f"guest-{index}-{which}"))
                if which == "timing":
                    stack.enter_context(
                        armed_tracer(
                            host, "timing", f"guest-{index}", device.bar, trial,
                            boot=True, faults=_has_large_leaves(host, versions),
                        )
                    )  # fmt: skip
                boot_guest(
                    host, connection, devices, guest, device, index=index,
                    traced=which == "timing", keys=keys, trial=trial, progress=progress,
                    visit=visit,
                )  # fmt: skip


def _has_large_leaves(host: Host, versions: dict[str, str]) -> bool:
    """Predict whether the guest's QEMU will map a BAR by large leaves. If not, a probe of its page
    faults would fire for each page, and cost more than the map itself."""
    major, minor = (int(part) for part in versions["qemu"].split(".")[:2])
    command = (
        f"cat /sys/kernel/mm/transparent_hugepage/enabled || echo; grep -cw {FAULT} /proc/kallsyms"
    )
    lines = host.shell.run(command, check=False, doing="reading THP").stdout.split("\n")
    on = "[" in lines[0] and "[never]" not in lines[0]
    return (major, minor) >= (9, 2) and on and lines[1:2] not in ([], ["0"])


def settle_host(
    host: Host, spec: HostSpec, arms: Arms, *, trial: TrialWriter, progress: Progress
) -> None:
    """Wait until an exact host is idle: the rest of its boot would share the only CPU with the
    workload."""
    if host.accel == "exact":
        with progress.stage("host: settle"), trial.stage("settle"):
            assert spec.kind == "nested"  # no other host is exact
            set_by_arms = {path for arm in ARMS for path in arms[arm].sysfs}
            present = host.shell.run(["ls", *_HOUSEKEEPING], check=False).stdout.split()
            for path in present:
                if path not in set_by_arms:
                    with contextlib.suppress(BenchError):  # no harm if the kernel refuses
                        host.change.write(path, _HOUSEKEEPING[path])
            host.shell.run(f"sleep {spec.settle}", timeout=600, doing="letting the host settle")


def run_maps(
    host: Host,
    device: BoundDevice,
    spec: Map,
    points: Sequence[Point],
    passes: Sequence[Pass],
    *,
    trial: TrialWriter,
    progress: Progress,
) -> None:
    """Map and unmap the BAR from the host's user space, at every point. Write the map agent's
    answers to map.json, by pass. Raises EvidenceError if a map is refused."""
    few = find_largest(points)[:1]
    answers: dict[str, Any] = {}
    for which in passes:
        with progress.stage(f"maps, {which} pass"), trial.stage(f"map-{which}"):
            if which == "plain":
                answers[which] = _run_agent(host, device, spec, points, spec.repeats)
            elif which == "counts":
                with armed_tracer(host, "counts", "counts", device.bar_bytes, trial) as hists:
                    answers[which] = _run_agent(host, device, spec, points, 1, snapshots=hists)
            elif which == "timing":
                with armed_tracer(host, "timing", "map", few[0].size, trial):
                    answers[which] = _run_agent(host, device, spec, few, 1)
            else:
                whole = next(iter(answers.values()), None) or _run_agent(
                    host, device, spec, few, 1
                )
                log_instructions(
                    host, device, spec, estimate_costs(whole, device.bar_bytes), trial=trial,
                    progress=progress,
                )  # fmt: skip
        write_json(trial.path / "map.json", {"passes": answers})
    host.check()


def estimate_costs(answer: dict[str, Any], bar: int) -> dict[str, float]:
    """Estimate the nanoseconds of a map and an unmap of the whole BAR from the largest point."""
    point = max(answer["points"], key=lambda p: p["bytes"])
    last = point["samples"][-1]
    return {
        operation: last[f"{operation}_ns"] * bar / point["bytes"] for operation in ("map", "unmap")
    }


def find_largest(points: Sequence[Point]) -> list[Point]:
    """Return the points with the largest size at the best alignment, one for each state (cold
    first)."""
    alignment = points[0].alignment  # the best comes first
    size = max(p.size for p in points if p.alignment == alignment)
    return [p for p in points if (p.size, p.alignment) == (size, alignment)]


def _run_agent(
    host: Host,
    device: BoundDevice,
    spec: Map,
    points: Sequence[Point],
    repeats: int,
    **more: Any,
) -> Any:
    gib = sum(p.size for p in points) * repeats / GIB
    request = build_point_request(spec, points, repeats, exact=host.accel == "exact", **more)
    completed = host.run_agent(
        "map", device.address, request=json.dumps(request).encode() + b"\n", check=False,
        doing="mapping the BAR", timeout=180 + 90 * gib, limit=TRACE_BYTES,
    )  # fmt: skip
    host.check()
    return collect_answers(completed.stdout.splitlines(), completed.stderr)
