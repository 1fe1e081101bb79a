"""Every finding, provoked by one change to a machine that has none."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.doctor import (
    checks_boot,
    checks_measurement,
    checks_passthrough,
    checks_restore,
    checks_runner,
)
from orchestrator.analysis.doctor.finding import (
    METAL,
    NESTED,
    USES,
    Finding,
    Needs,
    Status,
    derive_needs,
)
from orchestrator.analysis.doctor.findings import is_usable, judge_machine, select_problems
from orchestrator.base.errors import EvidenceError
from orchestrator.formats.abi import OVMF_CODE, OVMF_VARIABLES
from orchestrator.formats.units import GIB, MIB
from tests.unit.checkups import (
    Change,
    Raw,
    file,
    of_server,
    parse,
    read,
    recorded,
    replaced,
    server,
    value,
)
from tests.unit.scenarios import map_scenario, scenario
from tests.unit.stable import has_in_order, numbers_in

CPU, CMDLINE = "/proc/cpuinfo", "/proc/cmdline"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
CAP = "/sys/class/iommu/dmar0/intel-iommu/cap"
FULL_CAP = 0x8D2078C106F0466
"""Leaves of 2 MiB and 1 GiB (bits 34, 35), addresses of 48 bits (MGAW, bits 21:16, is 47)."""
LOCKDOWN = "/sys/kernel/security/lockdown"
TYPE1 = "/sys/module/vfio_iommu_type1/parameters"
EVENTS = "/sys/kernel/tracing/kprobe_events"
CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
GOVERNOR = "/sys/devices/system/cpu/cpu1/cpufreq/scaling_governor"
OLD_TYPES = ["vma", "address", "lock", "ptep", "pfn", "pgprot", "writable", "special"]
OLD_PARAMETERS = [["mm", "mm_struct"], ["vaddr", "long unsigned int"], ["pages", "page"]]


def user(raw: Raw) -> None:
    raw |= {"uid": 1000, "user": "ada"}


def silent(raw: Raw) -> None:
    del raw["kvm"]
    raw["kvm_silent"] = 4.0


def no_iommu(raw: Raw) -> None:
    raw |= {"iommus": [], "groups": {}}


def no_meminfo(raw: Raw) -> None:
    del raw["files"]["/proc/meminfo"]


def unexamined(*names: str) -> Change:
    def change(raw: Raw) -> None:
        for name in names:
            del raw[name]

    return change


def amd(raw: Raw) -> None:
    cpu = raw["files"][CPU].replace("GenuineIntel", "AuthenticAMD").replace("vmx", "svm")
    raw["files"][CPU] = cpu
    raw["files"] = {p: t for p, t in raw["files"].items() if "intel" not in p}
    raw["iommus"] = ["ivhd0"]


def no_bars(raw: Raw) -> None:
    raw["bars"] = raw["bars"][:1]


def bar(**facts: object) -> Change:
    def change(raw: Raw) -> None:
        raw["bars"][1] |= facts

    return change


def no_program(name: str) -> Change:
    return value("programs", name, to=None)


def watchdog(**facts: str) -> Change:
    def change(raw: Raw) -> None:
        raw["means"]["watchdogs"][0] |= facts

    return change


def unusable(way: str, why: str) -> Change:
    return value("means", way, to={"usable": False, "why": why})


def qemu(version: str) -> Change:
    line = f"QEMU emulator version {version}"
    return value("programs", "qemu-system-x86_64", "version", to=line)


@dataclass(frozen=True)
class Case:
    name: str
    status: Status
    mentioned: str
    """A name or number in the finding's text; empty if `fix` alone tells the finding."""
    fix: str
    """A name, number or command in the fix's text."""
    changes: tuple[Change, ...]
    needs: Needs = field(default_factory=lambda: Needs(USES))


def case(
    name: str, status: Status, mentioned: str, fix: str, *changes: Change,
    needs: Needs | None = None,
) -> Case:  # fmt: skip
    return Case(name, status, mentioned, fix, changes, needs or Needs(USES))


