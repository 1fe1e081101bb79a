"""The device with the large BAR, found on the host and given to vfio-pci."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.abi import IORESOURCE_UNSET
from orchestrator.bench.host import Host
from orchestrator.errors import ArmFailedError, BenchError
from orchestrator.scenario import Device, format_size

# vendor:device as in hw/misc/ivshmem.c and hw/misc/pci-testdev.c of QEMU
_IDS = {"ivshmem": ("0x1af4", "0x1110"), "pci-testdev": ("0x1b36", "0x0005")}

# Blocks for parse_devices(); for a guest's busybox shell too
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


@dataclass(frozen=True)
class Resource:
    """One line of /sys/bus/pci/devices/*/resource: `0xSTART 0xEND 0xFLAGS`."""

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        return self.end - self.start + 1 if self.end else 0

    @property
    def placed(self) -> bool:
        return self.start != 0 and not self.flags & IORESOURCE_UNSET


def parse_resources(lines: list[str]) -> list[Resource]:
    return [Resource(*(int(word, 16) for word in line.split())) for line in lines]


def parse_devices(text: str) -> dict[str, tuple[str, str, list[Resource]]]:
    """Address -> vendor, device, resources, from `device ADDRESS VENDOR DEVICE` blocks."""
    devices = {}
    for block in re.split(r"(?m)^device ", text)[1:]:
        head, *lines = block.strip().splitlines()
        address, vendor, device = head.split()
        devices[address] = (vendor, device, parse_resources(lines))
    return devices


@contextmanager
def bound_devices(host: Host, spec: Device) -> Iterator[tuple[BoundDevice, ...]]:
    """The devices, bound to vfio-pci; afterwards as they were.

    Raises ArmFailedError when the proven kernel did not place a BAR, BenchError when a device is
    not there or vfio-pci does not take it.
    """
    listed = host.shell.run(LIST_DEVICES, doing="listing PCI devices").stdout
    devices = find_devices(parse_devices(listed), spec)
    with contextlib.ExitStack() as stack:
        for device in devices:
            stack.enter_context(_bound(host, device))
        yield devices


@contextmanager
def _bound(host: Host, device: BoundDevice) -> Iterator[None]:
    base = f"/sys/bus/pci/devices/{device.address}"
    host.shell.run(
        f"echo vfio-pci > {base}/driver_override && "
        f"{{ [ ! -e {base}/driver ] || echo {device.address} > {base}/driver/unbind; }} && "
        f"echo {device.address} > /sys/bus/pci/drivers_probe && "
        f'[ "$(basename "$(readlink {base}/driver)")" = vfio-pci ] && '
        f"test -c /dev/vfio/$(basename $(readlink {base}/iommu_group))",
        doing=f"binding {device.address} to vfio-pci",
    )
    try:
        yield
    finally:
        host.undo(
            f"echo {device.address} > {base}/driver/unbind; echo > {base}/driver_override; "
            f"echo {device.address} > /sys/bus/pci/drivers_probe"
        )


def find_devices(
    devices: dict[str, tuple[str, str, list[Resource]]], spec: Device
) -> tuple[BoundDevice, ...]:
    """The devices of the kind that were made, by address; raises as `bound_devices`."""
    found = [(a, r) for a, (v, d, r) in sorted(devices.items()) if (v, d) == _IDS[spec.kind]]
    if len(found) != spec.count:
        raise BenchError(
            f"expected {spec.count} {spec.kind} on the host, found {len(found)}",
            evidence="\n".join(f"{a} {v}:{d}" for a, (v, d, _) in devices.items()),
            reason="device-missing",
        )
    return tuple(_with_bar(address, resources, spec) for address, resources in found)


def _with_bar(address: str, resources: list[Resource], spec: Device) -> BoundDevice:
    for index, resource in enumerate(resources[:6]):
        if resource.size == spec.bar:
            if not resource.placed:
                break
            return BoundDevice(address, index, resource.start, resource.size)
    raise ArmFailedError(
        f"the host's kernel did not place the {format_size(spec.bar)} BAR of {address}",
        evidence="\n".join(f"BAR {i}: {r.start:#x}-{r.end:#x} flags {r.flags:#x}"
                           for i, r in enumerate(resources[:6])),
        hint="does the BAR fit into the CPU's physical address space? See host.phys_bits",
        reason="device-not-placed",
    )  # fmt: skip
