"""Machines' /sys and /proc, laid out in a folder for guests/agents/survey.py.

python -m tests.unit.machines      writes the agent's answers for them anew
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.formats.abi import (
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_UNSET,
)
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.host.pci import Survey
from tests.unit.agents.loading import agent

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/machines"
_IO = 0x100
"""IORESOURCE_IO (include/linux/ioport.h)."""
LARGE = IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_MEM_64

Bars = Mapping[int, tuple[int, int, int]]
"""Number (6 is the ROM) -> start, size, flags."""


class Machine:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._paths: dict[str, str] = {}

    def file(self, path: str, content: str | bytes) -> None:
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())

    def folder(self, path: str) -> None:
        (self.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def link(self, path: str, target: str) -> None:
        """Make a relative link, as sysfs has them."""
        at = self.root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(os.path.relpath(target, Path(path).parent))

    def function(
        self,
        address: str,
        ids: str,
        kind: int,
        *,
        under: str = "",
        bars: Bars | None = None,
        driver: str | None = None,
        group: int | None = None,
        **files: object,
    ) -> None:
        """Add a PCI function. `kind` is base class, subclass, interface. `under` is the bridge
        above it."""
        root = f"pci{address.rpartition(':')[0]}"
        above = self._paths[under] if under else f"/sys/devices/{root}"
        if under and under.split(":", maxsplit=1)[0] != address.split(":", maxsplit=1)[0]:
            above += f"/{root}"  # the root bus of its own domain
        path = self._paths[address] = f"{above}/{address}"
        vendor, device = ids.split(":")
        lines = [(bars or {}).get(index, (0, 0, 0)) for index in range(7)]
        said: dict[str, object] = {
            "vendor": f"0x{vendor}", "device": f"0x{device}", "subsystem_vendor": f"0x{vendor}",
            "subsystem_device": "0x0001", "class": f"0x{kind:06x}", "revision": "0xa1",
            "resource": "\n".join(
                f"0x{start:016x} 0x{start + size - 1 if size else 0:016x} 0x{flags:016x}"
                for start, size, flags in lines
            ),
            "reset_method": "flr bus", "numa_node": 0, "enable": int(driver is not None),
            "d3cold_allowed": 1, "driver_override": "(null)", "power_state": "D0",
            "power/control": "on", "power/runtime_status": "active", **files,
        }  # fmt: skip
        for name, value in said.items():
            if value is not None:
                self.file(f"{path}/{name}", str(value))
        command = 0x0406 if driver else 0
        self.file(f"{path}/config", bytes(4) + command.to_bytes(2, "little") + bytes(58))
        self.file(f"{path}/reset", "")
        self.link(f"/sys/bus/pci/devices/{address}", path)
        if driver:
            module = driver.replace("-", "_")
            self.folder(f"/sys/bus/pci/drivers/{driver}")
            self.link(f"{path}/driver", f"/sys/bus/pci/drivers/{driver}")
            if not (self.root / f"sys/module/{module}").exists():
                self.file(f"/sys/module/{module}/refcnt", "1")
                self.link(f"/sys/bus/pci/drivers/{driver}/module", f"/sys/module/{module}")
        if group is not None:
            folder = f"/sys/kernel/iommu_groups/{group}"
            self.link(f"{path}/iommu_group", folder)
            self.link(f"{folder}/devices/{address}", path)
            self.file(f"{folder}/type", "DMA-FQ")

    def iommus(self, *names: str) -> None:
        self.folder("/sys/class/iommu")
        for name in names:
            self.folder(f"/sys/class/iommu/{name}")

    def interface(
        self, name: str, address: str = "", *, flags: int = 0x1003, upper: Sequence[str] = ()
    ) -> None:
        """Add a network interface. Without an address it is made of others."""
        above = self._paths[address] if address else "/sys/devices/virtual"
        path = f"{above}/net/{name}"
        self.file(f"{path}/flags", f"{flags:#x}")
        self.link(f"/sys/class/net/{name}", path)
        for other in upper:
            self.link(f"{path}/upper_{other}", f"/sys/class/net/{other}")

    def disk(
        self, name: str, path: str, number: str, parts: Mapping[str, str], **holders: Sequence[str]
    ) -> None:
        """Add a disk. `parts` is partition -> major:minor. `holders` are those of the disk or of a
        partition."""
        for block, at, dev in [
            (name, path, number),
            *((part, f"{path}/{part}", dev) for part, dev in parts.items()),
        ]:
            self.file(f"{at}/dev", dev)
            self.folder(f"{at}/holders")
            self.link(f"/sys/class/block/{block}", at)
            for holder in holders.get(block, ()):
                self.link(f"{at}/holders/{holder}", f"/sys/class/block/{holder}")
            if block != name:
                self.file(f"{at}/partition", "1")
        self.link(f"/sys/block/{name}", path)

    def node(self, path: str, name: str, number: str) -> None:
        """Add the character device /dev/NAME of a device at `path`."""
        self.file(f"{path}/uevent", f"MAJOR=1\nDEVNAME={name}")
        self.link(f"/sys/dev/char/{number}", path)

    def process(self, pid: int, name: str, *files: str, parent: int = 1, **variables: str) -> None:
        at = self.root / f"proc/{pid}"
        self.file(f"/proc/{pid}/comm", name)
        self.file(f"/proc/{pid}/stat", f"{pid} ({name}) S {parent} 1 1 0 -1")
        self.file(f"/proc/{pid}/environ", "\0".join(f"{k}={v}" for k, v in variables.items()))
        (at / "fd").mkdir()
        for number, file in enumerate(files):
            (at / "fd" / str(number)).symlink_to(file)

    def path(self, address: str) -> str:
        return self._paths[address]


def _bridge(machine: Machine, address: str, under: str = "", **more: Any) -> None:
    machine.function(
        address, "8086:352a", 0x060400, under=under, driver="pcieport", reset_method="pm", **more
    )


def _gpu(machine: Machine, address: str, under: str, start: int, **more: Any) -> None:
    bars = {
        0: (0x9C000000, 64 * MIB, IORESOURCE_MEM), 1: (start, 128 * GIB, LARGE),
        3: (start + 128 * GIB, 32 * MIB, LARGE), 5: (0x9000, 128, _IO),
        6: (0x9A000000, 512 << 10, IORESOURCE_MEM),
    }  # fmt: skip
    sizes: dict[str, Any] = {"resource1_resize": f"{0x3FFC0:016x}"}  # 64 MiB to 128 GiB
    machine.function(
        address, "10de:2bb5", 0x030000, under=under, bars=bars, boot_vga=0, **sizes, **more
    )


def gpu_server(root: Path) -> Machine:
    """Two graphics cards behind a switch, one in use; root on LVM on NVMe, two NICs as a bond with
    a VLAN, the console on the board's BMC. The agent runs over SSH, for a user who has sudo."""
    m = Machine(root)
    m.iommus("dmar0", "dmar1")
    _bridge(m, "0000:36:01.0", group=30)
    _bridge(m, "0000:37:00.0", "0000:36:01.0", group=31)
    for number, (port, bus, start) in enumerate(
        [("0000:38:00.0", "0000:39", 0x380000000000), ("0000:38:10.0", "0000:3a", 0x384000000000)]
    ):
        _bridge(m, port, "0000:37:00.0", group=32 + number)
        driver = "nvidia" if number == 0 else None
        _gpu(m, f"{bus}:00.0", port, start, group=40 + number, driver=driver, numa_node=1)
        m.function(
            f"{bus}:00.1", "10de:22e8", 0x040300, under=port, group=40 + number, driver=
            "snd_hda_intel", bars={0: (0xA0000000 + number * MIB, 16 << 10, IORESOURCE_MEM)},
        )  # fmt: skip
    jack = f"{m.path('0000:39:00.1')}/sound/card0/input7"
    m.file(f"{jack}/name", "HDA NVidia HDMI/DP,pcm=3")
    m.link("/sys/class/input/input7", jack)
    m.file("/proc/driver/nvidia/gpus/0000:39:00.0/information", "Device Minor: \t 0")
    _system_nvme(m)
    _bond(m)
    _bridge(m, "0000:00:1c.0", group=10)
    m.function(
        "0000:03:00.0", "1a03:1150", 0x060400, under="0000:00:1c.0", group=11, reset_method=None
    )
    m.function(
        "0000:04:00.0", "1a03:2000", 0x030000, under="0000:03:00.0", group=11, driver="ast",
        boot_vga=1, bars={0: (0x9B000000, 64 * MIB, IORESOURCE_MEM)},
    )  # fmt: skip
    _framebuffer(m, "fb0", "0000:04:00.0")
    m.function("0000:00:14.0", "8086:1bcd", 0x0C0330, driver="xhci_hcd", group=12)
    keyboard = f"{m.path('0000:00:14.0')}/usb1/1-7/1-7:1.0/0003:046B:FF10.0001/input/input3"
    m.file(f"{keyboard}/name", "American Megatrends Inc. Virtual Keyboard and Mouse")
    m.link("/sys/class/input/input3", keyboard)
    m.process(912, "nvidia-persiste", "/dev/nvidiactl", "/dev/nvidia0", "socket:[77]")
    m.process(1200, "bash", parent=1100, SSH_CONNECTION="10.1.0.9 50122 10.1.0.20 22")
    m.process(1201, "sudo", parent=1200)
    m.process(1202, "python3", parent=1201)
    (root / "proc/self").symlink_to("1202")
    return m


