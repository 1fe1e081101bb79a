"""Print as JSON the PCI functions of this machine, and what it uses them for. Plain Python 3
standard library.

    survey.py               every function, and what uses them
    survey.py ADDRESS...    these functions alone: 0000:01:00.0

    iommus      names of the IOMMUs that are on
    functions   what sysfs says about each, as in its files; null if there is no such file
    users       what the machine uses each function for:
        network   an interface; serves: default route, SSH connection
        disk      serves: mount points, swap, ZFS pools
        display   a framebuffer; serves: console
        console   a serial port; serves: console
        input     what is plugged into a USB controller
        open      a device node; serves: the processes that have it open
    unread      number of processes whose open files could not be read; root can read all

For tests, the environment variable BAROMETER_ROOT names the root of the file system. Changes
nothing, and wakes no device.
"""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

ROOT = os.path.realpath(os.environ.get("BAROMETER_ROOT", "/")).rstrip("/")
DEVICES = "/sys/bus/pci/devices"
ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
"""Behind Intel's VMD the domain has more than four digits."""
AS_SAID = (
    "vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision",
    "reset_method", "power_state",
)  # fmt: skip
NUMBERS = (
    "numa_node", "enable", "boot_vga", "d3cold_allowed", "sriov_numvfs", "sriov_totalvfs",
)  # fmt: skip
COMMAND = 4
"""Offset of the command word in the configuration space (PCI Local Bus Specification, 6.1)."""
IFF_UP, RTF_UP, RTF_REJECT = 0x1, 0x1, 0x200
"""Flags of include/uapi/linux/if.h and route.h."""
MIB_SHIFT = 20
OWN_CLAIM = re.compile(r"vfio|PCI Bus|[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
"""Names in /proc/iomem of what may be inside a function's BARs."""
ANCESTORS = 8
"""Most processes between the SSH server and this one (shells, sudo) that are searched."""


class User(NamedTuple):
    function: str
    kind: str
    name: str
    path: str
    up: bool = False
    """True if the interface is up."""
    above: Sequence[str] = ()
    """Interfaces or block devices that are built on this one, directly or through others."""
    serves: Sequence[str] = ()


def text(path: str) -> str | None:
    try:
        with open(ROOT + path, errors="replace") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return None


def lines(path: str) -> list[str]:
    return (text(path) or "").splitlines()


def properties(path: str) -> dict[str, str]:
    """Parse the lines NAME=VALUE of a file."""
    return {name: value for name, _, value in (line.partition("=") for line in lines(path))}


def number(path: str, base: int = 10) -> int | None:
    try:
        return int(text(path) or "", base)
    except ValueError:
        return None


def listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(ROOT + path))
    except (OSError, ValueError):
        return []


def link(path: str) -> str | None:
    try:
        return os.readlink(ROOT + path)
    except (OSError, ValueError):
        return None


def target(path: str) -> str | None:
    """Return the last component of a link's target."""
    return os.path.basename(link(path) or "") or None


def real(path: str) -> str:
    """Return the path with all links resolved."""
    try:
        return os.path.realpath(ROOT + path).removeprefix(ROOT)
    except (OSError, ValueError):
        return ""


def matching(pattern: str) -> list[str]:
    return sorted(path.removeprefix(ROOT) for path in glob.glob(glob.escape(ROOT) + pattern))


def functions_on(path: str) -> list[str]:
    """Return the PCI functions that a device is behind, from the root down, its own last."""
    return [part for part in real(path).split("/") if ADDRESS.fullmatch(part)]


def owner(path: str) -> str | None:
    found = functions_on(path)
    return found[-1] if found else None


def owners(path: str) -> list[str]:
    """Return the functions of a disk or a device node: more than one if an NVMe disk has several
    paths. Such a disk is a child of no controller (drivers/nvme/host/multipath.c), but its
    subsystem links to its controllers."""
    if address := owner(path):
        return [address]
    subsystem = re.match(r".*/nvme-subsys\d+(?=/)", real(path))
    controllers = matching(f"{glob.escape(subsystem[0])}/nvme[0-9]*") if subsystem else []
    return sorted({address for path in controllers if (address := owner(path))})


# -- functions ------------------------------------------------------------------------------


