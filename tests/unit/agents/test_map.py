"""The numbers of include/uapi/linux/vfio.h; the ioctls themselves need a device."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

from orchestrator.abi import MAP_DMA, UNMAP_DMA
from tests.unit.agents.loading import AGENTS, agent


def test_ioctls_are_those_that_the_trace_is_filtered_by() -> None:
    agent_map = agent("map")
    assert (agent_map.MAP_DMA, agent_map.UNMAP_DMA) == (MAP_DMA, UNMAP_DMA)


def test_ioctls_have_their_numbers() -> None:
    agent_map = agent("map")
    assert agent_map.SET_IOMMU == 0x3B66
    assert agent_map.GROUP_GET_STATUS == 0x3B67
    assert agent_map.GROUP_SET_CONTAINER == 0x3B68
    assert agent_map.GET_DEVICE_FD == 0x3B6A
    assert agent_map.GET_REGION_INFO == 0x3B6C


def test_address_space_is_reserved_without_memory() -> None:
    agent_map = agent("map")
    size = 64 << 30
    address = agent_map.call_mmap(
        None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | agent_map.MAP_NORESERVE, -1, 0
    )
    assert address % 4096 == 0
    assert agent_map.libc.munmap(agent_map.ctypes.c_void_p(address),
                                 agent_map.ctypes.c_size_t(size)) == 0  # fmt: skip


def test_refused_mapping_is_an_error() -> None:
    agent_map = agent("map")
    with pytest.raises(OSError, match="mmap of 4096 bytes"):
        agent_map.call_mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, 10**6, 0)


def test_page_tables_are_measured() -> None:
    assert agent("map").page_table_bytes() > 0


def test_device_that_is_not_there_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "map.py", "ffff:ff:1f.7"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    assert "ffff:ff:1f.7" in done.stderr
    assert done.stdout == ""
