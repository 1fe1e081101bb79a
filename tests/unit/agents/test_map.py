"""The numbers of include/uapi/linux/vfio.h and iommufd.h, and the agent on a made-up device:
mappings of a file, and ioctls that do nothing."""

from __future__ import annotations

import errno
import fcntl
import gc
import io
import json
import mmap
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator.analysis.maps.maps import IOVA
from orchestrator.formats.abi import MAP_DMA, UNMAP_DMA
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.tracing.mapagent import build_point_request, collect_answers
from tests.unit.agents.loading import AGENTS, agent
from tests.unit.answers import read
from tests.unit.scenarios import map_scenario

Said = pytest.CaptureFixture[str]
BAR_ADDRESS = 0x380000000000 + 512 * MIB
BAR = 64 * MIB


def test_ioctls_are_those_that_the_trace_is_filtered_by() -> None:
    agent_map = agent("map")
    assert (agent_map.MAP_DMA, agent_map.UNMAP_DMA) == (MAP_DMA, UNMAP_DMA)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SET_IOMMU", 0x3B66),
        ("GROUP_GET_STATUS", 0x3B67),
        ("GROUP_SET_CONTAINER", 0x3B68),
        ("GET_DEVICE_FD", 0x3B6A),
        ("GET_REGION_INFO", 0x3B6C),
        ("DEVICE_FEATURE", 0x3B75),
        ("BIND_IOMMUFD", 0x3B76),
        ("ATTACH_IOMMUFD", 0x3B77),
        ("IOAS_ALLOC", 0x3B81),
        ("IOAS_MAP", 0x3B85),
        ("IOAS_UNMAP", 0x3B86),
        ("IOAS_MAP_FILE", 0x3B8F),
        ("NO_OPERATION", 0x5451),
    ],
)
def test_ioctls_have_their_numbers(name: str, number: int) -> None:
    assert getattr(agent("map"), name) == number


def test_no_operation_does_nothing() -> None:
    agent_map = agent("map")
    with Path(os.devnull).open("rb") as file:
        before = os.get_inheritable(file.fileno())
        assert agent_map.timed(file.fileno(), agent_map.NO_OPERATION, bytearray(32)) > 0
        assert os.get_inheritable(file.fileno()) == before is False


def test_ioctl_that_is_refused_is_named() -> None:
    agent_map = agent("map")
    with Path(os.devnull).open("rb") as file, pytest.raises(OSError, match="VFIO_IOMMU_MAP_DMA"):
        agent_map.timed(file.fileno(), agent_map.MAP_DMA, bytearray(32))


def type1(agent_map: ModuleType) -> Any:
    return object.__new__(agent_map.Type1)


def iommufd(agent_map: ModuleType, dma_buf: int = -1) -> Any:
    backend = object.__new__(agent_map.Iommufd)
    backend.space, backend.dma_buf = 5, dma_buf
    return backend


def test_type1_maps_and_unmaps_by_address() -> None:
    agent_map = agent("map")
    (do_map, request), (undo, unrequest) = type1(agent_map).requests(0x7F0000001000, GIB)
    # argsz, flags (read and write), vaddr, iova, size
    assert do_map == MAP_DMA
    assert struct.unpack("=IIQQQ", request) == (32, 3, 0x7F0000001000, agent_map.IOVA, GIB)
    # argsz, flags, iova, size
    assert undo == UNMAP_DMA
    assert struct.unpack("=IIQQ", unrequest) == (24, 0, agent_map.IOVA, GIB)
    assert (len(request), len(unrequest)) == (32, 24)


def test_iommufd_maps_by_address_where_there_is_no_dma_buf() -> None:
    agent_map = agent("map")
    (do_map, request), (undo, unrequest) = iommufd(agent_map).requests(0x7F0000001000, GIB)
    # size, flags (fixed iova, writeable, readable), ioas_id, reserved, user_va, length, iova
    assert do_map == 0x3B85
    assert struct.unpack("=IIIIQQQ", request) == (
        40, 7, 5, 0, 0x7F0000001000, GIB, agent_map.IOVA,
    )  # fmt: skip
    # size, ioas_id, iova, length
    assert undo == 0x3B86
    assert struct.unpack("=IIQQ", unrequest) == (24, 5, agent_map.IOVA, GIB)
    assert (len(request), len(unrequest)) == (40, 24)


def test_iommufd_maps_a_dma_buf_from_its_start() -> None:
    agent_map = agent("map")
    (do_map, request), _ = iommufd(agent_map, dma_buf=9).requests(0x7F0000001000, GIB)
    # size, flags, ioas_id, fd, start, length, iova
    assert do_map == 0x3B8F
    assert struct.unpack("=IIIiQQQ", request) == (40, 7, 5, 9, 0, GIB, agent_map.IOVA)
    assert len(request) == 40