INTEGRITY = file(LOCKDOWN, "none [integrity] confidentiality")
NO_FLAGS = replaced(CPU, " vmx", "")
NO_KVM = value("kvm", to="the CPU shows neither vmx nor svm")
GUEST = replaced(CPU, " lahf_lm", " lahf_lm hypervisor")
NAMESPACES = "/proc/sys/user/max_user_namespaces"
WITH_RANGE = (file("/etc/subuid", "ada:100000:65536"), file("/etc/subgid", "ada:100000:65536"))
CASES = [
    # -- KVM and what runs VMs
    case("kvm", "warning", "vmx", "firmware", NO_FLAGS, NO_KVM),
    case("kvm", "warning", "vmx", "nested", NO_FLAGS, GUEST, NO_KVM),
    case("kvm", "note", "KVM", "firmware", NO_FLAGS, NO_KVM, needs=Needs(NESTED)),
    case("kvm", "warning", "/dev/kvm", "modprobe kvm_intel",
         value("kvm", to="there is no /dev/kvm"), value("present", "/dev/kvm", to=False)),
    case("kvm", "warning", "emulated", "usermod -aG kvm ada", user,
         value("kvm", to="Permission denied"), value("access", "/dev/kvm", to=False),
         needs=Needs(METAL)),
    case("kvm", "warning", "failed to initialize", "dmesg",
         value("kvm", to="failed to initialize kvm: Input/output error")),
    case("kvm-unanswered", "warning", "4 s", "slow", silent),
    case("kvm-unanswered", "note", "", "dmesg", silent, needs=Needs(NESTED)),
    case("kvm-unanswered", "warning", "", "dmesg", silent,
         needs=Needs(NESTED, accel="kvm")),
    case("kvm", "problem", 'host.accel = "kvm"', 'host.accel = "auto"', NO_FLAGS, NO_KVM,
         needs=Needs(NESTED, accel="kvm")),
    case("nested-virtualisation", "warning", "emulated", "kvm_intel nested=1",
         file("/sys/module/kvm_intel/parameters/nested", "N")),
    case("qemu", "problem", "QEMU", "qemu-system-x86", no_program("qemu-system-x86_64")),
    case("qemu", "problem", "9.2.0", "QEMU 10", qemu("9.2.0"), needs=Needs(NESTED)),
    case("qemu", "warning", "version", "--version",
         value("programs", "qemu-system-x86_64", "version", to="")),
    case("qemu-alignment", "warning", "QEMU 8.2.2", "QEMU 9.2",
         qemu("8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)"), needs=Needs(METAL)),
    case("libvirt-library", "problem", "libvirt 9.0.0", "libvirt-daemon-driver-qemu",
         value("libvirt", to="9.0.0")),
    case("libvirt-library", "problem", "", "libvirt-daemon-driver-qemu",
         value("libvirt", to="")),
    case("firmware", "problem", "/usr/share/OVMF/OVMF_CODE_4M.fd", "apt-get install ovmf",
         needs=Needs(METAL, firmware="ovmf")),
    case("firmware", "problem", "/usr/share/OVMF/OVMF_VARS_4M.fd", "apt-get install ovmf",
         value("present", OVMF_CODE, to=True), needs=Needs(METAL, firmware="ovmf")),
    case("firmware", "ok", "OVMF", "", value("present", OVMF_CODE, to=True),
         value("present", OVMF_VARIABLES, to=True), needs=Needs(METAL, firmware="ovmf")),
    case("libvirt", "problem", "", "systemctl enable --now",
         value("sockets", "/run/libvirt/libvirt-sock", to=False)),
    case("libvirt", "problem", "libvirt", "apt-get install", no_program("libvirtd"),
         value("sockets", to={})),
    case("programs", "problem", "mmdebstrap, mke2fs", "install mmdebstrap e2fsprogs",
         no_program("mmdebstrap"), no_program("mke2fs")),
    case("programs", "problem", "git", "install git", no_program("git"),
         needs=Needs(NESTED, builds=True)),
    case("programs", "problem", "newuidmap", "install uidmap", user, *WITH_RANGE,
         no_program("newuidmap")),
    case("subuid", "problem", "/etc/subuid", "usermod --add-subuids", user),
    case("subuid", "problem", "namespaces", "sysctl user.max_user_namespaces=10000",
         user, *WITH_RANGE, file(NAMESPACES, "0")),
    case("shm", "problem", "/dev/shm", "mount -t tmpfs",
         value("access", "/dev/shm", to=False)),
    case("memory", "problem", "10GiB", "host.memory",
         file("/proc/meminfo", "MemAvailable: 8388608 kB"),
         needs=Needs(NESTED, host_memory=8 * GIB)),
    case("memory", "problem", "64.5 GiB", "guest.memory",
         file("/proc/meminfo", "MemAvailable: 8388608 kB"),
         needs=Needs(METAL, guest_memory=64 * GIB)),
    case("memory", "warning", "", "free -h", no_meminfo),
    case("disk", "warning", "/var/lib/barometer", "df -h",
         value("folders", "/var/lib/barometer", to=None)),
    case("disk", "warning", "3GiB", "BAROMETER_CACHE",
         value("folders", "/home/tester/.cache/barometer",
               to={"at": "/home", "free": 3 * GIB, "total": 9 * GIB})),
    case("disk", "problem", "0.1 GiB", "",
         value("folders", "/var/lib/barometer",
               to={"at": "/", "free": 100 * MIB, "total": 9 * GIB})),
    case("restore", "note", "cannot write a host's state", "8.2", qemu("8.1.5")),
    case("restore", "note", "cannot write a host's state", "8.2",
         value("programs", "qemu-system-x86_64", "version", to="")),
    case("restore", "note", "needs 4GiB free", "BAROMETER_CACHE",
         value("folders", "/home/tester/.cache/barometer",
               to={"at": "/home", "free": 3 * GIB, "total": 9 * GIB})),
    case("restore", "note", "needs 8GiB free", "BAROMETER_CACHE",
         value("folders", "/home/tester/.cache/barometer", to=None),
         needs=Needs(NESTED, host_memory=8 * GIB)),
    case("restore", "note", 'workload = "guest-boot"', 'host.accel = "exact"',
         needs=Needs(NESTED, boots_because='workload = "guest-boot"')),
    # -- giving a device away
    case("iommu", "problem", "IOMMU", "intel_iommu=on", no_iommu),
    case("iommu", "problem", "IOMMU", "intel_iommu=off", no_iommu,
         replaced(CMDLINE, "intel_iommu=on", "intel_iommu=off")),
    case("iommu", "problem", "IOMMU", "VT-d", no_iommu,
         value("present", "/sys/firmware/acpi/tables/DMAR", to=False)),
    case("iommu", "problem", "IOMMU", "-device intel-iommu", no_iommu, GUEST,
         value("present", "/sys/firmware/acpi/tables/DMAR", to=False)),
    case("iommu", "problem", "IOMMU", "dmesg | grep AMD-Vi", amd, no_iommu,
         value("present", "/sys/firmware/acpi/tables/IVRS", to=True)),
    case("iommu", "problem", "IOMMU", "firmware", amd, no_iommu),
    case("iommu", "problem", "IOMMU", "amd_iommu=off", amd, no_iommu,
         file(CMDLINE, "amd_iommu=off")),
    case("iommu-superpages", "warning", "intel_iommu=sp_off", "sp_off",
         replaced(CMDLINE, "intel_iommu=on", "intel_iommu=on,sp_off")),
    case("iommu-superpages", "warning", "amd_iommu=nohugepages", "nohugepages", amd,
         file(CMDLINE, "amd_iommu=nohugepages")),
    case("iommu-superpages", "ok", "", "", amd,
         file(CMDLINE, "amd_iommu=v2_pgsizes_only")),
    case("iommu-superpages", "warning", "4KiB", "hardware",
         file(CAP, f"{FULL_CAP & ~(3 << 34):x}")),
    case("iommu-superpages", "note", "", "counts", value("iommus", to=["virtio0"])),
    case("interrupt-remapping", "problem", "VFIO", "intremap=off",
         value("interrupts", to=["IO-APIC", "PCI-MSIX"]),
         replaced(CMDLINE, "intel_iommu=on", "intel_iommu=on intremap=off")),
    case("interrupt-remapping", "problem", "VFIO",
         "vfio_iommu_type1.allow_unsafe_interrupts=1",
         value("interrupts", to=["IO-APIC"])),
    case("interrupt-remapping", "note", "", "trusted",
         value("interrupts", to=["IO-APIC"]), file(f"{TYPE1}/allow_unsafe_interrupts", None),
         file(CMDLINE, "vfio_iommu_type1.allow_unsafe_interrupts=1")),
    case("interrupt-remapping", "note", "", "trusted",
         value("interrupts", to=["IO-APIC"]), file(f"{TYPE1}/allow_unsafe_interrupts", "Y")),
    case("large-bar", "problem", "1GiB", "Resizable BAR", no_bars),
    case("large-bar", "problem", "256GiB", "large BAR", needs=Needs(METAL, bar=256 * GIB)),
    case("large-bar", "problem", "", "Above 4G Decoding", bar(placed=False)),
    case("large-bar", "problem", "", "device",
         bar(refused=["own-disk: the root file system is on it"])),
    case("large-bar", "problem", "", "doctor", unexamined("bars")),
    case("resizable-bar", "warning", "128GiB", "Resizable BAR",
         bar(size=256 * MIB, growable=128 * GIB)),
    case("resizable-bar", "note", "is not known", "power/control",
         bar(size=256 * MIB, growable=None)),
    case("device", "problem", "0000:99:00.0", "device.address",
         value("device", to={"why": "the machine has no device 0000:99:00.0",
                             "evidence": ["0000:3b:00.0 (10de:2330)"], "hint": ""})),
    case("address-bits", "problem", "36", "38",
         needs=Needs(METAL, bar=128 * GIB, guest_bits=36)),
    case("address-bits", "problem", "128GiB (ovmf)", "41",
         needs=Needs(METAL, bar=128 * GIB, guest_bits=38, firmware="ovmf")),
    case("address-bits", "problem", "52", "guest.phys_bits",
         needs=Needs(METAL, bar=128 * GIB, guest_bits=52)),
    case("address-bits", "warning", "39", "guest.phys_bits = 39",
         file(CAP, f"{FULL_CAP & ~(0x3F << 16) | 38 << 16:x}")),
    case("dma-entries", "warning", "512", "/etc/modprobe.d",
         file(f"{TYPE1}/dma_entry_limit", "512")),
    case("memlock", "note", "8MiB", "limits.d", user),
    case("vfio", "warning", "type1", "CONFIG_VFIO_IOMMU_TYPE1",
         value("symbols", "vfio_iommu_type1_ioctl", to=None)),
    case("vfio", "note", "", "staged",
         value("symbols", "vfio_iommu_type1_ioctl", to=None),
         value("unread", to={"/lib/modules/x/modules.dep": "no such file"})),
    # -- measuring
    case("series", "warning", "", "v6.15",
         value("types", "members", to=OLD_TYPES)),
    case("series", "warning", "", "v6.15",
         value("types", "parameters", to=OLD_PARAMETERS)),
    case("series", "warning", "huge pfnmaps", "v6.15",
         value("types", "members", to=None)),
    case("series", "note", "", "modprobe vfio_iommu_type1",
         value("types", "parameters", to=None)),
    case("series", "note", "", "modprobe", value("types", to=None)),
    case("thp", "warning", "madvise", "transparent_hugepage=always",
         file(THP, "always [madvise] never")),
    case("thp", "warning", "transparent huge pages", "TRANSPARENT_HUGEPAGE", file(THP, None)),
    case("1gib-pages", "warning", "1 GiB", "hardware",
         replaced(CPU, " pdpe1gb", "")),
    case("1gib-pages", "warning", "1 GiB", "host-passthrough", GUEST,
         replaced(CPU, " pdpe1gb", "")),
    case("hugepages", "note", "2", '"hugepagesz=1G hugepages=2"',
         needs=Needs(METAL, guest_memory=2 * GIB, backing="hugetlb-1GiB")),
    case("hugepages", "note", "1024", '"hugepagesz=2M hugepages=1024"',
         needs=Needs(METAL, guest_memory=2 * GIB, backing="hugetlb-2MiB")),
    case("tracing", "warning", "tracefs", "mount -t tracefs",
         value("access", EVENTS, to=False), file("/proc/self/mounts", "proc /proc proc rw 0 0")),
    case("tracing", "warning", "/sys/kernel/tracing", "mount -t tracefs nodev",
         value("access", EVENTS, to=False),
         file("/proc/self/mounts", "tracefs /sys/kernel/debug/tracing tracefs rw 0 0")),
    case("tracing", "warning", "probes", "CONFIG_KPROBE_EVENTS",
         value("access", EVENTS, to=False)),
    case("tracing", "note", "probes", "CONFIG_KPROBE_EVENTS",
         value("access", EVENTS, to=False), needs=Needs(METAL, traced=False)),
    case("tracing", "note", "root", "root", user, value("access", EVENTS, to=False)),
    case("profiling", "note", "probes", "tracing", value("access", EVENTS, to=False)),
    case("profiling", "note", "root", "root", user),
    case("profiling", "note", "confidentiality", "Secure Boot",
         file(LOCKDOWN, "none integrity [confidentiality]")),
    case("profiling", "note", "vfio_unmap_unpin", "modprobe vfio-pci",
         value("symbols", "vfio_unmap_unpin", to=None)),
    case("symbols", "warning", "vaddr_get_pfns", "plain",
         value("symbols", "vaddr_get_pfns", to=None)),
    case("symbols", "note", "vaddr_get_pfns", "modprobe -a vfio-pci",
         value("symbols", "vaddr_get_pfns", to=None),
         value("unread", to={"/proc/kallsyms": "Permission denied"})),
    case("clocksource", "warning", "hpet", "dmesg", file(CLOCK, "hpet")),
    case("clocksource", "note", "kvm-clock", "dmesg", file(CLOCK, "kvm-clock")),
    case("governor", "warning", "performance, powersave", "echo performance",
         file(GOVERNOR, "powersave")),
    case("governor", "warning", "powersave", "echo performance",
         file(GOVERNOR, "powersave"), needs=Needs(NESTED)),
    case("governor", "warning", "powersave", "cpufreq.default_governor=performance",
         file(GOVERNOR, "powersave"), needs=Needs(METAL)),
    case("governor", "note", "", "firmware", file(GOVERNOR, None),
         file(GOVERNOR.replace("cpu1", "cpu0"), None)),
    case("turbo", "note", "nominal", "echo 1 >",
         file("/sys/devices/system/cpu/intel_pstate/no_turbo", "0")),
    case("turbo", "note", "nominal", "echo 0 >",
         file("/sys/devices/system/cpu/cpufreq/boost", "1")),
    case("turbo", "note", "nominal",
         'sysfs."/sys/devices/system/cpu/cpufreq/boost" = 0',
         file("/sys/devices/system/cpu/cpufreq/boost", "1"), needs=Needs(METAL)),
    # -- another kernel
    case("root", "problem", "ada", "NOPASSWD", user),
    case("python", "problem", "3.6.8", "3.9", value("python", to="3.6.8")),
    case("lockdown", "problem", "(integrity)", "Secure Boot", INTEGRITY,
         value("means", "secure_boot", to=True)),
    case("lockdown", "problem", "Secure Boot", "Secure Boot",
         value("means", "secure_boot", to=True)),
    case("lockdown", "problem", "(integrity)", "lockdown=integrity",
         INTEGRITY, replaced(CMDLINE, "quiet", "lockdown=integrity")),
    case("lockdown", "problem", "(confidentiality)", "FORCE_INTEGRITY", user,
         value("means", to={"why": "the keeper must run as root"}),
         file(LOCKDOWN, "none integrity [confidentiality]")),
    case("lockdown", "warning", "", "root",
         value("unreadable", LOCKDOWN, to="Permission denied")),
    case("boot", "note", "root", "root", unexamined("means")),
    case("boot", "problem", "", "apt-get install kexec-tools",
         unusable("kexec", "the machine has no kexec(8): install kexec-tools"),
         unusable("grub", "no grub.cfg")),
    case("boot", "problem", "", "",
         unusable("kexec", "the kernel is locked down"), unusable("grub", "no grub.cfg")),
    case("boot", "problem", '"kexec"', 'host.boot = "grub"',
         unusable("kexec", "the kernel is locked down"), needs=Needs(METAL, boot="kexec")),
    case("boot", "problem", '"systemd-boot"', 'host.boot = "kexec"',
         needs=Needs(METAL, boot="systemd-boot")),
    case("boot", "note", "root", "root",
         value("means", to={"why": "the keeper must run as root"})),
    case("experiment", "warning", "ada@runner1", "host.wait",
         value("leases", to=[{"token": 7, "resources": ["machine", "0000:3b:00.0"], "left": 41.0,
                              "owner": {"user": "ada", "runner": "runner1", "what": "run x"},
                              "expired": False}])),
    case("experiment", "warning", "", "root", unexamined("leases"),
         value("present", "/var/lib/barometer", to=True)),
    case("experiment", "warning", "", "doctor", value("present", to={})),
    case("experiment", "warning", "", "barometer recover",
         value("present", "/var/lib/barometer", to=True)),
    case("watchdog", "warning", "", "/etc/modules-load.d/watchdog.conf",
         value("means", "watchdogs", to=[])),
    case("watchdog", "warning", "iTCO_wdt", "host.power_cycle",
         unusable("kexec", "the machine has no kexec(8): install kexec-tools")),
    case("watchdog", "warning", "iTCO_wdt", "host.power_cycle",
         needs=Needs(METAL, boot="grub")),
    case("watchdog", "warning", "systemd-boot", "host.power_cycle",
         value("means", "systemd-boot", to={"usable": True, "why": ""}),
         needs=Needs(METAL, boot="systemd-boot")),
    case("watchdog", "ok", "iTCO_wdt", "", needs=Needs(METAL, boot="kexec")),
    case("watchdog", "warning", "watchdog0",
         "RuntimeWatchdogSec=", watchdog(why="watchdog0 is active, so it is left alone")),
    case("watchdog", "warning", "iTCO_wdt", "watchdog.stop_on_reboot=0",
         value("means", "watchdog_stop_on_reboot", to="-1")),
    case("watchdog", "warning", "iTCO_wdt", "watchdog.stop_on_reboot=0",
         value("means", "watchdog_stop_on_reboot", to=None)),
]  # fmt: skip


