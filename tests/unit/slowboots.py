"""Slow and failing boots that people reported, rebuilt as inputs of `profile`.

The facts are those of the public threads that each input names (issues or pull requests of the
projects; no text of theirs). Sizes, times and versions are the threads' where they give any, else
of that kind of machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.analysis.diagnosis.diagnosis import Profile, analyse_profile
from orchestrator.evidence.model import parse_evidence
from orchestrator.evidence.surveys.profile_facts import (
    AFTER_FILE,
    HOST_FILE,
    ProfileBar,
    ProfileEvidence,
    ProfileFacts,
)
from orchestrator.formats.units import GIB, MIB, TIB
from tests.unit.analysis.test_profile import FACTS, FILES, QEMU, VCPU, Trace

RAM_AT, IOVA = 0x550000000000, 1 << 40
INTEL_39 = "d2008c40660462"
"""CAP_REG of a VT-d unit whose addresses have 39 bits (MGAW, bits 21:16, is 38)."""
INTEL_48 = "8d2078c106f0466"


def list_bars(count: int, size: int) -> list[ProfileBar]:
    return [
        ProfileBar(device=f"0000:{0x17 + 0x10 * n:02x}:00.0", number=2,
                   start=0x200000000000 + n * 2 * size, size=size)
        for n in range(count)
    ]  # fmt: skip


def print_sections(sections: Mapping[str, str]) -> str:
    return "".join(f"\n==== barometer {name}\n{text}\n" for name, text in sections.items())


def print_cpu(bits: int, vendor: str = "GenuineIntel") -> str:
    sizes = f"{bits} bits physical, 48 bits virtual"
    return f"vendor_id\t: {vendor}\naddress sizes\t: {sizes}"


@dataclass
class SlowBoot:
    """What was recorded of one boot."""

    trace: Trace = field(default_factory=Trace)
    bars: Sequence[ProfileBar] = field(default_factory=lambda: list_bars(1, 32 * GIB))
    xml: str = ""
    host: dict[str, str] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    misaligned: int = 0
    """Bytes by which QEMU's mappings are off their BARs' alignment."""
    iova: int = IOVA
    """Guest address of the first BAR."""

    def address(self, bar: ProfileBar) -> int:
        return 0x7E0000000000 + self.bars.index(bar) * TIB + self.misaligned

    def map_bar(self, bar: ProfileBar, at: float, seconds: float, **how: Any) -> None:
        place = self.iova + self.bars.index(bar) * bar.size
        self.trace.mapped(at, seconds, self.address(bar), bar.size, iova=place, **how)

    def evidence(self) -> ProfileEvidence:
        failed = self.facts.get("ended") == "start-failed"
        maps = "".join(
            f"{self.address(bar):x}-{self.address(bar) + bar.size:x} rw-s"
            f" {bar.number << 40:08x} 00:0e 12 anon_inode:[vfio-device]\n"
            for bar in self.bars
        )
        process = {"pid": QEMU, "threads": [QEMU, VCPU], "page_table_bytes": 2 * MIB, "maps": maps}
        raw = FACTS | {
            "memory": 64 * GIB, "bars": [bar.model_dump() for bar in self.bars],
            "process": None if failed else process, "pid": 0 if failed else QEMU,
        }  # fmt: skip
        facts = parse_evidence(ProfileFacts, json.dumps(raw | self.facts), "facts.json")
        files = FILES | {
            "trace.txt": self.trace.text(), HOST_FILE: print_sections(self.host),
            AFTER_FILE: print_sections(self.after),
        }  # fmt: skip
        return ProfileEvidence(facts, files, self.xml)

    def profile(self) -> Profile:
        evidence = self.evidence()
        return analyse_profile(evidence.facts, evidence.files, evidence.xml)


def start(memory: int = 64 * GIB, pinned: float = 2.0, first: float = 2.0) -> Trace:
    """Return the beginning of a boot: QEMU's exec at 1 s, its first map `first` seconds later, of
    all memory, in `pinned` seconds."""
    trace = Trace().exec(1.0).mapped(1.0 + first, pinned, RAM_AT, memory, QEMU, iova=0)
    return trace.mark(1.5 + first + pinned, "run")


def fail(errno: int = 0, size: int = 64 * GIB, iova: int = 0, maps: int = 0) -> Trace:
    """Return the trace of a QEMU that ended at a map of its memory, after `maps` that worked."""
    trace = Trace().mark(0.5, "start").exec(1.0)
    for number in range(maps):
        trace.mapped(1.5 + number / 1e3, 0.0001, RAM_AT, 2 * MIB, QEMU, iova=number * 2 * MIB)
    if errno:
        trace.mapped(3.0, 0.4, RAM_AT, size, QEMU, iova=iova, result=-errno)
    return trace


FAILED = {"ended": "start-failed"}
DUMP = "RAX=0000000000000000 RBX=0000000000000000\nCode=00 66 89 d8\n"
"""What QEMU prints when its machine cannot run, and libvirt quotes."""


def write_xml(
    cpu: str = "<cpu mode='host-passthrough'/>", backing: str = "", devices: str = ""
) -> str:
    return (
        f"<domain type='kvm'><memory unit='GiB'>64</memory>{cpu}{backing}"
        "<os><type>hvm</type><loader type='pflash'>/OVMF.fd</loader></os>"
        f"<devices>{devices}</devices></domain>"
    )


# the reports ------------------------------------------------------------------------------------


def lxd_15872() -> SlowBoot:
    """canonical/lxd#15872, tianocore/edk2#10856: eight GPUs of 128 GiB after an upgrade to a host
    kernel 6.8 with QEMU 8.2: each BAR is mapped five times, by 4 KiB pages, 4.4 s a map."""
    boot = SlowBoot(start(), list_bars(8, 128 * GIB), write_xml(), misaligned=0x1000)
    boot.facts = {"qemu": "8.2.2", "huge_fault": False, "parts": False}
    at = 10.0
    for sizing in range(5):
        if sizing == 1:
            boot.trace.at(at + 1, "kvm_msr", "msr_write c0000080 = 0x501")
            at += 2
        for bar in boot.bars:
            boot.map_bar(bar, at, 4.4)
            at += 4.5
    boot.trace.mark(383.6, "agent")
    return boot


def lxd_15872_by_waiting() -> SlowBoot:
    """The same as LXD runs it: no libvirt knows the QEMU, which leaves its caller by a fork."""
    boot = lxd_15872()
    boot.xml = ""
    boot.facts |= {"boot": "wait", "uri": "", "libvirt": "none"}
    boot.after = {
        "cmdline": "/snap/lxd/current/bin/qemu-system-x86_64\n-name\nv1\n-cpu\nhost\n-daemonize"
    }
    boot.trace.lines[0] = boot.trace.lines[0].replace(f"-{QEMU} ", f"-{QEMU - 1} ")
    return boot


def kata_13270() -> SlowBoot:
    """kata-containers#13270, edk2#12997, kubevirt#11093: of eight GPUs of 128 GiB three have a BAR
    in the guest; its CPU model has no phys-bits of its own, which makes 40."""
    boot = SlowBoot(start(), list_bars(8, 128 * GIB), write_xml("<cpu mode='custom'/>"))
    boot.host, boot.iova = {"cpuinfo": print_cpu(46)}, 1 << 39
    for number, bar in enumerate(boot.bars[:3]):
        boot.map_bar(bar, 8.0 + number, 0.001)
    boot.trace.mark(30.0, "agent")
    return boot


def proxmox_1353() -> SlowBoot:
    """bpg/terraform-provider-proxmox#1353, cloud-hypervisor#6156: a guest of 1 TiB, whose memory
    is allocated, cleared and pinned before its first instruction: 130 of 151 s."""
    boot = SlowBoot(start(TIB, pinned=130.0), xml=write_xml())
    boot.facts = {"memory": TIB, "release": "6.18.0"}
    boot.map_bar(boot.bars[0], 140.0, 0.001)
    boot.trace.mark(152.0, "agent")
    return boot


def kubevirt_7279() -> SlowBoot:
    """kubevirt#7279: huge pages that QEMU clears before its first map, for 104 of 121 s."""
    backing = "<memoryBacking><hugepages/></memoryBacking>"
    boot = SlowBoot(start(512 * GIB, pinned=1.0, first=104.0), xml=write_xml(backing=backing))
    boot.facts = {"memory": 512 * GIB, "huge_pages": True, "release": "6.18.0"}
    boot.map_bar(boot.bars[0], 112.0, 0.001)
    boot.trace.mark(122.0, "agent")
    return boot


