"""Map and unmap the largest BAR of a vfio-pci device from user space. Plain Python 3.

    map.py 0000:01:00.0 < REQUEST

The request is a line of JSON; an empty one asks for the whole BAR, cold and warm, once:
    backend     "type1" (container and group) or "iommufd" (cdev)
    thp         "inherit", "disable" (prctl), "nohugepage" or "hugepage" (madvise of the BAR)
    repeats     samples of each state
    points      [{"size": bytes or "full", "alignment": bytes, "states": ["cold", "warm"]}, ...]
    within      true: mmap(2) the whole BAR, and map its first `size` bytes for DMA; false: mmap(2)
                only those bytes
    snapshots   {NAME: PATH}: files that are read after each sample
    rest        seconds of sleep before each ioctl, in which the kernel finishes earlier work:
                while an RCU grace period waits, each timer tick costs more
    realtime    true: run as SCHED_FIFO, so that no other task asks for the CPU. On a kernel that
                does not preempt a long unmap, a task that asks for it in the middle of the unmap
                makes every preempt_enable() of the unmap's loops cost more from then on (1 % seen)
    step        true: before each ioctl print {"next": "map" | "unmap"} and wait for a line; the
                line "toggle" switches memory decode off and on, and the question is asked again

The answer is lines of JSON:
    {"agent": {...}}    the device, its BAR, the process's memory settings, the instrument's cost
    {"point": {...}}    a size and alignment: where it is mapped
    {"sample": {...}}   a map and an unmap there: nanoseconds of CLOCK_MONOTONIC around each ioctl,
                        and what the process itself saw (minor faults, page-table bytes)
    {"end": true}       or {"refused": "the kernel's reason"}, if it refuses something
The first point, "warm-up", absorbs what kernel and interpreter do only once.

cold: memory decode was switched off and on before the map, so vfio-pci has zapped the BAR's page
      tables.
warm: the page tables are as the previous map left them.

The ioctls and structures are those of include/uapi/linux/vfio.h and iommufd.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import json
import mmap
import os
import re
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

VFIO = ord(";") << 8
SET_IOMMU, GROUP_GET_STATUS, GROUP_SET_CONTAINER, GET_DEVICE_FD = (
    VFIO | n for n in (102, 103, 104, 106)
)
GET_REGION_INFO, MAP_DMA, UNMAP_DMA = (VFIO | n for n in (108, 113, 114))
DEVICE_FEATURE, BIND_IOMMUFD, ATTACH_IOMMUFD = (VFIO | n for n in (117, 118, 119))
IOAS_ALLOC, IOAS_MAP, IOAS_UNMAP, IOAS_MAP_FILE = (VFIO | n for n in (0x81, 0x85, 0x86, 0x8F))
TYPE1V2_IOMMU = 3
GROUP_VIABLE = 1
REGION_MMAP = 4
MAP_READ_WRITE = 3
IOAS_FIXED_READ_WRITE = 7
IOCTLS = {
    MAP_DMA: "VFIO_IOMMU_MAP_DMA", UNMAP_DMA: "VFIO_IOMMU_UNMAP_DMA",
    IOAS_MAP: "IOMMU_IOAS_MAP", IOAS_MAP_FILE: "IOMMU_IOAS_MAP_FILE",
    IOAS_UNMAP: "IOMMU_IOAS_UNMAP",
}  # fmt: skip
FEATURE_GET, FEATURE_DMA_BUF = 1 << 16, 11
CONFIG_REGION = 7
COMMAND, COMMAND_MEMORY = 4, 2
GIB = 1 << 30
IOVA = 1 << 36
WHOLE = {"name": "full/1GiB", "size": "full", "alignment": GIB, "states": ["cold", "warm"]}
DEFAULTS: dict[str, Any] = {
    "backend": "type1", "thp": "inherit", "repeats": 1, "points": [WHOLE], "within": False,
    "snapshots": {}, "rest": 0, "realtime": False, "step": False,
}  # fmt: skip
ADDR_NO_RANDOMIZE = 0x0040000  # personality(2)
PR_SET_THP_DISABLE, PR_GET_THP_DISABLE = 41, 42
MADVISE = {"hugepage": 14, "nohugepage": 15}
# an ioctl that the kernel answers without calling any driver (fs/ioctl.c), without effect here
NO_OPERATION = 0x5451  # FIOCLEX: files of Python are close-on-exec anyway

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]  # fmt: skip
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


def call_mmap(address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    got = libc.mmap(address, size, prot, flags, fd, offset)
    if got == ctypes.c_void_p(-1).value or got is None:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size} bytes: {os.strerror(code)}")
    return int(got)


class Backend:
    """Base class of both backends, whose replies to an unmap have the same layout."""

    def unmapped(self, reply: bytearray) -> int:
        """Return the bytes that were unmapped: the last member of the unmap's structure, which the
        kernel has rewritten."""
        return int(struct.unpack("IIQQ", reply)[3])


class Type1(Backend):
    """VFIO's own IOMMU backend: a container (type1v2) and a group."""

    name = "type1"

    def __init__(self, bdf: str) -> None:
        group_name = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{bdf}/iommu_group"))
        self.control = os.open("/dev/vfio/vfio", os.O_RDWR)
        group = os.open(f"/dev/vfio/{group_name}", os.O_RDWR)
        status = bytearray(struct.pack("II", 8, 0))
        fcntl.ioctl(group, GROUP_GET_STATUS, status, True)
        if not struct.unpack("II", status)[1] & GROUP_VIABLE:
            raise OSError(
                errno.EBUSY, f"IOMMU group {group_name} is not viable: not all of it is vfio-pci's"
            )
        fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("i", self.control))
        fcntl.ioctl(self.control, SET_IOMMU, TYPE1V2_IOMMU)
        name = ctypes.create_string_buffer(bdf.encode())
        self.device = libc.ioctl(group, GET_DEVICE_FD, name)
        if self.device < 0:
            raise OSError(
                ctypes.get_errno(), f"VFIO_GROUP_GET_DEVICE_FD: {os.strerror(ctypes.get_errno())}"
            )

    def requests(self, address: int, size: int) -> tuple[tuple[int, bytearray], ...]:
        """Return number and structure of the ioctls that map and unmap `size` bytes at
        `address`."""
        return (
            (MAP_DMA, bytearray(struct.pack("IIQQQ", 32, MAP_READ_WRITE, address, IOVA, size))),
            (UNMAP_DMA, bytearray(struct.pack("IIQQ", 24, 0, IOVA, size))),
        )