@pytest.mark.parametrize("provoked", CASES, ids=lambda case: f"{case.name}-{case.status}")
def test_finding_is_provoked(provoked: Case) -> None:
    finding = of_server(*provoked.changes, needs=provoked.needs)[provoked.name]
    assert finding.status == provoked.status, finding
    assert not provoked.mentioned or has_in_order(finding.what, provoked.mentioned), finding
    assert provoked.fix in finding.fix, finding
    assert finding.evidence


def test_every_finding_is_provoked_and_ok_on_the_server() -> None:
    """The exception is the finding that only lists what is there."""
    written = {
        name
        for module in (
            checks_boot,
            checks_measurement,
            checks_passthrough,
            checks_restore,
            checks_runner,
        )
        for name in re.findall(
            r'Finding\(\s*"([\w-]+)"', Path(str(module.__file__)).read_text("utf-8")
        )
    }
    assert len(written) > 25
    assert written - {provoked.name for provoked in CASES} == {"iommu-groups"}
    assert {f.status for f in of_server().values()} == {"ok"}
    only_bad = {"firmware", "qemu-alignment", "resizable-bar", "device", "hugepages", "turbo",
                "subuid", "kvm-unanswered"}  # fmt: skip
    assert written - {*of_server()} == only_bad


def test_what_is_ok_has_no_fix_and_all_else_has_one() -> None:
    for provoked in CASES:
        for finding in judge_machine(server(*provoked.changes), provoked.needs):
            assert bool(finding.fix) == (finding.status != "ok"), finding
            assert "\n" not in finding.what + finding.fix