def lookingglass_1184() -> SlowBoot:
    """LookingGlass#1184, cloud-hypervisor#7030: a BAR at 0x382000000000, for which the guest's 46
    bits have room and the IOMMU's 39 do not."""
    boot = SlowBoot(start(), list_bars(1, 8 * GIB), write_xml())
    boot.host = {"cpuinfo": print_cpu(46), "iommu-cap": INTEL_39}
    boot.trace.mapped(9.0, 0.001, boot.address(boot.bars[0]), 8 * GIB, iova=0x382000000000,
                      result=-22)  # fmt: skip
    boot.trace.mark(40.0, "agent")
    return boot


def talos_14356() -> SlowBoot:
    """siderolabs/talos#14356, vfio-single-amdgpu#3: the firmware's framebuffer holds a part of the
    BAR, so that vfio-pci cannot request it, and hands out no mapping."""
    boot = SlowBoot(start(), list_bars(1, 16 * GIB), write_xml())
    bar = boot.bars[0]
    end = bar.start + bar.size - 1
    whole = f"{bar.start:x}-{end:x}"
    boot.host = {
        f"device/{bar.device}/driver": "vfio-pci",
        "iomem": f"{whole} : PCI Bus 0000:17\n  {whole} : {bar.device}\n"
        f"    {bar.start:x}-{bar.start + 0x7E8FFF:x} : BOOTFB",
    }
    boot.after = {"dmesg": f"[  812.1] vfio-pci {bar.device}: BAR 2: can't reserve"
                  f" [mem {bar.start:#x}-{end:#x} 64bit pref]"}  # fmt: skip
    boot.trace.mark(60.0, "agent")
    return boot