def _system_nvme(m: Machine) -> None:
    """Add NVMe disks with the multipath of the kernel's driver, and another disk that nothing
    uses."""
    for number, address in enumerate(("0000:01:00.0", "0000:02:00.0")):
        port = f"0000:00:1{number}.0"
        _bridge(m, port, group=14 + number)
        m.function(
            address, "144d:a80a", 0x010802, under=port, driver="nvme", group=16 + number,
            bars={0: (0x92000000 + number * MIB, 16 << 10, IORESOURCE_MEM | IORESOURCE_MEM_64)},
        )  # fmt: skip
        controller = f"{m.path(address)}/nvme/nvme{number}"
        m.node(controller, f"nvme{number}", f"240:{number}")
        subsystem = f"/sys/devices/virtual/nvme-subsystem/nvme-subsys{number}"
        m.link(f"{subsystem}/nvme{number}", controller)
        name = f"nvme{number}n1"
        parts = {f"{name}p{part}": f"259:{part + 4 * number}" for part in (1, 2, 3)}
        root = {f"{name}p3": ["dm-0", "dm-1"]} if number == 0 else {}
        m.disk(name, f"{subsystem}/{name}", f"259:{4 * number}", parts, **root)
        m.node(f"{subsystem}/ng{number}n1", f"ng{number}n1", f"241:{number}")
    for number in (0, 1):
        m.disk(f"dm-{number}", f"/sys/devices/virtual/block/dm-{number}", f"253:{number}", {})
    m.file(
        "/proc/1202/mountinfo",
        "22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw\n"
        "23 22 259:2 / /boot rw shared:2 - ext4 /dev/nvme0n1p2 rw\n"
        "24 23 259:1 / /boot/efi rw shared:3 - vfat /dev/nvme0n1p1 rw\n"
        "25 22 0:21 / /proc rw - proc proc rw",
    )
    m.file("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/dm-1 partition 8388604 0 -2")