def test_the_worst_comes_first() -> None:
    findings = judge_machine(recorded("emulated-runner"), Needs(USES))
    order = ["problem", "warning", "note", "ok"]
    assert [f.status for f in findings] == sorted((f.status for f in findings), key=order.index)
    assert {f.status for f in findings} == {*order}


def test_a_machine_without_an_iommu_still_runs_nested_hosts() -> None:
    findings = judge_machine(recorded("emulated-runner"), Needs(USES))
    assert select_problems(findings, "nested") == ()
    assert {f.name for f in select_problems(findings, "metal")} >= {"iommu", "large-bar", "boot"}
    assert is_usable(findings, Needs(USES))
    assert not is_usable(findings, Needs(METAL))


def test_findings_are_of_the_use_that_is_asked_for() -> None:
    nested = {f.name for f in judge_machine(recorded("emulated-runner"), Needs(NESTED))}
    assert nested >= {"kvm", "qemu", "programs", "shm", "memory", "disk"}
    assert not nested & {"iommu", "large-bar", "series", "root"}


def counted(lookups: int) -> Change:
    text = f"{{ ret: 1 }} hitcount: {lookups}\n\nTotals:\n    Hits: {lookups}\n    Entries: 1\n"
    text += "    Dropped: 0\n"
    probe = {"address": "0000:3b:00.0", "bytes": 2 * MIB, "lookups": text, "faults": ""}
    return value("probe", to=probe)


