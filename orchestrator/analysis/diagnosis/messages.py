"""What QEMU, libvirt and the kernel print when a start fails, and what it means. Pure.

The errno decides, and what the host says of itself; the words before it only tell which call it
was. QEMU's messages are those of hw/vfio/container-legacy.c (container.c before QEMU 10) and
hw/vfio/helpers.c.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from orchestrator.analysis.diagnosis.advice import Advice, ProfiledBoot, Remedy, list_names
from orchestrator.analysis.diagnosis.places import describe_room, tell_bits
from orchestrator.formats.units import format_size

_ADDRESS = r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_NARROW = re.compile(
    r"Address space limit 0x([0-9a-f]+) < 0x([0-9a-f]+) phys-bits too low \((\d+)\)"
)
"""pc_memory_init() of QEMU's hw/i386/pc.c."""
_GROUP = re.compile(r"group (\d+) is not viable")
_NO_RAM = re.compile(
    r"(?:cannot set up guest memory '([^']+)'|unable to map backing store for guest RAM):"
    r" ([A-Z][\w ]+)"
)
_NODE = re.compile(rf"(?:({_ADDRESS}): .*)?failed to open (/dev/vfio/[\w/-]+): ([A-Z][\w ]+)")
_DEVICE = re.compile(rf"({_ADDRESS}): error getting device from group (\d+): ([A-Z][\w ]+)")
_NO_GROUP = re.compile(rf"(?:({_ADDRESS}): )?no iommu_group found")
_UNSUPPORTED = "host doesn't support passthrough of host PCI devices"
"""libvirt's message without an IOMMU group on the host, or without /dev/vfio/vfio
(qemuHostdevHostSupportsPassthroughVFIO())."""
_KILLED = re.compile(
    r"([Oo]ut of memory).*Killed process \d+ \(((?:qemu|kvm|CPU |cloud-h)[^)]*)\)"
)
"""oom_kill_process() of mm/oom_kill.c; a cgroup's begins with `Memory cgroup`."""
_UNASSIGNED = re.compile(
    rf"({_ADDRESS}): (?:BAR (\d).*not (?:claimed|assigned); can't enable device"
    r"|can't enable device: BAR (\d).*not (?:claimed|assigned))"
)
"""pci_enable_resources() of drivers/pci/setup-res.c, after and before v6.10."""


def read_log(boot: ProfiledBoot) -> str:
    """Return what libvirt and QEMU said of a failed start."""
    return "\n".join(boot.report.text(f"after/{name}") for name in ("error", "qemu-log"))


def find_errno(words: str) -> int | None:
    """Return the errno of a message of strerror(3)."""
    return next((code for code in errno.errorcode if words.startswith(os.strerror(code))), None)


def list_messages(boot: ProfiledBoot) -> Iterator[Advice]:
    """Yield what the messages of a failed start mean."""
    if not boot.facts.has_failed:
        return
    log = read_log(boot)
    yield from _interrupt_remapping(boot, log)
    yield from _groups(boot, log)
    yield from _nodes(boot, log)
    yield from _memory(boot, log)
    yield from _unassigned(boot)
    if match := _NARROW.search(log):
        needed = int(match[2], 16).bit_length()
        yield Advice(
            "phys-bits", "too few address bits",
            f"the guest's memory and its 64-bit hole end at {int(match[2], 16):#x}, which needs"
            f" {needed} address bits; its CPU has {match[3]}. {describe_room(boot)}",
            remedies=(Remedy("phys-bits", tell_bits(boot.guest, needed) + "; or a smaller"
                             " <pcihole64>"),), is_wrong=True,
        )  # fmt: skip


def _interrupt_remapping(boot: ProfiledBoot, log: str) -> Iterator[Advice]:
    """VFIO's own message suffices. QEMU's EPERM does not: it has several causes."""
    kernel = "No interrupt remapping support" in "\n".join(boot.report.new_kernel_log)
    sections = boot.report.sections
    has_none = "interrupts" in sections and not sections["interrupts"].strip()
    refused = "failed to set iommu for container: Operation not permitted" in log
    if kernel or (refused and has_none):
        yield Advice(
            "interrupt-remapping", "interrupt remapping",
            "interrupts are not remapped: VFIO refuses every device (EPERM)",
            remedies=(
                Remedy("interrupt-remapping", "turn it on in the firmware's setup (and take"
                       " intremap=off out of the host's command line); where the guests are"
                       " trusted: vfio_iommu_type1.allow_unsafe_interrupts=1"),
            ), is_wrong=True,
        )  # fmt: skip


# groups and device nodes -----------------------------------------------------------------------


def _groups(boot: ProfiledBoot, log: str) -> Iterator[Advice]:
    if match := _GROUP.search(log):
        yield Advice(
            "group-shared", "a group with other devices",
            f"IOMMU group {match[1]} has devices with other drivers: a guest gets a group as a"
            " whole",
            remedies=(Remedy("group-shared", "bind every device of"
                             f" /sys/kernel/iommu_groups/{match[1]}/devices to vfio-pci, or move"
                             " the device to another slot"),), is_wrong=True,
        )  # fmt: skip
    no_group = _NO_GROUP.search(log)
    if no_group is None and _UNSUPPORTED not in log:
        return
    iommu = boot.report.sections.get("iommu")
    if no_group is None and (iommu is None or iommu.strip()):
        yield Advice(
            "no-vfio", "VFIO itself",
            "libvirt finds no IOMMU group or no /dev/vfio/vfio"
            + ("; the host has an IOMMU" if iommu else ""),
            remedies=(Remedy("no-vfio", "modprobe vfio-pci on the host; if libvirt runs in a"
                             " container, /dev/vfio/vfio and /sys/kernel/iommu_groups in it"),),
            is_wrong=True,
        )  # fmt: skip
        return
    device = no_group[1] if no_group else None
    whose = f"{device} is in no IOMMU group" if device else "no device is in an IOMMU group"
    has_iommu = bool(iommu and iommu.strip())
    yield Advice(
        "no-iommu", "no IOMMU",
        f"{whose}: the IOMMU is off, or does not cover it"
        if has_iommu or iommu is None
        else f"{whose}: the host's kernel has no IOMMU in use",
        remedies=(Remedy("no-iommu", _tell_iommu(boot)),),
        bars=(device,) if device else (), is_wrong=True,
    )  # fmt: skip