def _bond(m: Machine) -> None:
    _bridge(m, "0000:16:01.0", group=20)
    for number in (0, 1):
        address = f"0000:17:00.{number}"
        m.function(
            address, "15b3:101f", 0x020000, under="0000:16:01.0", driver="mlx5_core",
            group=21 + number, bars={0: (0x203FFE000000, 32 * MIB, LARGE)}, sriov_totalvfs=8,
            sriov_numvfs=0,
        )  # fmt: skip
        m.interface(f"eno{number + 1}np{number}", address, flags=0x1803, upper=["bond0"])
    m.interface("bond0", flags=0x1403, upper=["bond0.100"])
    m.interface("bond0.100")
    m.file(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "bond0.100\t00000000\t0100010A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "bond0.100\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0",
    )


def _framebuffer(m: Machine, name: str, address: str) -> None:
    path = f"{m.path(address)}/graphics/{name}"
    m.folder(path)
    m.link(f"/sys/class/graphics/{name}", path)
    m.file("/sys/class/vtconsole/vtcon1/name", "(M) frame buffer device")
    m.file("/sys/class/vtconsole/vtcon1/bind", "1")


def workstation(root: Path) -> Machine:
    """Its only graphics card is the console and has a desktop on it; the card's BAR of 256 MiB
    could be larger. A btrfs on two SATA disks, one of them also in a ZFS pool; a NIC with IPv6
    alone."""
    m = Machine(root)
    m.iommus("ivhd0")
    m.function("0000:00:01.0", "1022:1632", 0x060000, group=0, reset_method=None)
    _bridge(m, "0000:00:01.1", group=1)
    m.function(
        "0000:07:00.0", "1002:73bf", 0x030000, under="0000:00:01.1", driver="amdgpu", group=2,
        boot_vga=1, bars={0: (0xD0000000, 256 * MIB, LARGE), 2: (0xE0000000, 2 * MIB, LARGE)},
        resource0_resize=f"{0x7F00:016x}",
    )  # fmt: skip
    m.function(
        "0000:07:00.1", "1002:ab28", 0x040300, under="0000:00:01.1", driver="snd_hda_intel",
        group=2, bars={0: (0xFCC00000, 16 << 10, IORESOURCE_MEM)},
    )  # fmt: skip
    _framebuffer(m, "fb0", "0000:07:00.0")
    m.node(f"{m.path('0000:07:00.0')}/drm/card0", "dri/card0", "226:0")
    m.node(f"{m.path('0000:07:00.1')}/sound/card1/controlC1", "snd/controlC1", "116:3")
    _bridge(m, "0000:00:01.2", group=3)
    m.function("0000:02:00.0", "1022:43eb", 0x010601, under="0000:00:01.2", driver="ahci", group=4)
    for number, name in enumerate(("sda", "sdb")):
        at = f"{m.path('0000:02:00.0')}/ata{number + 1}/host{number}/target/block/{name}"
        parts = {f"{name}{part}": f"8:{16 * number + part}" for part in (1, 2)}
        m.disk(name, at, f"8:{16 * number}", parts)
    m.file("/run/udev/data/b8:17", "S:disk/by-id/x\nE:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank")
    m.file("/proc/spl/kstat/zfs/tank/io", "")
    for part in ("sda2", "sdb2"):
        m.link(f"/sys/fs/btrfs/abcd/devices/{part}", f"/sys/class/block/{part}")
    m.function(
        "0000:03:00.0", "10ec:8125", 0x020000, under="0000:00:01.2", driver="r8169", group=5
    )
    m.interface("enp3s0", "0000:03:00.0")
    gateway, network, none = "fe80" + "0" * 27 + "1", "20010db8" + "0" * 24, "0" * 32
    m.file(
        "/proc/net/ipv6_route",
        f"{none} 00 {none} 00 {gateway} 00000400 00000001 00000000 00000003 enp3s0\n"
        f"{network} 40 {none} 00 {none} 00000100 00000001 00000000 00000001 enp3s0\n"
        f"{none} 00 {none} 00 {none} ffffffff 00000001 00000000 00200200 lo",
    )
    m.process(800, "Xorg", "/dev/dri/card0", "anon_inode:[eventpoll]")
    m.process(812, "pipewire", "/dev/snd/controlC1")
    m.process(900, "python3", SSH_CONNECTION="2001:db8::9 50122 2001:db8::20 22")
    (root / "proc/self").symlink_to("900")
    m.file("/proc/900/mountinfo", "22 1 0:25 /@root / rw,relatime shared:1 - btrfs /dev/sda2 rw")
    return m