class Iommufd(Backend):
    """iommufd, with the device's own character device.

    A BAR has no struct pages, so iommufd cannot map it by address; from v6.19 on vfio-pci exports
    it as a dma-buf. Without that the map is tried by address, and the kernel's error is reported.
    """

    name = "iommufd"

    def __init__(self, bdf: str) -> None:
        folder = f"/sys/bus/pci/devices/{bdf}/vfio-dev"
        if not os.path.exists("/dev/iommu"):
            raise OSError(errno.ENODEV, "there is no /dev/iommu: this kernel has no iommufd")
        if not os.path.isdir(folder):
            raise OSError(errno.ENODEV, "the device has no vfio-dev: this kernel has no VFIO cdev")
        self.device = os.open(f"/dev/vfio/devices/{os.listdir(folder)[0]}", os.O_RDWR)
        self.control = os.open("/dev/iommu", os.O_RDWR)
        bind = bytearray(struct.pack("IIiI", 16, 0, self.control, 0))
        fcntl.ioctl(self.device, BIND_IOMMUFD, bind)
        space = bytearray(struct.pack("III", 12, 0, 0))
        fcntl.ioctl(self.control, IOAS_ALLOC, space, True)
        self.space = struct.unpack("III", space)[2]
        fcntl.ioctl(self.device, ATTACH_IOMMUFD, bytearray(struct.pack("III", 12, 0, self.space)))
        self.dma_buf = -1

    def export(self, bar: int, size: int) -> None:
        """Export the BAR's first `size` bytes as a dma-buf, with VFIO_DEVICE_FEATURE_DMA_BUF."""
        if self.dma_buf >= 0:
            os.close(self.dma_buf)
        get = FEATURE_GET | FEATURE_DMA_BUF
        request = bytearray(struct.pack("IIIIIIQQ", 40, get, bar, os.O_RDWR, 0, 1, 0, size))
        self.dma_buf = libc.ioctl(
            self.device, DEVICE_FEATURE, (ctypes.c_char * len(request)).from_buffer(request)
        )

    def requests(self, address: int, size: int) -> tuple[tuple[int, bytearray], ...]:
        how = (40, IOAS_FIXED_READ_WRITE, self.space)
        by_file = struct.pack("IIIiQQQ", *how, self.dma_buf, 0, size, IOVA)
        by_address = struct.pack("IIIIQQQ", *how, 0, address, size, IOVA)
        number, request = (IOAS_MAP_FILE, by_file) if self.dma_buf >= 0 else (IOAS_MAP, by_address)
        return (
            (number, bytearray(request)),
            (IOAS_UNMAP, bytearray(struct.pack("IIQQ", 24, self.space, IOVA, size))),
        )