def test_a_map_tells_more_than_types() -> None:
    finding = of_server(counted(512))["series"]
    assert (finding.status, "counted" in finding.what) == ("warning", True)
    assert finding.evidence == ("one map of 512 pages of 0000:3b:00.0: 512 lookups",)
    assert of_server(counted(1), value("types", to=None))["series"].status == "ok"


@pytest.mark.parametrize(
    "probe",
    [
        {"why": "no device"},
        {"address": "0000:3b:00.0", "bytes": MIB, "lookups": "cut", "faults": ""},
    ],
)
def test_a_map_that_was_not_counted_leaves_the_types(probe: dict[str, object]) -> None:
    old_types = value("types", "members", to=OLD_TYPES)
    finding = of_server(value("probe", to=probe), old_types)["series"]
    assert finding.status == "warning"
    assert finding.what != of_server(counted(512))["series"].what
    assert str(probe.get("why", "")) in finding.evidence[-1]


def test_kvm_that_does_not_answer_is_in_nobodys_way() -> None:
    findings = judge_machine(server(silent), Needs(NESTED, accel="kvm"))
    assert "kvm" not in {f.name for f in findings}
    assert is_usable(findings, Needs(NESTED, accel="kvm"))


def test_kvm_that_nobody_tried_is_not_spoken_of() -> None:
    assert "kvm" not in of_server(unexamined("kvm"))


