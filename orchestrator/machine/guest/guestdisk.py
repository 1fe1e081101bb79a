"""The disk of a guest that boots as real machines do: firmware, GRUB, kernel, initramfs, systemd.

One raw image for BIOS and UEFI, built without root and without loop devices:

sector 0            GRUB's boot code, and a partition table (MBR; OVMF reads it as well as GPT)
sectors 1 to 2047   GRUB's core image, which the boot code loads
partition 1         FAT: EFI/BOOT/BOOTX64.EFI, grub/grub.cfg, vmlinuz, initramfs
partition 2         ext4: the root file system, mounted read-only

A run's keys come on a second disk (`keys_disk`), so that the first can be cached by content.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.process import run
from orchestrator.base.reasons import Reason
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.runner.cpio import pack_files
from orchestrator.machine.runner.images import (
    initramfs,
    parse_packages,
    read_recipe,
    root_disk,
    unpack_packages,
)
from orchestrator.machine.transport.keys import RunKeys

SYSTEM_SERIAL, KEYS_SERIAL = "system", "keys"
"""Serials of the guest's virtio disks, by which its initramfs finds them."""
_SECTOR, _MIB = 512, 2**20
_FIRST = _MIB // _SECTOR
"""First sector of the first partition; GRUB's core image has the sectors before it."""
# Partition types. UEFI looks for its boot loader in a partition of the first type.
_EFI, _LINUX = 0xEF, 0x83
_BOOT_CODE = 440
"""Number of bytes at the start of an MBR that hold its boot code."""
_CMDLINE_SIZE = 2048
"""COMMAND_LINE_SIZE of Linux on x86, with the closing zero."""
_GRUB_MODULES = (
    "part_msdos", "fat", "normal", "test", "echo", "serial", "terminal", "halt",
)  # fmt: skip


@dataclass(frozen=True)
class GuestDisk:
    path: Path
    """The raw image; to be attached read-only, with the serial "system"."""
    packages: dict[str, str]
    """Every package of the root file system and of the boot loader, and its version."""


@dataclass(frozen=True)
class Partition:
    kind: int
    first: int
    """First sector."""
    sectors: int
    active: bool = False


def guest_disk(kernel: KernelBundle, cmdline: str, cache: Cache) -> GuestDisk:
    """Return a disk that boots `kernel` with `cmdline`; build what is not cached.

    Raises BenchError if a build fails, ScenarioError if the kernel lacks a module that the guest
    needs or GRUB cannot pass `cmdline` on."""
    recipe = read_recipe("disk")
    config = grub_config(kernel.release, cmdline)
    root = root_disk("disk", recipe, cache)
    start = initramfs("disk", recipe, kernel, cache)
    tools = unpack_packages(
        recipe["suites"], recipe["boot"]["packages"], recipe["boot"]["files"], cache
    )
    key = {
        "kind": "guest-disk", "schema": 1, "kernel": kernel.digest, "config": config,
        "root": root.name, "initramfs": start.parent.name, "tools": tools.name,
    }  # fmt: skip

    def build(folder: Path) -> None:
        files = folder / "files"
        for place in ("EFI/BOOT", "grub"):
            (files / place).mkdir(parents=True)
        (files / "grub/grub.cfg").write_text(config)
        (files / "vmlinuz").symlink_to(kernel.vmlinuz)
        (files / "initramfs").symlink_to(start)
        _grub_image(tools, "x86_64-efi", "/grub", files / "EFI/BOOT/BOOTX64.EFI", "linux")
        _grub_image(tools, "i386-pc", "(,msdos1)/grub", folder / "core.img", "biosdisk", "linux16")
        _assemble(folder / "disk.raw", files, tools, folder / "core.img", root / "root.ext4")
        shutil.rmtree(files)
        (folder / "core.img").unlink()

    return GuestDisk(
        path=cache.entry("images", key, build) / "disk.raw",
        packages=parse_packages(tools / "packages.txt") | parse_packages(root / "packages.txt"),
    )


def keys_disk(keys: RunKeys) -> bytes:
    """Return a raw disk with the run's keys, a cpio archive in whole sectors. It is attached with
    the serial "keys"."""
    archive = pack_files(keys.for_guest())
    return archive + b"\0" * (-len(archive) % _SECTOR)