def laptop(root: Path) -> Machine:
    """Ports without ACS: the graphics card shares its group with a card reader and the system's
    disk. The card sleeps. Firmware gave the sensor hub's serial port to the kernel's console."""
    m = Machine(root)
    m.iommus("dmar0")
    for number, port in enumerate(("0000:00:1c.0", "0000:00:1c.4", "0000:00:1d.0")):
        _bridge(m, port, group=8 if number else 7)
    m.function(
        "0000:02:00.0", "10de:1c8d", 0x030200, under="0000:00:1c.4", driver="nouveau", group=8,
        bars={1: (0x6000000000, 256 * MIB, LARGE)}, resource1_resize=f"{0x1C0:016x}",
        **{"power/runtime_status": "suspended", "power/control": "auto", "power_state": "D3cold"},
    )  # fmt: skip
    m.function(
        "0000:03:00.0", "10ec:525a", 0xFF0000, under="0000:00:1c.4", driver="rtsx_pci", group=8
    )
    m.function("0000:04:00.0", "1179:0115", 0x010802, under="0000:00:1d.0", driver="nvme", group=8)
    m.disk(
        "nvme0n1", f"{m.path('0000:04:00.0')}/nvme/nvme0/nvme0n1", "259:0",
        {"nvme0n1p1": "259:1"},
    )  # fmt: skip
    m.function("0000:00:16.3", "8086:a13d", 0x070002, driver="serial", group=9)
    port = f"{m.path('0000:00:16.3')}/tty/ttyS4"
    m.node(port, "ttyS4", "4:68")
    m.link("/sys/class/tty/ttyS4", port)
    m.file("/proc/consoles", "tty0 -WU (EC p  )    4:7\nttyS4 -W- (E  p  )    4:68")
    m.file("/proc/self/mountinfo", "22 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw")
    return m