@pytest.mark.parametrize("make", [type1, iommufd])
def test_bytes_that_were_unmapped_are_read_from_the_reply(
    make: Callable[[ModuleType], Any],
) -> None:
    backend = make(agent("map"))
    _, (_, reply) = backend.requests(0x7F0000001000, GIB)
    assert backend.unmapped(reply) == GIB
    struct.pack_into("=Q", reply, 16, 4096)
    assert backend.unmapped(reply) == 4096


def test_iova_is_the_one_that_the_analysis_reckons_with() -> None:
    assert agent("map").IOVA == IOVA


def test_iova_is_aligned_to_the_largest_leaf() -> None:
    assert agent("map").IOVA % GIB == 0


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


TABLE = 512 * GIB


@pytest.mark.parametrize(
    ("start", "end", "slots"),
    [
        (0, 1, {0}),
        (0, TABLE, {0}),
        (0, TABLE + 1, {0, 1}),
        (TABLE - 4096, TABLE + 4096, {0, 1}),
        (TABLE, 2 * TABLE, {1}),
        (254 * TABLE + GIB, 254 * TABLE + 33 * GIB, {254}),
    ],
)
def test_upper_tables_cover_512_gib_each(start: int, end: int, slots: set[int]) -> None:
    assert agent("map").slots_of(start, end) == slots


def test_address_space_has_the_slots_of_every_mapping() -> None:
    agent_map = agent("map")
    before, areas = agent_map.address_space()
    assert id(agent_map) >> 39 in before
    free = next(slot for slot in range(8, 200) if not {slot, slot + 1} & before)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | agent_map.MAP_FIXED | agent_map.MAP_NORESERVE
    address = (free + 1) * TABLE - 4096
    assert agent_map.call_mmap(address, 8192, 0, flags, -1, 0) == address
    after, more = agent_map.address_space()
    agent_map.libc.munmap(address, 8192)
    assert after - before == {free, free + 1}
    assert more > areas


