"""What a host that may be saved does when it gets its keys."""

from __future__ import annotations

import re
import struct
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.machine.nested.marks import ready_mark
from orchestrator.machine.transport.keys import RunKeys, make_tar
from tests.unit.agents.loading import agent

TOKEN, BOOT_ID = "0123456789ab", "58dcfb39-ced9-403f-9b65-0cae6c414847"
SEED = bytes(range(64))


class Lab:
    """A host as files, whose kernel records the requests to its random device."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.asked, self.clock = root, list[tuple[int, bytes]](), list[float]()
        for folder in ("dev", "etc/barometer", "proc/sys/kernel/random", "sys/block"):
            (root / folder).mkdir(parents=True)
        (root / "proc/sys/kernel/random/boot_id").write_text(f"{BOOT_ID}\n")
        (root / "dev/urandom").touch()
        (root / "etc/machine-id").write_text("saved\n")
        self.agent: ModuleType = agent("renew")
        patch.setattr(self.agent, "Path", lambda path: root if path == "/" else Path(path))
        patch.setattr(self.agent.fcntl, "ioctl", self._ioctl)
        patch.setattr(self.agent.time, "clock_settime", lambda _, now: self.clock.append(now))
        patch.setenv("token", TOKEN)

    def _ioctl(self, _file: Any, number: int, argument: bytes = b"") -> None:
        self.asked.append((number, argument))

    def plug(self, serial: str, content: bytes, name: str = "vdd") -> None:
        (self.root / "dev" / name).write_bytes(content)
        place = self.root / "sys/block" / name
        place.mkdir()
        (place / "serial").write_text(serial)

    def unpacked(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "etc/barometer").iterdir()}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def test_host_says_that_it_may_be_saved_and_waits_for_its_keys(lab: Lab) -> None:
    lab.plug("payload", b"", "vdc")
    files = RunKeys.make().for_host()
    waiting = threading.Thread(target=lab.agent.main)
    waiting.start()
    console, end = lab.root / "dev/console", time.monotonic() + 10
    while not (console.exists() and console.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    mark = ready_mark(TOKEN).search(console.read_text())
    assert mark is not None
    assert mark[1] == BOOT_ID
    assert waiting.is_alive()
    lab.plug("keys", make_tar({**files, "seed": SEED}))
    waiting.join(10)
    assert not waiting.is_alive()
    assert lab.unpacked() == files
    assert lab.clock == []


def test_keys_are_for_their_owner_alone(lab: Lab) -> None:
    lab.agent.unpack(make_tar(RunKeys.make().for_host()), lab.root / "etc/barometer")
    for path in (lab.root / "etc/barometer").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_random_state_is_mixed_and_used_at_once(lab: Lab) -> None:
    (lab.root / "etc/barometer/seed").write_bytes(SEED)
    lab.agent.renew(lab.root)
    # include/uapi/linux/random.h: RNDADDENTROPY, and RNDRESEEDCRNG after it
    assert [number for number, _ in lab.asked] == [0x40085203, 0x5207]
    assert lab.asked[0][1] == struct.pack("ii", 512, 64) + SEED
    assert not (lab.root / "etc/barometer/seed").exists()
    assert re.fullmatch(r"[0-9a-f]{32}\n", (lab.root / "etc/machine-id").read_text())


def test_host_without_a_seed_does_not_go_on(lab: Lab) -> None:
    with pytest.raises(FileNotFoundError):
        lab.agent.renew(lab.root)


def test_wall_clock_is_set_if_a_time_is_given(lab: Lab) -> None:
    (lab.root / "etc/barometer/seed").write_bytes(SEED)
    (lab.root / "etc/barometer/time").write_text("1764561600.25")
    lab.agent.renew(lab.root)
    assert lab.clock == [1764561600.25]


@given(st.binary(min_size=1, max_size=256))
def test_every_bit_of_a_seed_is_credited(seed: bytes) -> None:
    bits, size = struct.unpack_from("ii", info := agent("renew").pool_info(seed))
    assert (bits, size, info[8:]) == (8 * size, len(seed), seed)


def test_numbers_of_the_requests_are_the_kernels() -> None:
    """They are made here as include/uapi/asm-generic/ioctl.h does."""
    write, size = 1, struct.calcsize("ii")
    renew = agent("renew")
    assert write << 30 | size << 16 | ord("R") << 8 | 3 == renew._RNDADDENTROPY
    assert ord("R") << 8 | 7 == renew._RNDRESEEDCRNG