def _tell_iommu(boot: ProfiledBoot) -> str:
    """Return how to turn the IOMMU on. Only Intel's needs a word on the kernel's command line."""
    intel = "VT-d in the firmware's setup, and intel_iommu=on on the host's command line"
    amd = "IOMMU (AMD-Vi) in the firmware's setup; its driver then needs no word"
    if boot.report.is_intel is None:
        return f"Intel: {intel}; AMD: {amd}"
    return intel if boot.report.is_intel else amd


def _nodes(boot: ProfiledBoot, log: str) -> Iterator[Advice]:
    """Yield why QEMU could not open a node below /dev/vfio, or get a device from its group."""
    if match := _NODE.search(log):
        address, node, code = match[1] or "", match[2], find_errno(match[3])
    elif match := _DEVICE.search(log):
        address, node, code = match[1], f"/dev/vfio/{match[2]}", find_errno(match[3])
    else:
        return
    bars = (address,) if address else ()
    device = boot.report.devices.get(address)
    driver = device.driver if device else None
    has_other = driver is not None and "vfio" not in driver
    if code == errno.EBUSY:
        yield Advice(
            "group-busy", "a group that is in use",
            f"{node} is open in another process (EBUSY): another virtual machine, or a QEMU that"
            " has not ended, has a device of this group, and a group has one owner",
            remedies=(Remedy("group-busy", f"`fuser -v {node}` on the host names the process: end"
                             " it, or give its machine another device"),),
            bars=bars, is_wrong=True,
        )  # fmt: skip
    elif code in (errno.EPERM, errno.EACCES):
        why = (
            "the device cgroup of its container does not allow it"
            if code == errno.EPERM
            else "its owner, its mode or a security module (SELinux, AppArmor) does not allow it"
        )
        yield Advice(
            "vfio-node", "a device node that QEMU may not open",
            f"{node}: {match[3].strip()} ({errno.errorcode[code]}): {why}",
            remedies=(Remedy("vfio-node", "give QEMU's user and container this node and"
                             " /dev/vfio/vfio; libvirt: cgroup_device_acl in qemu.conf; Kata:"
                             " sandbox_cgroup_only=false"),), bars=bars, is_wrong=True,
        )  # fmt: skip
    elif code == errno.ENOENT or (code == errno.ENODEV and has_other):
        now = f": its driver is {driver}" if driver else ""
        yield Advice(
            "not-bound", "a device that vfio-pci does not have",
            f"{address or 'a device of the group'} is not bound to vfio-pci{now}, so {node} does"
            " not have it",
            remedies=(Remedy("not-bound", "driverctl set-override"
                             f" {address or 'ADDRESS'} vfio-pci, or managed='yes' in the domain's"
                             " XML"),), bars=bars, is_wrong=True,
        )  # fmt: skip


# memory and BARs -------------------------------------------------------------------------------


def _memory(boot: ProfiledBoot, log: str) -> Iterator[Advice]:
    size = format_size(boot.facts.memory)
    less = "less memory for the guest; of huge pages: set more aside"
    if match := _NO_RAM.search(log):
        yield Advice(
            "host-memory", "memory of the host",
            f"the host has no {size} for the guest's {match[1] or 'memory'}: {match[2]}",
            remedies=(Remedy("less-memory", less),), is_wrong=True,
        )  # fmt: skip
        return
    killed = next((m for line in boot.report.new_kernel_log if (m := _KILLED.search(line))), None)
    if killed:
        where = "its cgroup has" if "emory cgroup" in killed.string else "the host has"
        yield Advice(
            "host-memory", "memory of the host",
            f"the kernel ended {killed[2]}, because {where} too little memory: with a device all"
            f" of the guest's {size} is pinned at once, and cannot be swapped or overcommitted",
            remedies=(Remedy("less-memory", f"{less}; a larger limit of the cgroup or pod, without"
                             " overcommitment"),), is_wrong=True,
        )  # fmt: skip


def _unassigned(boot: ProfiledBoot) -> Iterator[Advice]:
    own = {bar.device for bar in boot.facts.bars}
    matches = [
        match for line in boot.report.new_kernel_log
        if (match := _UNASSIGNED.search(line)) and match[1] in own
    ]  # fmt: skip
    names = list(dict.fromkeys(f"{match[1]} BAR {match[2] or match[3]}" for match in matches))
    if names:
        yield Advice(
            "bar-unassigned", "a BAR without a place on the host",
            f"{list_names(names)}: the host gave it no addresses, and its kernel does not switch"
            " on such a device",
            remedies=(Remedy("bar-unassigned", "above 4G decoding in the firmware's setup; or"
                             " pci=realloc on the host's command line"),),
            bars=tuple(names), is_wrong=True,
        )  # fmt: skip
