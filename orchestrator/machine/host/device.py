"""Devices with a large BAR on the host: find emulated ones, bind them to vfio-pci, read facts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.base.bounded import FACTS_BYTES
from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.formats.units import format_size
from orchestrator.machine.host.host import Host
from orchestrator.machine.host.pci import Resource, parse_resources
from orchestrator.machine.transport.answers import parsing
from orchestrator.scenario.machines import Device

# vendor:device as in hw/misc/ivshmem.c and hw/misc/pci-testdev.c of QEMU
_IDS = {"ivshmem": ("0x1af4", "0x1110"), "pci-testdev": ("0x1b36", "0x0005")}

_BY_KERNEL = (Reason.BIND, Reason.DRIVER_HANGS, Reason.DECODE_ALWAYS_ON)
"""Reasons that the kernel under test may be the cause of: nobody else has an emulated device."""

# Prints blocks for parse_devices(); a guest's busybox shell runs it, too
LIST_DEVICES = (
    "for d in /sys/bus/pci/devices/*; do "
    'echo "device ${d##*/} $(cat $d/vendor $d/device | tr "\\n" " ")"; cat $d/resource; done'
)


@dataclass(frozen=True)
class BoundDevice:
    address: str
    bar_index: int
    bar_start: int
    bar_bytes: int


def parse_devices(text: str) -> dict[str, tuple[str, str, list[Resource]]]:
    """Parse `device ADDRESS VENDOR DEVICE` blocks: address -> vendor, device, resources."""
    devices = {}
    for block in re.split(r"(?m)^device ", text)[1:]:
        head, *lines = block.strip().splitlines()
        address, vendor, device = head.split()
        devices[address] = (vendor, device, parse_resources(lines))
    return devices


def bind_emulated(host: Host, spec: Device) -> tuple[BoundDevice, ...]:
    """Bind the emulated devices to vfio-pci and return them. They go back with the host's other
    changes.

    Raises ArmFailedError if the proven kernel did not place a BAR (assign an address to it) or if
    its vfio-pci does not bind a device, and BenchError if a device is missing.
    """
    listed = host.shell.run(LIST_DEVICES, doing="listing PCI devices").stdout
    with parsing("the host's list of PCI devices", listed):
        parsed = parse_devices(listed)
    devices = find_devices(parsed, spec)
    try:
        host.change.bind([device.address for device in devices])
    except BenchError as exc:
        if exc.reason not in _BY_KERNEL:
            raise
        raise ArmFailedError(exc.message, evidence=exc.evidence, reason=exc.reason) from exc
    return devices


def find_devices(
    devices: dict[str, tuple[str, str, list[Resource]]], spec: Device
) -> tuple[BoundDevice, ...]:
    """Return the devices of the scenario's kind, in the order of their addresses. Raises the
    errors of `bind_emulated`."""
    matching = [(a, r) for a, (v, d, r) in sorted(devices.items()) if (v, d) == _IDS[spec.kind]]
    if len(matching) != spec.count:
        raise BenchError(
            f"expected {spec.count} {spec.kind} on the host, found {len(matching)}",
            evidence="\n".join(f"{a} {v}:{d}" for a, (v, d, _) in devices.items()),
            reason=Reason.DEVICE_MISSING,
        )
    hint = "does the BAR fit into the CPU's physical address space? See host.phys_bits"
    return tuple(find_bar(address, resources, spec.bar, hint) for address, resources in matching)


def find_bar(address: str, resources: list[Resource], bar: int, hint: str) -> BoundDevice:
    """Return the PCI function at `address` with its BAR of `bar` bytes. Raises ArmFailedError with
    `hint` if the kernel under test did not place such a BAR."""
    for index, resource in enumerate(resources[:6]):
        if resource.size == bar:
            if not resource.placed:
                break
            return BoundDevice(address, index, resource.start, resource.size)
    raise ArmFailedError(
        f"the host's kernel did not place the {format_size(bar)} BAR of {address}",
        evidence="\n".join(f"BAR {i}: {r.start:#x}-{r.end:#x} flags {r.flags:#x}"
                           for i, r in enumerate(resources[:6])),
        hint=hint,
        reason=Reason.DEVICE_NOT_PLACED,
    )  # fmt: skip


def read_host_facts(host: Host, devices: Sequence[BoundDevice]) -> dict[str, object]:
    """Return a trial's facts.json: facts of the machine (guests/agents/facts.py) and of its bound
    devices (survey.py). Raises BenchError if they cannot be read."""
    machine = host.run_agent("facts", doing="reading facts", limit=FACTS_BYTES).stdout
    functions = host.run_agent(
        "survey", *(device.address for device in devices), doing="reading the devices' facts",
        limit=FACTS_BYTES,
    ).stdout  # fmt: skip
    with parsing("what the host says of itself", machine + functions):
        facts = json.loads(functions)["functions"]
        return {**json.loads(machine), "device": facts[0], "devices": facts}