def kubevirt_14593() -> SlowBoot:
    """kubevirt#14593, cloud-hypervisor#165: RLIMIT_MEMLOCK is less than the guest's memory."""
    boot = SlowBoot(fail(12), xml=write_xml(), facts={**FAILED})
    boot.after = {
        "error": "libvirt could not start gpu vm: internal error: QEMU unexpectedly closed the"
        f" monitor: vfio 0000:17:00.0: failed to setup container for group 12\n{DUMP}",
        "qemu-log": "qemu-kvm: -device vfio-pci: VFIO_MAP_DMA failed: Cannot allocate memory",
        "dmesg": "[ 88.2] vfio_pin_pages_remote: RLIMIT_MEMLOCK (8388608) exceeded",
    }
    return boot


def kata_11721() -> SlowBoot:
    """kata-containers#11721, NVIDIA/nvtrust#46: the container has no more entries for maps."""
    boot = SlowBoot(fail(28, maps=20), xml=write_xml())
    boot.facts = {**FAILED, "settings": FACTS["settings"] | {"dma_entry_limit": "20"}}
    boot.after = {"error": f"QEMU unexpectedly closed the monitor:\n{DUMP}",
                  "qemu-log": f"VFIO_MAP_DMA failed: No space left on device\n{DUMP}"}  # fmt: skip
    return boot


def harvester_7340() -> SlowBoot:
    """harvester#7340, gatekeeper#718: the firmware keeps memory mapped for the device (RMRR)."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    device = boot.bars[0].device
    regions = "0x00000000bdf6e000 0x00000000bdf84fff direct"
    regions += "\n0x00000000fee00000 0x00000000feefffff msi"
    boot.host = {f"device/{device}/reserved_regions": regions}
    boot.after = {
        "error": f"vfio {device}: failed to setup container for group 30: Failed to set group"
        " container: Operation not permitted",
        "dmesg": f"[ 77.1] vfio-pci {device}: Device is ineligible for IOMMU domain attach due to"
        " platform RMRR requirement.  Contact your platform vendor.",
    }
    return boot


def kata_11708() -> SlowBoot:
    """kata-containers#11708, vm-curator#63: a device that does not wake from D3cold."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    device = boot.bars[0].device
    boot.host = {f"device/{device}/config": " ff ff ff ff",
                 f"device/{device}/power_state": "unknown"}  # fmt: skip
    boot.after = {
        "error": f"vfio {device}: error getting device from group 30: No such device",
        "dmesg": f"[ 91.7] vfio-pci {device}: Unable to change power state from D3cold to D0,"
        " device inaccessible",
    }
    return boot