def test_a_named_device_stands_for_all_large_bars() -> None:
    finding = of_server(value("device", to={"chosen": "0000:3b:00.0"}))
    assert finding["device"].status == "ok"
    assert "large-bar" not in finding


def test_a_locked_down_kernel_is_in_the_way_of_a_metal_run_though_grub_boots() -> None:
    raw = server(INTEGRITY, unusable("kexec", "the kernel is locked down (integrity)"))
    assert [f.name for f in select_problems(judge_machine(raw, Needs(METAL)), "metal")] == [
        "lockdown"
    ]
    assert is_usable(judge_machine(raw, Needs(NESTED)), Needs(NESTED))


def test_under_confidentiality_nothing_is_said_of_probes() -> None:
    finding = of_server(file(LOCKDOWN, "none integrity [confidentiality]"))
    assert (finding["lockdown"].status, "tracing" in finding) == ("problem", False)


@pytest.mark.parametrize("vendor", [lambda _: None, amd])
def test_words_are_for_the_machines_own_kernel_and_grub_has_to_be_told(vendor: Change) -> None:
    table = "IVRS" if vendor is amd else "DMAR"
    table_present = value("present", f"/sys/firmware/acpi/tables/{table}", to=True)
    fix = of_server(vendor, no_iommu, table_present)["iommu"].fix
    assert "update-grub" in fix
    assert "host.cmdline" in fix
    assert "amd_iommu=on" not in fix


