from __future__ import annotations

import shlex
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.machine.guest.guestdisk import (
    Partition,
    boot_area,
    grub_config,
    keys_disk,
    layout,
)
from orchestrator.machine.transport.keys import RunKeys
from tests.unit.machine.test_cpio import unpacked

BOOT, ROOT = Partition(0xEF, 2048, 81920, active=True), Partition(0x83, 83968, 4096)
WORDS = st.lists(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="'\"\\"),
            min_size=1, max_size=20), max_size=20,
)  # fmt: skip


def test_partition_table_is_where_firmware_looks_for_it() -> None:
    area = boot_area(b"\xeb\x63" + b"c" * 510, b"core", [BOOT, ROOT])
    assert area[510:512] == b"\x55\xaa"
    entries = [struct.unpack_from("<B3xB3xII", area, 446 + 16 * i) for i in range(4)]
    assert entries[:2] == [(0x80, 0xEF, 2048, 81920), (0, 0x83, 83968, 4096)]
    assert entries[2:] == [(0, 0, 0, 0)] * 2


def test_boot_code_leaves_the_table_alone_and_the_core_image_follows() -> None:
    area = boot_area(b"c" * 512, b"core", [])
    assert area[:440] == b"c" * 440
    assert area[440:510] == bytes(70)
    assert area[512:] == b"core"


def test_core_image_may_not_reach_into_the_first_partition() -> None:
    assert len(boot_area(b"", bytes(2047 * 512), [BOOT])) == 2**20
    with pytest.raises(BenchError, match="1048065 bytes"):
        boot_area(b"", bytes(2047 * 512 + 1), [BOOT])


@given(st.integers(0, 2**31), st.integers(1, 2**40))
def test_partitions_follow_one_another_in_whole_mebibytes_and_hold_what_they_should(
    files: int, root: int
) -> None:
    boot, system = layout(files, root)
    assert (boot.kind, boot.active, boot.first) == (0xEF, True, 2048)
    assert boot.sectors * 512 >= files + 2**23
    assert system.first == boot.first + boot.sectors
    assert system.first % 2048 == 0
    assert 0 <= system.sectors * 512 - root < 512


@given(WORDS)
def test_kernel_gets_the_words_of_its_command_line(words: list[str]) -> None:
    lines = grub_config("6.12", " ".join(words)).splitlines()
    [line] = [line for line in lines if line.startswith("linux")]
    assert shlex.split(line)[2:] == words
    assert lines.index(line) < lines.index("initrd$protocol /initramfs") < lines.index("boot")


@pytest.mark.parametrize("wrong", ["a'b", 'a="b c"', "a\\b", "a\nb", "a\tb", "ä", "\0"])
def test_what_grub_would_change_is_refused(wrong: str) -> None:
    with pytest.raises(ScenarioError, match="GRUB would change it") as caught:
        grub_config("6.12", f"quiet {wrong}")
    assert caught.value.reason == "guest-cmdline"


def test_command_line_must_fit_with_what_grub_puts_before_it() -> None:
    room = 2047 - len("BOOT_IMAGE=/vmlinuz ")
    assert "x" * room in grub_config("6.12", "x" * room)
    with pytest.raises(ScenarioError, match="too long: 2028 characters"):
        grub_config("6.12", "x" * (room + 1))


def test_keys_are_an_archive_in_whole_sectors() -> None:
    keys = RunKeys.make()
    disk = keys_disk(keys)
    assert len(disk) % 512 == 0
    end = disk.index(b"TRAILER!!!\0") + 11
    end += -end % 4
    assert not any(disk[end:])
    files = {e.name: e.content for e in unpacked(disk[:end]) if e.content}
    assert files == keys.for_guest()
