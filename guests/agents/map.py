"""Map and unmap the largest BAR of a vfio-pci device from user space. Plain Python 3.

    map.py 0000:01:00.0 [--repeats N]

Prints JSON: device, BAR, virtual address, and one sample for each map and unmap, with the ioctls'
own results, nanoseconds of CLOCK_MONOTONIC around them, and what the process itself saw
(minor faults, page-table bytes). The first map is cold: the BAR has not been touched.

The ioctls and structures are those of include/uapi/linux/vfio.h; type1 container and group.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import json
import mmap
import os
import re
import resource
import struct
import time
from pathlib import Path

VFIO = ord(";") << 8
SET_IOMMU, GROUP_GET_STATUS, GROUP_SET_CONTAINER, GET_DEVICE_FD = (
    VFIO | n for n in (102, 103, 104, 106)
)
GET_REGION_INFO, MAP_DMA, UNMAP_DMA = (VFIO | n for n in (108, 113, 114))
TYPE1V2_IOMMU = 3
GROUP_VIABLE = 1
REGION_MMAP = 4
MAP_READ_WRITE = 3
CONFIG_REGION = 7
COMMAND, COMMAND_MEMORY = 4, 2
GIB = 1 << 30
IOVA = 1 << 36

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]  # fmt: skip
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000


def call_mmap(address: int | None, size: int, prot: int, flags: int, fd: int, offset: int) -> int:
    got = libc.mmap(address, size, prot, flags, fd, offset)
    if got == ctypes.c_void_p(-1).value or got is None:
        code = ctypes.get_errno()
        raise OSError(code, f"mmap of {size} bytes: {os.strerror(code)}")
    return int(got)


def open_device(bdf: str) -> tuple[int, int]:
    """Container and device."""
    group_name = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{bdf}/iommu_group"))
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    group = os.open(f"/dev/vfio/{group_name}", os.O_RDWR)
    status = bytearray(struct.pack("II", 8, 0))
    fcntl.ioctl(group, GROUP_GET_STATUS, status, True)
    if not struct.unpack("II", status)[1] & GROUP_VIABLE:
        raise OSError(
            errno.EBUSY, f"IOMMU group {group_name} is not viable: not all of it is vfio-pci's"
        )
    fcntl.ioctl(group, GROUP_SET_CONTAINER, struct.pack("i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
    name = ctypes.create_string_buffer(bdf.encode())
    device = libc.ioctl(group, GET_DEVICE_FD, name)
    if device < 0:
        raise OSError(
            ctypes.get_errno(), f"VFIO_GROUP_GET_DEVICE_FD: {os.strerror(ctypes.get_errno())}"
        )
    return container, device


def region(device: int, index: int) -> tuple[int, int, int]:
    """Flags, size, offset."""
    info = bytearray(struct.pack("IIIIQQ", 32, 0, index, 0, 0, 0))
    fcntl.ioctl(device, GET_REGION_INFO, info, True)
    _, flags, _, _, size, offset = struct.unpack("IIIIQQ", info)
    return flags, size, offset


def page_table_bytes() -> int:
    match = re.search(r"VmPTE:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else -1


def sample(container: int, address: int, size: int) -> dict[str, int]:
    request = struct.pack("IIQQQ", 32, MAP_READ_WRITE, address, IOVA, size)
    reply = bytearray(struct.pack("IIQQ", 24, 0, IOVA, size))
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    tables = page_table_bytes()
    start = time.monotonic_ns()
    fcntl.ioctl(container, MAP_DMA, request)
    mapped = time.monotonic_ns()
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
    tables = page_table_bytes() - tables
    unmap_start = time.monotonic_ns()
    fcntl.ioctl(container, UNMAP_DMA, reply, True)
    end = time.monotonic_ns()
    return {
        "map_ns": mapped - start, "unmap_ns": end - unmap_start,
        "unmapped_bytes": struct.unpack("IIQQ", reply)[3],
        "minor_faults": faults, "page_table_bytes": tables,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bdf")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    container, device = open_device(options.bdf)
    _, _, config = region(device, CONFIG_REGION)
    command = struct.unpack("H", os.pread(device, 2, config + COMMAND))[0]
    os.pwrite(device, struct.pack("H", command | COMMAND_MEMORY), config + COMMAND)
    bars = {index: region(device, index) for index in range(6)}
    bar = max(
        (i for i, (flags, _, _) in bars.items() if flags & REGION_MMAP), key=lambda i: bars[i][1]
    )
    _, size, offset = bars[bar]
    # An address aligned to the size, up to 1 GiB, so that every mapping level is possible; QEMU
    # does the same since 9.2 (vfio_region_mmap).
    alignment = min(size, GIB)
    reserved = call_mmap(
        None, size + alignment, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    address = (reserved + alignment - 1) & ~(alignment - 1)
    call_mmap(
        address,
        size,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED | MAP_FIXED,
        device,
        offset,
    )
    samples = [sample(container, address, size) for _ in range(options.repeats)]
    print(json.dumps({
        "device": options.bdf, "bar": bar, "bytes": size, "address": address,
        "alignment": alignment, "backend": "type1v2", "samples": samples,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