def test_the_governor_that_differs_is_the_evidence() -> None:
    (line,) = of_server(file(GOVERNOR, "powersave"))["governor"].evidence
    assert line.startswith(f"{GOVERNOR}: powersave")
    assert numbers_in(line)[-2:] == ["1", "2"]


def test_fixes_of_a_metal_host_outlast_the_boots_of_a_run() -> None:
    undone = {
        finding.name
        for case in CASES
        for finding in judge_machine(server(*case.changes), replace(case.needs, uses=METAL))
        if re.match("(echo|modprobe|mount|systemctl start) ", finding.fix)
        and "/etc/" not in finding.fix
    }
    # these fix something that a boot does by itself, or are for the next look only
    assert undone == {"kvm", "resizable-bar", "series", "symbols"}


def test_huge_pages_that_the_trials_set_aside_are_in_no_runs_way() -> None:
    needs = Needs(METAL, guest_memory=2 * GIB, backing="hugetlb-1GiB")
    assert select_problems(judge_machine(server(), needs), "metal") == ()


def test_a_map_on_metal_needs_no_qemu() -> None:
    needs = Needs(METAL, boots_guest=False)
    without = server(no_program("qemu-system-x86_64"))
    assert select_problems(judge_machine(without, needs), "metal") == ()
    assert [f.name for f in select_problems(judge_machine(without, Needs(METAL)), "metal")] == [
        "qemu"
    ]
    of_nested = judge_machine(without, replace(needs, uses=NESTED))
    assert [f.name for f in select_problems(of_nested, "nested")] == ["qemu"]