def function(address: str) -> dict[str, object]:
    base = f"{DEVICES}/{address}"
    group = target(f"{base}/iommu_group")
    module = target(f"{base}/driver/module")
    override = text(f"{base}/driver_override")
    awake = text(f"{base}/power/runtime_status") != "suspended"
    return {
        "address": address,
        **{name: text(f"{base}/{name}") for name in AS_SAID},
        **{name: number(f"{base}/{name}") for name in NUMBERS},
        "resource": lines(f"{base}/resource"),
        # a kernel before v5.15 names no methods
        "reset": os.path.exists(f"{ROOT}{base}/reset"),
        # pci_read_config() and resourceN_resize_show() would wake it (drivers/pci/pci-sysfs.c)
        "resizable": resizable(base) if awake else None,
        "command": command(base) if awake else None,
        "answers": answers(base) if awake else None,
        "iommu_group": group,
        "group_devices": listed(f"/sys/kernel/iommu_groups/{group}/devices") if group else [],
        "group_type": text(f"/sys/kernel/iommu_groups/{group}/type") if group else None,
        "reserved_regions": (
            lines(f"/sys/kernel/iommu_groups/{group}/reserved_regions") if group else []
        ),
        "claims": claims(address),
        "driver": target(f"{base}/driver"),
        "driver_override": None if override in ("(null)", "") else override,
        "module": module,
        "module_use": number(f"/sys/module/{module}/refcnt") if module else None,
        "module_holders": listed(f"/sys/module/{module}/holders") if module else [],
        "physfn": target(f"{base}/physfn"),
        "virtual_functions": [name for name in map(target, matching(f"{base}/virtfn*")) if name],
        "parents": [name for name in functions_on(base) if name != address],
        "power_control": text(f"{base}/power/control"),
        "runtime_status": text(f"{base}/power/runtime_status"),
    }


def resizable(base: str) -> dict[str, list[int]]:
    """Return BAR -> sizes in bytes that it can have (Documentation/ABI/testing/sysfs-bus-pci: bit
    n of resourceN_resize is 2^n MiB)."""
    found = {}
    for path in matching(f"{base}/resource[0-5]_resize"):
        bits = number(path, 16) or 0
        found[path[-len("0_resize")]] = [
            1 << (bit + MIB_SHIFT) for bit in range(bits.bit_length()) if bits >> bit & 1
        ]
    return found