def test_flags_are_those_of_the_mapping_at_the_address() -> None:
    agent_map = agent("map")
    address = agent_map.call_mmap(
        None, 1 << 20, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    assert agent_map.libc.madvise(address, 1 << 20, agent_map.MADVISE["nohugepage"]) == 0
    flags = agent_map.vm_flags(address)
    assert {"rd", "nh"} <= set(flags)
    assert "wr" not in flags
    assert agent_map.vm_flags(address + 4096) == []
    agent_map.libc.munmap(address, 1 << 20)


def test_setting_that_is_not_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    agent_map = agent("map")
    assert agent_map.setting(str(tmp_path / "enabled")) == "always [madvise] never"
    assert agent_map.setting(str(tmp_path / "none")) is None


def test_instrument_is_measured_many_times() -> None:
    with Path(os.devnull).open("rb") as file:
        found = agent("map").instrument(file.fileno())
    assert set(found) == {"clock_ns", "empty_ioctl_ns"}
    assert all(len(values) == 16 and min(values) >= 0 for values in found.values())


class Device:
    """A backend whose BAR is a file; its ioctls are recorded and do nothing."""

    name = "type1"

    def __init__(self, folder: Path, module: ModuleType) -> None:
        self._file = folder / "bar"
        self._file.write_bytes(b"")
        self.resize(BAR)
        self.device = os.open(self._file, os.O_RDWR)
        self.control = os.open(os.devnull, os.O_RDWR)
        self._requests = type1(module).requests
        self.unmapped = type1(module).unmapped
        self.calls: list[tuple[str, int, int]] = []
        self.error = 0

    def resize(self, size: int) -> None:
        os.truncate(self._file, size)
        self.bytes = size

    def requests(self, address: int, size: int) -> Any:
        return self._requests(address, size)

    def ioctl(self, file: int, number: int, argument: Any, mutate: bool = True) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if number == MAP_DMA:
            _, _, address, _, size = struct.unpack("IIQQQ", argument)
            self.calls.append(("map", address, size))
        elif number == UNMAP_DMA:
            self.calls.append(("unmap", *struct.unpack("IIQQ", argument)[2:]))
        return 0


class Fixture:
    def __init__(
        self, module: ModuleType, device: Device, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.module, self.device, self._monkeypatch = module, device, monkeypatch
        self.decoded: list[bool] = []

    def run(self, request: dict[str, Any], words: str = "") -> int:
        """Run the program with a request and more lines on its standard input; return its exit
        code."""
        self._monkeypatch.setattr(sys, "argv", ["map.py", "0000:01:00.0"])
        self._monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n" + words))
        try:
            self.module.main()
        except SystemExit as exc:
            return int(str(exc.code))
        finally:
            gc.enable()  # the program disables it until it ends
        return 0


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fixture:
    module = agent("map")
    device = Device(tmp_path, module)
    found = Fixture(module, device, monkeypatch)

    def made(self: Any, bdf: str, request: dict[str, Any]) -> None:
        self.request, self.backend, self.device = request, device, device.device
        self.bar, self.bytes, self.offset, self.bar_address = 2, device.bytes, 0, BAR_ADDRESS

    monkeypatch.setattr(module.Agent, "__init__", made)
    monkeypatch.setattr(module.Agent, "decode", lambda self, *, on: found.decoded.append(on))
    monkeypatch.setattr(module, "iommu_table_pages", lambda: 70)
    monkeypatch.setattr(fcntl, "ioctl", device.ioctl)
    return found


def asked(*overrides: str, repeats: int = 1, **more: Any) -> dict[str, Any]:
    chosen = map_scenario("device.bar=64MiB", "host.accel=tcg", 'trace.passes=["plain"]',
                          *overrides)  # fmt: skip
    return build_point_request(chosen.map, chosen.points(), repeats, exact=False, **more)


def test_answer_is_what_the_analysis_reads(fake: Fixture, capsys: Said) -> None:
    request = asked('map.sizes=["full", "4MiB"]', 'map.alignment=["1GiB", "4KiB"]', repeats=2)
    assert fake.run(request) == 0
    found = read(collect_answers(capsys.readouterr().out.splitlines()))
    assert (found.backend, found.bar_bytes, found.thp_off_in_process) == ("type1", BAR, False)
    assert [p.name for p in found.places] == ["full/1GiB", "4MiB/1GiB", "full/4KiB", "4MiB/4KiB"]
    assert [p.mapping.size for p in found.places] == [BAR, 4 * MIB, BAR, 4 * MIB]
    off = [(p.mapping.address - p.mapping.physical) % GIB for p in found.places]
    assert off == [0, 0, 4096, 4096]
    for place in found.places:
        assert [s.state for s in place.samples] == ["prime", "cold", "warm", "cold", "warm"]
        assert place.upper_tables in (0, 1)
        assert all(s.unmapped_bytes == place.mapping.size for s in place.samples)
        assert all(s.iommu_table_pages == 0 for s in place.samples)
    maps = [(address, size) for what, address, size in fake.device.calls if what == "map"]
    # after those of the warm-up, each place has as many maps as samples
    assert [size for _, size in maps[-20:]] == [*[BAR] * 5, *[4 * MIB] * 5] * 2
    skews = [(address - BAR_ADDRESS) % GIB for address, _ in maps[-20:]]
    assert skews == [0] * 10 + [4096] * 10


def test_empty_request_asks_for_the_whole_bar(fake: Fixture, capsys: Said) -> None:
    assert fake.run({}) == 0
    [place] = read(collect_answers(capsys.readouterr().out.splitlines())).places
    assert (place.name, place.mapping.size) == ("full/1GiB", BAR)
    assert [s.state for s in place.samples] == ["prime", "cold", "warm"]


def test_request_of_a_run_names_only_what_the_agent_knows() -> None:
    known = set(agent("map").DEFAULTS)
    assert set(asked()) <= known


@pytest.mark.parametrize("realtime", [True, False])
def test_agent_becomes_a_real_time_task_where_it_is_asked_to(
    fake: Fixture, capsys: Said, monkeypatch: pytest.MonkeyPatch, realtime: bool
) -> None:
    policies: list[int] = []
    monkeypatch.setattr(
        os, "sched_setscheduler", lambda pid, policy, param: policies.append(policy)
    )
    assert fake.run({"realtime": realtime}) == 0
    assert policies == [os.SCHED_FIFO] * realtime


def test_page_tables_are_zapped_before_a_cold_map_only(fake: Fixture, capsys: Said) -> None:
    assert fake.run(asked(repeats=3)) == 0
    points = collect_answers(capsys.readouterr().out.splitlines())["points"]
    cold = [s for point in points for s in point["samples"] if s["state"] != "warm"]
    assert len(points[1]["samples"]) == 7
    assert fake.decoded == [False, True] * len(cold)


def test_warm_alone_is_primed_once(fake: Fixture, capsys: Said) -> None:
    assert fake.run(asked('map.state=["warm"]', repeats=2)) == 0
    [place] = read(collect_answers(capsys.readouterr().out.splitlines())).places
    assert [s.state for s in place.samples] == ["prime", "warm", "warm"]


@pytest.mark.parametrize(
    ("bar", "alignment", "states", "order"),
    [
        (2 * GIB, "1GiB", ["cold", "warm"], ["cold", "warm", "cold", "warm"]),
        (2 * GIB, "1GiB", ["cold"], ["cold", "cold"]),
        (2 * GIB, "1GiB", ["warm"], ["prime", "warm", "warm"]),
        (2 * GIB, "2MiB", ["cold", "warm"], ["prime", "cold", "warm", "cold", "warm"]),
        (2 * GIB, "4KiB", ["cold"], ["prime", "cold", "cold"]),
        (512 * MIB, "1GiB", ["cold"], ["prime", "cold", "cold"]),
        (512 * MIB, "4KiB", ["warm"], ["prime", "warm", "warm"]),
    ],
)
def test_first_map_through_small_leaves_or_without_cold_is_a_prime(
    fake: Fixture, capsys: Said, bar: int, alignment: str, states: list[str], order: list[str]
) -> None:
    fake.device.resize(bar)
    chosen = (f'map.alignment=["{alignment}"]', f"map.state={json.dumps(states)}")
    assert fake.run(asked(*chosen, repeats=2)) == 0
    warm_up, point = collect_answers(capsys.readouterr().out.splitlines())["points"]
    assert point["order"] == [s["state"] for s in point["samples"]] == order
    assert len(warm_up["samples"]) == len(warm_up["order"]) == 1 + (bar < GIB)


def test_size_is_mapped_alone_or_within_the_whole_bar(fake: Fixture, capsys: Said) -> None:
    for within, length in ((False, 4 * MIB), (True, BAR)):
        assert fake.run(asked('map.sizes=["4MiB"]', within=within)) == 0
        answer = collect_answers(capsys.readouterr().out.splitlines())
        point = answer["points"][1]
        assert (point["bytes"], point["mapping_bytes"]) == (4 * MIB, length)


def test_histograms_are_read_after_each_sample(
    fake: Fixture, capsys: Said, tmp_path: Path
) -> None:
    (tmp_path / "hist").write_text("so far\n")
    assert fake.run(asked(snapshots={"lookup": str(tmp_path / "hist")})) == 0
    answer = collect_answers(capsys.readouterr().out.splitlines())
    for point in answer["points"]:
        assert all(s["snapshots"] == {"lookup": "so far\n"} for s in point["samples"])


def test_agent_waits_before_each_ioctl_where_it_is_asked_to(fake: Fixture, capsys: Said) -> None:
    assert fake.run(asked('map.state=["cold"]', step=True), "\n" * 12) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    words = [next(iter(line)) if "next" not in line else line["next"] for line in lines]
    primed = ["point", *["map", "unmap", "", "sample"] * 2]
    assert words == ["agent", *primed, *primed, "end"]


def test_decode_is_toggled_while_the_bar_is_mapped(fake: Fixture, capsys: Said) -> None:
    answers = "\n" * 7 + "toggle\n" * 2 + "\n" * 5
    assert fake.run(asked('map.state=["cold"]', step=True), answers) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    words = [line["next"] for line in lines if "next" in line]
    asked_once = ["map", "unmap", ""]
    assert words == [*asked_once * 2, "map", "unmap", "unmap", "unmap", "", *asked_once]
    assert fake.decoded == [False, True] * (4 + 2)


@pytest.mark.parametrize(("thp", "flag"), [("hugepage", "hg"), ("nohugepage", "nh")])
def test_advice_is_given_for_the_bar(fake: Fixture, capsys: Said, thp: str, flag: str) -> None:
    for wanted, has in ((thp, True), ("inherit", False)):
        assert fake.run(asked(f"map.thp={wanted}")) == 0
        points = collect_answers(capsys.readouterr().out.splitlines())["points"]
        assert [flag in point["vm_flags"] for point in points] == [has] * 2


def test_what_the_kernel_refuses_is_the_last_line(fake: Fixture, capsys: Said) -> None:
    fake.device.error = errno.EFAULT
    assert fake.run(asked()) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert "Bad address" in json.loads(line)["refused"]


def test_device_that_is_not_there_is_refused() -> None:
    request = {"backend": "type1", "thp": "inherit"}
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "map.py", "ffff:ff:1f.7"], input=json.dumps(request),
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode != 0
    [line] = done.stdout.splitlines()
    assert "ffff:ff:1f.7" in json.loads(line)["refused"]


def test_huge_pages_are_switched_off_before_anything_else() -> None:
    """The agent runs in a process of its own, because huge pages stay off in it."""
    request = {"backend": "type1", "thp": "disable"}
    program = (
        "import runpy, sys\n"
        f"found = runpy.run_path({str(AGENTS / 'map.py')!r})\n"
        "sys.argv = ['map.py', 'ffff:ff:1f.7']\n"
        "try: found['main']()\n"
        "except SystemExit: print(found['libc'].prctl(42, 0, 0, 0, 0))\n"
    )
    for thp, expected in (("disable", "1"), ("inherit", "0")):
        done = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(request | {"thp": thp}),
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == expected


def test_kernel_without_iommufd_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    agent_map = agent("map")
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/iommu")
    with pytest.raises(OSError, match="no /dev/iommu"):
        agent_map.Iommufd("ffff:ff:1f.7")