def test_needs_are_those_of_the_scenario() -> None:
    needs = derive_needs(scenario())
    assert (needs.uses, needs.boots_guest, needs.builds) == (NESTED, True, False)
    needs = derive_needs(map_scenario())
    assert (needs.boots_guest, needs.guest_memory, needs.traced) == (False, 0, True)
    assert not derive_needs(map_scenario('trace.passes=["plain"]')).traced
    metal = scenario(
        "host.kind=metal", "host.address=gpu1", "host.boot=grub", "device.kind=hostdev",
        "device.pick=largest-bar", "device.bar=64GiB",
    )  # fmt: skip
    needs = derive_needs(metal)
    assert (needs.uses, needs.bar, needs.boot) == (METAL, 64 * GIB, "grub")
    assert needs.firmware == "seabios"


@given(st.dictionaries(st.sampled_from(sorted(server().files)), st.text(max_size=40)))
def test_files_with_anything_in_them_raise_nothing(files: dict[str, str]) -> None:
    raw = read("gpu-server")
    raw["files"] |= files
    for finding in judge_machine(parse(raw), Needs(USES)):
        assert isinstance(finding, Finding)


# what nobody looked at is not fine ---------------------------------------------------------------


NOT_ALWAYS_EXAMINED = {"kvm", "kvm_silent", "libvirt", "bars", "means", "leases"}


@pytest.mark.parametrize("name", sorted(read("gpu-server")))
def test_evidence_that_is_missing_is_refused_or_not_called_fine(name: str) -> None:
    raw = read("gpu-server")
    del raw[name]
    if name not in NOT_ALWAYS_EXAMINED:
        with pytest.raises(EvidenceError, match=rf"\b{name}\b") as caught:
            parse(raw)
        assert caught.value.reason == "bad-evidence"
        return
    before, after = judge_machine(server(), Needs(USES)), judge_machine(parse(raw), Needs(USES))
    fine = {f.name for f in before if f.status == "ok"}
    assert {f.name for f in after if f.status == "ok"} <= fine


def test_a_bar_of_a_device_that_sleeps_is_not_said_to_grow() -> None:
    finding = of_server(bar(size=256 * MIB, growable=None))["resizable-bar"]
    assert "is not known" in finding.what
    assert "resizable-bar" not in of_server(bar(size=16 * MIB, growable=None))


def test_integrity_keeps_barometer_from_writing_and_not_vfio_from_working() -> None:
    what = of_server(INTEGRITY)["lockdown"].what
    assert "VFIO itself works" in what
    assert of_server(INTEGRITY)["profiling"].status == "ok"


def test_a_machine_whose_devices_nobody_looked_at_is_no_metal_host() -> None:
    findings = judge_machine(server(unexamined("bars")), Needs(METAL))
    assert [f.name for f in select_problems(findings, "metal")] == ["large-bar"]
    assert not is_usable(findings, Needs(METAL))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("workload=map", "host.accel=exact"), ""),
        (("workload=map", "host.accel=exact", "host.restore=never"), 'host.restore = "never"'),
        (("workload=map", "host.accel=tcg"), 'host.accel = "tcg"'),
        (("host.accel=exact",), 'workload = "guest-boot"'),
    ],
)
def test_hosts_of_a_scenario_boot_for_a_reason(overrides: tuple[str, ...], why: str) -> None:
    assert derive_needs(scenario(*overrides)).boots_because == why