def cloud_hypervisor_7991() -> SlowBoot:
    """cloud-hypervisor#7991, #6196: a large BAR whose mapping is not aligned to it, so that it is
    mapped and looked up page by page."""
    boot = SlowBoot(start(), list_bars(1, 64 * GIB), misaligned=0x3000)
    boot.facts = {"boot": "wait", "qemu": "unknown", "libvirt": "none", "uri": ""}
    boot.after = {"cmdline": "/usr/bin/cloud-hypervisor\n--memory\nsize=64G"}
    boot.map_bar(boot.bars[0], 7.0, 9.0)
    boot.map_bar(boot.bars[0], 20.0, 9.0)
    boot.trace.mark(40.0, "agent")
    return boot


def dra_driver_1191() -> SlowBoot:
    """dra-driver-nvidia-gpu#1191, vga-passthrough#15: another function of the group has a
    driver."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED})
    boot.after = {
        "error": "vfio 0000:17:00.0: group 15 is not viable\nPlease ensure all devices within the"
        " iommu_group are bound to their vfio bus driver."
    }
    return boot


def no_interrupt_remapping() -> SlowBoot:
    """The report without a number: VFIO refuses every device, since no interrupt is remapped."""
    boot = SlowBoot(fail(), xml=write_xml(), facts={**FAILED}, host={"interrupts": ""})
    boot.after = {
        "error": "vfio 0000:17:00.0: failed to setup container for group 1: failed to set iommu"
        " for container: Operation not permitted",
        "dmesg": "[ 12.9] vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the"
        ' module param "allow_unsafe_interrupts" to enable VFIO IOMMU support on this platform',
    }
    return boot


def reset_timeout() -> SlowBoot:
    """The gpu-passthrough threads: a start takes a minute, and the kernel's log ends with `not
    ready 65535ms after FLR; giving up`."""
    boot = SlowBoot(start(first=1.0), xml=write_xml(), facts={"release": "6.18.0"})
    boot.trace.lines.pop()
    device = boot.bars[0].device
    boot.host = {"dmesg": f"[   50.1] vfio-pci {device}: not ready 1023ms after FLR; waiting"}
    boot.after = {"dmesg": "".join(
        f"[  {at}.1] vfio-pci {device}: not ready {ms}ms after FLR; {what}\n"
        for at, ms, what in ((101, 1023, "waiting"), (134, 32767, "waiting"),
                             (166, 65535, "giving up")))}  # fmt: skip
    boot.trace.mark(70.0, "run")
    boot.map_bar(boot.bars[0], 70.5, 0.001)
    boot.trace.mark(72.0, "agent")
    return boot


def checkbox_2007() -> SlowBoot:
    """canonical/checkbox#2007: q35-pcihost.pci-hole64-size of a script's QEMU is too small for its
    two GPUs of 256 GiB."""
    boot = SlowBoot(start(), list_bars(2, 256 * GIB))
    boot.facts = {"boot": "wait", "uri": "", "libvirt": "none"}
    boot.host = {"cpuinfo": print_cpu(46)}
    boot.after = {
        "cmdline": "qemu-system-x86_64\n-cpu\nEPYC,phys-bits=41\n-m\n64G\n-global\n"
        "q35-pcihost.pci-hole64-size=64G\n-drive\nif=pflash,file=/OVMF_CODE.fd"
    }
    boot.map_bar(boot.bars[0], 8.0, 0.001)
    boot.trace.mark(30.0, "agent")
    return boot


def kata_10582() -> SlowBoot:
    """kata-containers#10582: the second of two T4 gets the guest addresses of the first
    (EEXIST); cloud-hypervisor."""
    boot = SlowBoot(start(16 * GIB), list_bars(2, 256 * MIB))
    boot.facts = {"boot": "wait", "uri": "", "libvirt": "none", "qemu": "unknown",
                  "memory": 16 * GIB}  # fmt: skip
    boot.after = {"cmdline": "/usr/bin/cloud-hypervisor\n--memory\nsize=16G"}
    boot.map_bar(boot.bars[0], 8.0, 0.001)
    boot.trace.mapped(9.0, 0.001, boot.address(boot.bars[1]), 256 * MIB, iova=IOVA, result=-17)
    boot.trace.mark(20.0, "agent")
    return boot


def cloudpods_25408() -> SlowBoot:
    """yunionio/cloudpods#25408, lxd#14381: of eight V100 four have no BAR. The CPU has bits
    enough; OVMF of QEMU 4.2's time has a window of 32 GiB, unless X-PciMmio64Mb sets another."""
    boot = SlowBoot(start(), list_bars(8, 16 * GIB))
    boot.facts = {"boot": "wait", "uri": "", "libvirt": "none", "qemu": "4.2.0"}
    boot.host = {"cpuinfo": print_cpu(46)}
    boot.after = {
        "cmdline": "/usr/local/qemu-4.2.0/bin/qemu-system-x86_64\n-cpu\nhost\n-m\n64G\n-drive\n"
        "if=pflash,file=/OVMF_CODE.fd"
    }
    for number, bar in enumerate(boot.bars[:4]):
        boot.map_bar(bar, 8.0 + number, 0.001)
    boot.trace.mark(30.0, "agent")
    return boot


# cases of the same kinds ------------------------------------------------------------------------


def guest_iommu() -> SlowBoot:
    """A guest that translates with an IOMMU of its own: 60000 maps of 4 KiB."""
    boot = SlowBoot(start(), xml=write_xml(devices="<iommu model='intel'/>"))
    boot.map_bar(boot.bars[0], 8.0, 0.001)
    for number in range(60000):
        at = 10.0 + number * 3e-4
        boot.trace.mapped(at, 2.5e-4, RAM_AT + number * 4096, 4096, iova=number * 4096)
    boot.trace.mark(30.0, "agent")
    return boot


def small_iommu_pages() -> SlowBoot:
    """A host whose command line has sp_off: 12 of 24 s are the IOMMU's page tables."""
    boot = SlowBoot(start(), xml=write_xml())
    boot.facts = {"settings": FACTS["settings"] | {"cmdline": "quiet intel_iommu=on,sp_off"}}
    bar = boot.bars[0]
    for number in range(4):
        at = 7.0 + 4 * number
        place, pages = IOVA, bar.size // 4096
        query = f"q8={boot.address(bar):#x} q16={place:#x}"
        boot.trace.at(at, "ioctl_in", f"(f) cmd=0x3b71 {query} q24={bar.size:#x}")
        boot.trace.at(at + 0.01, "pin_in", f"(f) vaddr=0x1 npage={pages}")
        boot.trace.at(at + 0.02, "pin_out", f"(f) npage={pages} ret={pages}")
        boot.trace.at(at + 0.03, "imap_in", f"(f) iova={place:#x} paddr=0x1 size={bar.size:#x}")
        boot.trace.at(at + 3.03, "imap_out", f"(f) iova={place:#x} size={bar.size:#x} ret=0")
        boot.trace.at(at + 3.04, "ioctl_out", f"(f) cmd=0x3b71 {query} ret=0")
    boot.trace.mark(25.0, "agent")
    return boot


def wide_guest() -> SlowBoot:
    """A guest that was given 46 address bits on a host of 39."""
    cpu = "<cpu mode='host-model'><maxphysaddr mode='emulate' bits='46'/></cpu>"
    boot = SlowBoot(start(), xml=write_xml(cpu), host={"cpuinfo": print_cpu(39)})
    boot.map_bar(boot.bars[0], 8.0, 0.001)
    boot.trace.mark(30.0, "agent")
    return boot


def managed_device() -> SlowBoot:
    """A device that libvirt takes from its driver and resets, for 40 s, before it starts QEMU."""
    managed = "<hostdev type='pci' managed='yes'/>"
    boot = SlowBoot(start(first=41.0), xml=write_xml(devices=managed))
    boot.facts = {"release": "6.18.0"}
    del boot.trace.lines[0]  # QEMU's exec, which is later here
    boot.trace.mark(1.0, "start").exec(41.0)
    boot.map_bar(boot.bars[0], 46.0, 0.001)
    boot.trace.mark(50.0, "agent")
    return boot


def amd_hole() -> SlowBoot:
    """A guest of 1 TiB whose memory reaches AMD's HyperTransport range."""
    boot = SlowBoot(fail(22, 960 * GIB, 4 * GIB), xml=write_xml(), facts={**FAILED})
    boot.facts["memory"] = TIB
    boot.trace = fail(22, TIB, 4 * GIB)
    region = "0x000000fd00000000 0x000000ffffffffff reserved"
    boot.host = {"cpuinfo": print_cpu(48, "AuthenticAMD"),
                 f"device/{boot.bars[0].device}/reserved_regions": region}  # fmt: skip
    return boot
