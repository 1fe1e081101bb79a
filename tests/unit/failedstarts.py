"""Failed starts that people reported, rebuilt as inputs of `profile` by what QEMU, libvirt or the
kernel printed. See slowboots.py."""

from __future__ import annotations

from orchestrator.formats.units import GIB
from tests.unit.slowboots import FAILED, SlowBoot, fail, print_cpu, write_xml


def harvester_8294() -> SlowBoot:
    """harvester#8294, PCILeechFWGenerator#79: the device's group is open in another process."""
    return quote("vfio 0000:17:00.0: failed to open /dev/vfio/1: Device or resource busy")


def harvester_7348() -> SlowBoot:
    """harvester#7348: a device that went from machine to machine, and is back at its driver, so
    that /dev/vfio/39 is not there."""
    boot = quote("vfio 0000:17:00.0: failed to open /dev/vfio/39: No such file or directory")
    boot.host = {"device/0000:17:00.0/driver": "nvidia"}
    return boot


def kata_runtime_2774() -> SlowBoot:
    """kata-containers/runtime#2774, #2605, kubevirt#6771: QEMU may not open the device's node,
    by the device cgroup of its sandbox."""
    return quote("vfio error: 0000:17:00.0: failed to open /dev/vfio/84: Operation not permitted")


def macos_simple_kvm_579() -> SlowBoot:
    """macOS-Simple-KVM#579, #143, cloud-hypervisor#856, OSX_GVT-D#7: the IOMMU is off; here on a
    machine of AMD's, which needs no word on its command line."""
    boot = quote("vfio 0000:17:00.0: no iommu_group found: No such file or directory")
    boot.host = {"iommu": "", "cpuinfo": print_cpu(48, "AuthenticAMD")}
    return boot


def harvester_11029() -> SlowBoot:
    """harvester#11029, kubevirt#17417: libvirt in a container that has no /dev/vfio/vfio says that
    the host does not support what it does support."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED}, host={"iommu": "dmar0\ndmar1"})
    boot.after = {
        "error": "libvirt could not start gpu vm: unsupported configuration: host doesn't support"
        " passthrough of host PCI devices"
    }
    return boot


def qubes_10885() -> SlowBoot:
    """QubesOS/qubes-issues#10885, gpu-passthrough-tutorial#39: the device reads all ones after
    its last machine was killed."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    boot.after = {
        "error": "internal error: Unknown PCI header type '127' for device '0000:17:00.0'"
    }
    return boot


def incus_os_1146() -> SlowBoot:
    """lxc/incus-os#1146: a GPU that does not come back after the resume; VFIO says ENODEV."""
    boot = quote("vfio 0000:17:00.0: error getting device from group 2: No such device")
    boot.host = {"device/0000:17:00.0/driver": "vfio-pci"}
    boot.after["dmesg"] = "\n".join(
        f"[ {at}.1] vfio-pci 0000:17:00.0: not ready {ms}ms after resume; {what}"
        for at, ms, what in ((14, 1023, "waiting"), (21, 8191, "waiting"),
                             (78, 65535, "giving up"))
    )  # fmt: skip
    return boot


def kubevirt_10379() -> SlowBoot:
    """kubevirt#10379: the pod's limit counts on memory that a guest with a device never gives
    back."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    boot.after = {
        "error": "internal error: QEMU unexpectedly closed the monitor",
        "dmesg": "[ 311.2] Memory cgroup out of memory: Killed process 4242 (qemu-kvm)"
        " total-vm:71303168kB, anon-rss:33554432kB",
    }
    return boot


def kata_10360() -> SlowBoot:
    """kata-containers#10360: memory of 62 GiB whose file has less room (EFAULT)."""
    boot = SlowBoot(fail(14, 62 * GIB, 4 * GIB), facts={**FAILED, "boot": "wait", "uri": ""})
    boot.facts["memory"] = 64 * GIB
    return boot


def rvvm_197() -> SlowBoot:
    """The kind of LekKit/RVVM#197: the host itself found no place for the BAR,
    and its kernel does not switch on such a device."""
    boot = quote("vfio 0000:17:00.0: error getting device from group 7: Invalid argument")
    boot.after["dmesg"] = (
        "[ 41.1] vfio-pci 0000:17:00.0: BAR 2 [mem size 0x800000000 64bit pref]: not assigned;"
        " can't enable device"
    )
    return boot


def quote(message: str) -> SlowBoot:
    """Return a start that failed with this message of QEMU's, before its first map."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    boot.after = {"error": "libvirt could not start gpu vm: internal error: QEMU unexpectedly"
                  f" closed the monitor: qemu-kvm: -device vfio-pci: {message}"}  # fmt: skip
    return boot