def without_iommu(root: Path) -> Machine:
    """A suitable card, but no IOMMU."""
    m = Machine(root)
    m.iommus()
    _bridge(m, "0000:00:01.0")
    _gpu(m, "0000:01:00.0", "0000:00:01.0", 0x380000000000)
    return m


def virtual_function(root: Path) -> Machine:
    """One port of a NIC has two virtual functions: the first is free, a guest has the other. A
    third belongs to a port whose functions share a group."""
    m = Machine(root)
    m.iommus("dmar0")
    _bridge(m, "0000:00:02.0", group=1)
    bar = {0: (0x203FFE000000, 32 * MIB, LARGE)}
    for number in (0, 1):
        m.function(
            f"0000:5e:00.{number}", "15b3:101f", 0x020000, under="0000:00:02.0", bars=bar,
            driver="mlx5_core", group=2 + number, sriov_numvfs=2 - number, sriov_totalvfs=8,
        )  # fmt: skip
    for physical, number, group in ((0, 2, 4), (0, 3, 5), (1, 4, 3)):
        address, parent = f"0000:5e:00.{number}", f"0000:5e:00.{physical}"
        m.function(
            address, "15b3:101e", 0x020000, under="0000:00:02.0", group=group,
            bars={0: (0x203FFF000000 + number * MIB, MIB, LARGE)},
            driver="vfio-pci" if number == 3 else None,
        )  # fmt: skip
        m.link(f"{m.path(address)}/physfn", m.path(parent))
        m.link(f"{m.path(parent)}/virtfn{number}", m.path(address))
    m.process(700, "qemu-system-x86", "/dev/vfio/vfio", "/dev/vfio/5")
    return m


def unassigned(root: Path) -> Machine:
    """Firmware had no room for the BAR. Another card is bound to vfio-pci, free, and cannot be
    reset. One disk of a RAID is behind an Intel VMD controller; a NIC is up."""
    m = Machine(root)
    m.iommus("dmar0")
    for number, address in enumerate(("0000:01:00.0", "0000:02:00.0")):
        port = f"0000:00:01.{number}"
        _bridge(m, port, group=1 + number)
        place = (0, 32 * GIB, LARGE | IORESOURCE_UNSET)
        m.function(
            address, "1002:740f", 0x038000, under=port, group=3 + number, reset_method=None,
            bars={0: (0x380000000000, 32 * GIB, LARGE) if number else place},
            driver="vfio-pci" if number else None,
        )  # fmt: skip
    (m.root / m.path("0000:02:00.0").lstrip("/") / "reset").unlink()
    m.function("0000:00:0e.0", "8086:467f", 0x010400, driver="vmd", group=6)
    inner = "10000:01:00.0"
    m.function(inner, "144d:a80a", 0x010802, under="0000:00:0e.0", driver="nvme", group=6)
    m.disk(
        "nvme0n1", f"{m.path(inner)}/nvme/nvme0/nvme0n1", "259:0", {"nvme0n1p1": "259:1"},
        nvme0n1p1=["md127"],
    )  # fmt: skip
    m.disk("md127", "/sys/devices/virtual/block/md127", "9:127", {})
    m.function("0000:00:17.0", "8086:7a62", 0x010601, driver="ahci", group=7)
    at = f"{m.path('0000:00:17.0')}/ata1/host0/target/block/sda"
    m.disk("sda", at, "8:0", {"sda1": "8:1"}, sda1=["md127"])
    m.function("0000:00:1f.6", "8086:1a1d", 0x020000, driver="e1000e", group=8)
    m.interface("eno1", "0000:00:1f.6")
    return m


MACHINES: dict[str, Callable[[Path], Machine]] = {
    "gpu-server": gpu_server, "workstation": workstation, "laptop": laptop,
    "without-iommu": without_iommu, "virtual-function": virtual_function,
    "unassigned": unassigned,
}  # fmt: skip


def survey_of(root: Path) -> dict[str, Any]:
    """Return the agent's survey of the machine in a folder."""
    surveyor = agent("survey")
    vars(surveyor)["ROOT"] = os.path.realpath(root)
    said: dict[str, Any] = json.loads(json.dumps(surveyor.survey()))
    return said


def recorded(name: str) -> Survey:
    return Survey.parse((RECORDED / f"{name}.json").read_text())


def main() -> None:
    for name, make in MACHINES.items():
        with tempfile.TemporaryDirectory() as folder:
            said = survey_of(make(Path(folder)).root)
        (RECORDED / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