BACKENDS: dict[str, type[Type1] | type[Iommufd]] = {"type1": Type1, "iommufd": Iommufd}


def region(device: int, index: int) -> tuple[int, int, int]:
    """Return flags, size and offset of a region of the device."""
    info = bytearray(struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, GET_REGION_INFO, info, True)
    _, flags, _, _, size, offset = struct.unpack("IIIIQQ", info)
    return flags, size, offset


def page_table_bytes() -> int:
    match = re.search(r"VmPTE:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else -1


def iommu_table_pages() -> int | None:
    """Return the pages of all IOMMU page tables of this machine (v6.11 and later), or None."""
    setting("/proc/sys/vm/stat_refresh")  # makes the kernel add up the counts of its CPUs
    match = re.search(r"(?m)^nr_iommu_pages (\d+)$", Path("/proc/vmstat").read_text())
    return int(match[1]) if match else None


def slots_of(start: int, end: int) -> set[int]:
    """Return the slots of 512 GiB that a range is in. A page of the third-highest table level
    (PUD) covers one slot."""
    return set(range(start >> 39, ((end - 1) >> 39) + 1))


def address_space() -> tuple[set[int], int]:
    """Return the slots in which the process has something mapped, and how many mappings it has."""
    used: set[int] = set()
    areas = Path("/proc/self/maps").read_text().splitlines()
    for area in areas:
        start, end = (int(word, 16) for word in area.split()[0].split("-"))
        if start < 1 << 63:
            used |= slots_of(start, end)
    return used, len(areas)


def vm_flags(address: int) -> list[str]:
    """Return VmFlags of the mapping that starts at `address` (proc_pid_smaps(5))."""
    text = Path("/proc/self/smaps").read_text()
    match = re.search(rf"(?m)^{address:x}-(?:.*\n)+?VmFlags: (.*)$", text)
    return match[1].split() if match else []


def timed(file: int, number: int, argument: bytearray) -> int:
    """Call an ioctl and return the nanoseconds that it takes, as Python sees it."""
    clock, call = time.monotonic_ns, fcntl.ioctl
    start = clock()
    try:
        call(file, number, argument)
    except OSError as exc:
        raise OSError(exc.errno, f"{IOCTLS.get(number, number)}: {exc.strerror}") from exc
    return clock() - start


def instrument(file: int) -> dict[str, list[int]]:
    """Measure what a sample contains besides the ioctl's work: two readings of the clock with
    nothing between them, and an ioctl that does nothing. This also warms the interpreter up."""
    clock, readings = time.monotonic_ns, []
    for _ in range(16):
        start = clock()
        readings.append(clock() - start)
    empty = [timed(file, NO_OPERATION, bytearray(32)) for _ in range(16)]
    return {"clock_ns": readings, "empty_ioctl_ns": empty}


def say(what: str, value: Any) -> None:
    """Print a line at once and keep nothing: a growing heap would add to the page-table bytes."""
    sys.stdout.write(json.dumps({what: value}) + "\n")
    sys.stdout.flush()


def setting(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


class Agent:
    def __init__(self, bdf: str, request: dict[str, Any]) -> None:
        self.request = request
        self.backend: Type1 | Iommufd = BACKENDS[request["backend"]](bdf)
        self.device = self.backend.device
        self.config = region(self.device, CONFIG_REGION)[2]
        self.decode(on=True)
        bars = {index: region(self.device, index) for index in range(6)}
        mappable = [i for i, (flags, _, _) in bars.items() if flags & REGION_MMAP]
        if not mappable:
            raise OSError(errno.ENODEV, f"{bdf} has no BAR that can be mapped")
        self.bar = max(mappable, key=lambda i: bars[i][1])
        _, self.bytes, self.offset = bars[self.bar]
        resources = Path(f"/sys/bus/pci/devices/{bdf}/resource").read_text().splitlines()
        self.bar_address = int(resources[self.bar].split()[0], 16)

    def decode(self, *, on: bool) -> None:
        """Switch the device's memory decoding. Switching it off zaps the page tables of the
        device's BARs in every process (vfio_pci_zap_and_down_write_memory_lock)."""
        at = self.config + COMMAND
        command = struct.unpack("H", os.pread(self.device, 2, at))[0]
        new = command | COMMAND_MEMORY if on else command & ~COMMAND_MEMORY
        os.pwrite(self.device, struct.pack("H", new), at)

    def point(self, wanted: dict[str, Any], repeats: int) -> None:
        size = self.bytes if wanted["size"] == "full" else wanted["size"]
        length = self.bytes if self.request["within"] else size
        # If address and BAR are equal modulo 1 GiB, leaves of every size can map the BAR; QEMU has
        # aligned its mappings so since 9.2 (vfio_region_mmap). With a skew, only leaves up to the
        # requested alignment can.
        skew = 0 if wanted["alignment"] >= GIB else wanted["alignment"]
        used, vm_areas = address_space()
        room = length + 3 * GIB
        reserved = call_mmap(
            None, room, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        address = ((reserved + GIB - 1) & ~(GIB - 1)) + self.bar_address % GIB + skew
        call_mmap(
            address, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED,
            self.device, self.offset,
        )  # fmt: skip
        advice = MADVISE.get(self.request["thp"])
        if advice is not None and libc.madvise(address, length, advice) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"madvise of the BAR: {os.strerror(code)}")
        if isinstance(self.backend, Iommufd):
            self.backend.export(self.bar, size)
            wanted = {**wanted, "dma_buf": self.backend.dma_buf >= 0}
        states = sorted(wanted["states"])  # cold before warm
        # warm needs filled page tables, and a first map through small leaves allocates tables too
        primed = "cold" in states and not skew and length % GIB == 0
        order = [*([] if primed else ["prime"]), *(states * repeats)]
        say("point", {**wanted, "bytes": size, "mapping_bytes": length, "address": address,
                      "order": order,
                      "upper_tables": len(slots_of(address, address + length) - used),
                      "vm_flags": vm_flags(address), "vm_areas": vm_areas})  # fmt: skip
        for state in order:
            say("sample", self.sample(state, address, size))
        libc.munmap(reserved, room)

    def sample(self, state: str, address: int, size: int) -> dict[str, Any]:
        if state != "warm":
            self.decode(on=False)
            self.decode(on=True)
        (map_number, map_request), (unmap_number, unmap_request) = self.backend.requests(
            address, size
        )
        control = self.backend.control
        iommu = iommu_table_pages()
        self.step("map")
        page_table_bytes()  # a first time, so that the heap has what reading needs
        tables = page_table_bytes()
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        map_ns = timed(control, map_number, map_request)
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
        tables = page_table_bytes() - tables
        after = iommu_table_pages()
        self.step("unmap")
        unmap_ns = timed(control, unmap_number, unmap_request)
        self.step("")
        snapshots = {
            name: Path(path).read_text() for name, path in self.request["snapshots"].items()
        }
        return {
            "state": state, "map_ns": map_ns, "unmap_ns": unmap_ns,
            "unmapped_bytes": self.backend.unmapped(unmap_request),
            "minor_faults": faults, "page_table_bytes": tables,
            "iommu_table_pages": None if iommu is None or after is None else after - iommu,
            **({"snapshots": snapshots} if snapshots else {}),
        }  # fmt: skip

    def step(self, what: str) -> None:
        time.sleep(self.request["rest"])
        if self.request["step"]:
            say("next", what)
            while sys.stdin.readline().strip() == "toggle":
                self.decode(on=False)
                self.decode(on=True)
                say("next", what)


def main() -> None:
    try:
        measure(sys.argv[1])
    except OSError as exc:
        say("refused", str(exc))
        sys.exit(1)


def measure(bdf: str) -> None:
    request = DEFAULTS | json.loads(sys.stdin.readline().strip() or "{}")
    if request["thp"] == "disable" and libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"PR_SET_THP_DISABLE: {os.strerror(code)}")
    if request["realtime"]:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    gc.disable()
    agent = Agent(bdf, request)
    say("agent", {
        "device": bdf, "backend": agent.backend.name,
        "bar": agent.bar, "bar_bytes": agent.bytes, "bar_address": agent.bar_address,
        "thp": {
            "enabled": setting("/sys/kernel/mm/transparent_hugepage/enabled"),
            "process_disabled": libc.prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0),
        },
        "instrument": instrument(agent.backend.control),
    })  # fmt: skip
    once = {"name": "warm-up", "size": min(agent.bytes, GIB), "alignment": GIB, "states": ["cold"]}
    agent.point(once, 1)
    for point in request["points"]:
        agent.point(point, request["repeats"])
    say("end", True)


def same_addresses() -> None:
    """Execute this program again without address space randomization. With it, chance would decide
    in each process whether the BAR needs another upper table, which covers 512 GiB."""
    now = libc.personality(0xFFFFFFFF)
    if not now & ADDR_NO_RANDOMIZE and libc.personality(now | ADDR_NO_RANDOMIZE) != -1:
        os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    same_addresses()
    main()