def header(base: str) -> bytes:
    """Return the beginning of the configuration space; empty if it cannot be read."""
    try:
        with open(f"{ROOT}{base}/config", "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def command(base: str) -> int | None:
    word = header(base)[COMMAND : COMMAND + 2]
    return int.from_bytes(word, "little") if len(word) == 2 else None


def answers(base: str) -> bool | None:
    """Return False if the configuration space reads all ones: nothing answers there (PCI Local Bus
    Specification, 6.1: no function has the vendor ffff)."""
    read = header(base)
    return set(read[:4]) != {0xFF} if len(read) >= 4 else None


def claims(address: str) -> list[str]:
    """Return the names of what holds memory inside the function's BARs (/proc/iomem), without the
    function, its bridges and vfio-pci themselves. Root alone sees where they are."""
    found: list[str] = []
    depth = -1
    for line in lines("/proc/iomem"):
        place, _, name = line.partition(" : ")
        start, _, end = place.strip().partition("-")
        indent = len(line) - len(line.lstrip())
        if depth >= 0 and indent > depth:
            if name.strip() and not OWN_CLAIM.match(name):
                found.append(name.strip())
            continue
        try:
            is_visible = int(end, 16) > int(start, 16)
        except ValueError:
            is_visible = False
        depth = indent if name == address and is_visible else -1
    return list(dict.fromkeys(found))


# -- networks -------------------------------------------------------------------------------


def networks() -> Iterator[User]:
    carriers = {"default route": default_routes(), "SSH connection": ssh_interfaces()}
    for name in listed("/sys/class/net"):
        path = f"/sys/class/net/{name}"
        if address := owner(path):
            above = closure([name], lambda at: uppers(f"/sys/class/net/{at}"))
            serves = [what for what, names in carriers.items() if names & {name, *above}]
            up = bool((number(f"{path}/flags", 16) or 0) & IFF_UP)
            yield User(address, "network", name, path, up, above, serves)


def uppers(path: str) -> list[str]:
    return [n.removeprefix("upper_") for n in listed(path) if n.startswith("upper_")]


def closure(start: Sequence[str], above: Callable[[str], Iterable[str]]) -> list[str]:
    """Return everything above `start`, each once, without `start` itself."""
    found: list[str] = []
    todo = list(start)
    while todo:
        new = [name for name in above(todo.pop(0)) if name not in (*found, *start)]
        found += new
        todo += new
    return found


class Route(NamedTuple):
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    interface: str


def routes() -> Iterator[Route]:
    """Yield the routes of the main tables, from /proc/net/route and /proc/net/ipv6_route."""
    for line in lines("/proc/net/route")[1:]:
        try:
            name, to, _, flags, _, _, _, mask = line.split()[:8]
            if int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
                packed = [int(word, 16).to_bytes(4, "little") for word in (to, mask)]
                length = bin(int.from_bytes(packed[1], "big")).count("1")
                yield Route(ipaddress.IPv4Network((packed[0], length)), name)
        except (ValueError, OverflowError):
            continue
    for line in lines("/proc/net/ipv6_route"):
        try:
            to, length6, *_, flags, name = line.split()
            if int(flags, 16) & (RTF_UP | RTF_REJECT) == RTF_UP:
                yield Route(ipaddress.IPv6Network((bytes.fromhex(to), int(length6, 16))), name)
        except (ValueError, OverflowError):
            continue


def default_routes() -> set[str]:
    return {route.interface for route in routes() if route.network.prefixlen == 0} - {"lo"}


def ssh_interfaces() -> set[str]:
    """Return the interfaces of the SSH connection through which this program was started, by the
    routes to both ends of the connection."""
    words = ssh_connection().split()
    found = set()
    for word in (words[0], words[2]) if len(words) == 4 else ():
        try:
            address = ipaddress.ip_address(word.partition("%")[0])
        except ValueError:
            continue
        address = getattr(address, "ipv4_mapped", None) or address
        to = [r for r in routes() if r.network.version == address.version and address in r.network]
        longest = max((r.network.prefixlen for r in to), default=0)
        found |= {r.interface for r in to if r.network.prefixlen == longest}
    return found


def ssh_connection() -> str:
    """Return `CLIENT PORT SERVER PORT` (ssh(1), ENVIRONMENT). sudo(8) takes it out of the
    environment, but the process that called sudo still has it."""
    pid = "self"
    for _ in range(ANCESTORS):
        if said := environment(pid).get("SSH_CONNECTION"):
            return said
        # PID (COMM) STATE PPID ...
        pid = "".join((text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()[1:2])
    return ""


def environment(pid: str) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in (text(f"/proc/{pid}/environ") or "").split("\0"))
    return {name: value for name, _, value in pairs}


# -- disks ----------------------------------------------------------------------------------


def disks() -> Iterator[User]:
    served = served_by_disks()
    for name in listed("/sys/block"):
        path = f"/sys/block/{name}"
        above = closure([name], above_disk)
        serves = sorted({what for at in (name, *above) for what in served.get(at, ())})
        for address in owners(path):
            yield User(address, "disk", name, path, above=above, serves=serves)


def above_disk(name: str) -> list[str]:
    """Return the disk's partitions, and the block devices made of it: LVM's, crypt, MD, bcache."""
    base = f"/sys/class/block/{name}"
    parts = [at for at in listed(base) if text(f"{base}/{at}/partition") is not None]
    return parts + listed(f"{base}/holders")


def served_by_disks() -> dict[str, set[str]]:
    """Return block device -> mount points, swap and ZFS pools on it."""
    numbers = {text(f"/sys/class/block/{name}/dev"): name for name in listed("/sys/class/block")}
    served: dict[str, set[str]] = {}
    for line in lines("/proc/self/mountinfo"):
        mounted, _, rest = line.partition(" - ")
        fields, source = mounted.split(), rest.split()[1:2]
        if len(fields) < 5:
            continue
        # a btrfs has a device number of its own
        name = numbers.get(fields[2]) or block_name(source[0] if source else "")
        served.setdefault(name, set()).add(unescaped(fields[4]))
    for line in lines("/proc/swaps")[1:]:
        served.setdefault(block_name(line.split()[0] if line.split() else ""), set()).add("swap")
    for folder in matching("/sys/fs/btrfs/*/devices"):
        names = listed(folder)
        whole = set[str]().union(*(served.get(name, ()) for name in names))
        served.update({name: whole for name in names if whole})
    for dev, name in numbers.items():
        said = properties(f"/run/udev/data/b{dev}")
        pool = said.get("E:ID_FS_LABEL", "")
        if said.get("E:ID_FS_TYPE") == "zfs_member" and listed(f"/proc/spl/kstat/zfs/{pool}"):
            served.setdefault(name, set()).add(f"ZFS pool {pool}")
    return served


def block_name(source: str) -> str:
    """Return the name of a block device, from /dev/dm-0 or a link to it: /dev/mapper/vg-root."""
    return os.path.basename(real(source)) if source.startswith("/dev/") else ""


def unescaped(path: str) -> str:
    r"""Undo the escapes of a mount point: a space is \040 (proc_pid_mountinfo(5))."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


# -- consoles, USB, open files --------------------------------------------------------------


def displays() -> Iterator[User]:
    """Yield the framebuffers. While fbcon is bound, the console is on the first of them
    (Documentation/fb/fbcon.rst)."""
    bound = any(
        "frame buffer" in (text(f"{path}/name") or "") and number(f"{path}/bind") == 1
        for path in matching("/sys/class/vtconsole/vtcon*")
    )
    found = [name for name in listed("/sys/class/graphics") if re.fullmatch(r"fb\d+", name)]
    first = min(found, key=lambda name: int(name[2:]), default="")
    for name in found:
        path = f"/sys/class/graphics/{name}"
        if address := owner(path):
            serves = ["console"] if bound and name == first else []
            yield User(address, "display", name, path, serves=serves)


def consoles() -> Iterator[User]:
    """Yield the serial ports that the kernel has its console on, such as Intel AMT's."""
    for line in lines("/proc/consoles"):
        name = (line.split() or [""])[0]
        path = f"/sys/class/tty/{name}"
        if name and (address := owner(path)):
            yield User(address, "console", name, path, serves=["console"])


def inputs() -> Iterator[User]:
    """Yield the inputs on USB alone: a sound card's jacks are inputs, too."""
    for name in listed("/sys/class/input"):
        path = f"/sys/class/input/{name}"
        on_usb = re.search(r"/usb\d+/", real(path))
        if re.fullmatch(r"input\d+", name) and on_usb and (address := owner(path)):
            yield User(address, "input", text(f"{path}/name") or name, path)


def open_nodes(unread: list[str]) -> Iterator[User]:
    """Yield the device nodes that processes have open. Processes whose open files cannot be read
    go into `unread`."""
    known = nodes()
    opened: dict[str, set[str]] = {}
    for pid in listed("/proc"):
        if not pid.isdigit():
            continue
        try:
            descriptors = os.listdir(f"{ROOT}/proc/{pid}/fd")
        except (PermissionError, NotADirectoryError):
            unread.append(pid)
            continue
        except OSError:
            continue  # the process has ended
        for descriptor in descriptors:
            # for a process in a container with a /dev of its own the link is /dri/card0
            node = (link(f"/proc/{pid}/fd/{descriptor}") or "").removeprefix("/dev/").lstrip("/")
            if node and node in known:
                opened.setdefault(node, set()).add(f"{text(f'/proc/{pid}/comm')} ({pid})")
    for node, processes in sorted(opened.items()):
        for address in known[node]:
            yield User(address, "open", f"/dev/{node}", f"/dev/{node}", serves=sorted(processes))


def nodes() -> dict[str, list[str]]:
    """Return name below /dev -> functions, for every device that a function has, for VFIO's
    groups, and for the devices of NVIDIA's driver, which keeps them out of sysfs."""
    found: dict[str, list[str]] = {}
    for path in (*matching("/sys/dev/char/*"), *matching("/sys/dev/block/*")):
        if addresses := owners(path):
            found[properties(f"{path}/uevent").get("DEVNAME", "")] = addresses
    for group in listed("/sys/kernel/iommu_groups"):
        found[f"vfio/{group}"] = listed(f"/sys/kernel/iommu_groups/{group}/devices")
    for address in listed("/proc/driver/nvidia/gpus"):
        information = text(f"/proc/driver/nvidia/gpus/{address}/information") or ""
        if minor := re.search(r"(?m)^Device Minor:\s*(\d+)", information):
            found[f"nvidia{minor[1]}"] = [address]
    return found


def survey() -> dict[str, object]:
    unread: list[str] = []
    users = [
        *networks(), *disks(), *displays(), *consoles(), *inputs(), *open_nodes(unread),
    ]  # fmt: skip
    return {
        "iommus": listed("/sys/class/iommu"),
        "functions": [function(address) for address in listed(DEVICES)],
        "users": [user._asdict() for user in users],
        "unread": len(unread),
    }


def main() -> None:
    if asked := sys.argv[1:]:
        there = listed(DEVICES)
        if missing := [address for address in asked if address not in there]:
            sys.exit(f"no such PCI function: {' '.join(missing)}")
        print(json.dumps({"functions": [function(address) for address in asked]}))
    else:
        print(json.dumps(survey()))


if __name__ == "__main__":
    main()