def grub_config(release: str, cmdline: str) -> str:
    """Return a grub.cfg that boots at once, and halts the machine if it cannot.

    Raises ScenarioError if GRUB would change `cmdline`, or if it is too long for Linux."""
    if wrong := re.search(r"[^ -~]|['\"\\]", cmdline):
        raise ScenarioError(
            f"the guest's kernel command line cannot have {wrong[0]!r}: GRUB would change it",
            reason=Reason.GUEST_CMDLINE,
        )
    words = ["BOOT_IMAGE=/vmlinuz", *cmdline.split()]  # GRUB adds the first by itself
    if len(" ".join(words)) >= _CMDLINE_SIZE:
        raise ScenarioError(
            f"the guest's kernel command line is too long: {len(cmdline)} characters, and Linux"
            f" takes {_CMDLINE_SIZE - 1} with GRUB's {words[0]}",
            reason=Reason.GUEST_CMDLINE,
        )
    quoted = " ".join(f"'{word}'" for word in words[1:])
    return (
        "serial --unit=0 --speed=115200\n"
        "terminal_output serial\n"
        f"echo 'barometer: boot loader, Linux {release}'\n"
        # on a BIOS "linux" would move 60 MiB byte by byte before it boots: seconds if emulated
        "if [ $grub_platform = pc ]; then set protocol=16; fi\n"
        f"linux$protocol /vmlinuz {quoted}\n"
        "initrd$protocol /initramfs\n"
        "boot\n"
        "echo 'barometer: boot loader: there is nothing to boot'\n"
        "halt\n"
    )


def layout(files: int, root: int) -> tuple[Partition, Partition]:
    """Return the boot partition, with room for `files` bytes, and the root partition of `root`
    bytes."""
    boot = Partition(_EFI, _FIRST, (files * 5 // 4 // _MIB + 16) * _FIRST, active=True)
    return boot, Partition(_LINUX, boot.first + boot.sectors, -(-root // _SECTOR))


def boot_area(code: bytes, core: bytes, partitions: Sequence[Partition]) -> bytes:
    """Return the bytes before the first partition: the MBR, whose program is the first 440 bytes
    of `code`, and GRUB's core image. Raises BenchError if they are too many."""
    table = b"".join(
        # these CHS addresses mean "beyond the reach of CHS": a reader must use the sector numbers
        struct.pack("<B3sB3sII", 0x80 * p.active, b"\xfe\xff\xff", p.kind, b"\xfe\xff\xff",
                    p.first, p.sectors)
        for p in partitions
    )  # fmt: skip
    record = code[:_BOOT_CODE].ljust(_BOOT_CODE + 6, b"\0") + table.ljust(64, b"\0") + b"\x55\xaa"
    if len(record) + len(core) > _FIRST * _SECTOR:
        raise BenchError(
            f"GRUB's core image has {len(core)} bytes: too many before sector {_FIRST}",
            reason=Reason.BOOT_LOADER_SIZE,
        )
    return record + core


def _assemble(disk: Path, files: Path, tools: Path, core: Path, root: Path) -> None:
    code = (tools / "files/usr/lib/grub/i386-pc/boot.img").read_bytes()
    boot, system = layout(sum(p.stat().st_size for p in files.rglob("*")), root.stat().st_size)
    with disk.open("wb") as file:
        file.write(boot_area(code, core.read_bytes(), [boot, system]))
        file.truncate((system.first + system.sectors) * _SECTOR)
    # --invariant: no random number; -s: large clusters, because a boot loader reads one at a time
    _run_tool(tools, "usr/sbin/mkfs.fat", "--invariant", "-s", "64", "--offset", str(_FIRST),
              disk, str(boot.sectors * _SECTOR // 1024))  # fmt: skip
    _run_tool(tools, "usr/bin/mtools", "-c", "mcopy", "-s", "-i", f"{disk}@@{_MIB}",
              *sorted(files.iterdir()), "::")  # fmt: skip
    run(["dd", f"if={root}", f"of={disk}", f"bs={_MIB}", f"seek={system.first // _FIRST}",
         "conv=sparse,notrunc", "status=none"], doing="filling the guest's disk")  # fmt: skip


def _grub_image(tools: Path, platform: str, prefix: str, output: Path, *extra: str) -> None:
    """Build GRUB as one file, which reads PREFIX/grub.cfg of the disk that it was started from."""
    _run_tool(
        tools, "usr/bin/grub-mkimage", "--directory", tools / "files/usr/lib/grub" / platform,
        "--format", platform, "--prefix", prefix, "--output", output, *_GRUB_MODULES, *extra,
    )  # fmt: skip


def _run_tool(tools: Path, program: str, *arguments: str | Path) -> None:
    """Run a program of unpacked packages, with its own libraries: the runner's may be older."""
    libraries = tools / "files/usr/lib/x86_64-linux-gnu"
    run(
        [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries,
         tools / "files" / program, *arguments],
        doing="making the guest's disk", env={"LC_ALL": "C.UTF-8", "MTOOLSRC": "/dev/null"},
    )  # fmt: skip
