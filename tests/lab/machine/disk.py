"""The disk of the stand-in metal machine: built once, cached by content.

It is one raw image. One ext4 partition with a journal holds everything, /boot too. Before it is
the boot loader. For BIOS that is GRUB's boot code and its core image. For UEFI it is an EFI
system partition with systemd-boot, the machine's kernel and its entry, laid out as
kernel-install(8) does.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any, Literal

from orchestrator.base.cache import Cache
from orchestrator.base.hashing import sha256_file
from orchestrator.base.process import run
from orchestrator.kernels.debian.apt import source_lines
from orchestrator.kernels.debian.bootstrap import debian_tar
from orchestrator.machine.guest.guestdisk import Partition, boot_area
from orchestrator.machine.runner.images import disk_from_tar, tree_digest

Loader = Literal["grub", "systemd-boot"]
HERE = Path(__file__).parent
_LINUX = 0x83
_FIRST = 2048
"""Sector of the first partition."""
_SECTOR = 512
_GRUB = "./boot/grub/i386-pc"
FIRMWARE = ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd")
"""Firmware of a UEFI machine: the program, and its variables with factory settings."""


def machine_disk(cache: Cache, loader: Loader = "grub") -> Path:
    """Return a folder with disk.raw, to be copied for each machine, and the firmware of a UEFI
    machine. Raises BenchError if a build fails."""
    recipe = tomllib.loads((HERE / "recipe.toml").read_text())
    uefi = recipe.pop("systemd-boot")
    rootfs, customize = HERE / "rootfs", HERE / "customize.sh"
    uuid, size = recipe["disk"]["uuid"], recipe["disk"]["size"]
    hooks = [f'{shlex.join([str(customize), str(rootfs)])} "$1" {uuid}']
    key = {
        "kind": "metal-machine", "schema": 1, "recipe": recipe, "rootfs": tree_digest(rootfs),
        "customize": sha256_file(customize), "mirror": source_lines(tuple(recipe["suites"])),
    }  # fmt: skip
    if loader == "systemd-boot":
        recipe["packages"] += uefi["packages"]
        rootfs = HERE / "rootfs-uefi"
        hooks.append('rm -r "$1/boot/grub" && mkdir "$1/boot/efi"')
        key |= {"kind": "metal-machine-uefi", "uefi": uefi, "rootfs-uefi": tree_digest(rootfs)}

    def build(folder: Path) -> None:
        tar, system = folder / "root.tar", folder / "root.ext4"
        packages = debian_tar(tar, recipe, doing="building the stand-in machine", hooks=hooks)
        (folder / "packages.txt").write_text(packages)
        disk_from_tar(tar, rootfs, system)
        run(["tune2fs", "-O", "has_journal", "-U", uuid, system], doing="adding a journal")
        run(["resize2fs", system, size], doing="enlarging the file system")
        if loader == "grub":
            _assemble(folder / "disk.raw", tar, system)
        else:
            for name in FIRMWARE:
                (folder / name).write_bytes(_content(tar, f"./usr/share/OVMF/{name}"))
            _assemble_uefi(folder / "disk.raw", tar, system, uefi)
        tar.unlink()
        system.unlink()

    return cache.entry("images", key, build)


def _assemble(disk: Path, tar: Path, system: Path) -> None:
    code, core = (_content(tar, f"{_GRUB}/{name}") for name in ("boot.img", "core.img"))
    partition = Partition(_LINUX, _FIRST, system.stat().st_size // _SECTOR, active=True)
    disk.write_bytes(boot_area(code, core, [partition]))
    _fill(disk, system, _FIRST)


def _assemble_uefi(disk: Path, tar: Path, system: Path, uefi: dict[str, Any]) -> None:
    esp, own = uefi["esp_sectors"], _FIRST + uefi["esp_sectors"]
    _fill(disk, system, own)
    with disk.open("r+b") as file:  # the backup GPT is at the end
        file.truncate(disk.stat().st_size + (1 << 20))
    table = (
        "label: gpt\n"
        f"start={_FIRST}, size={esp}, type=uefi\n"
        f"start={own}, size={system.stat().st_size // _SECTOR}, type=linux\n"
    )
    run(["sfdisk", "--quiet", disk], stdin=table, doing="partitioning the machine's disk")
    place = f"{disk}@@{_FIRST * _SECTOR}"
    run(["mformat", "-i", place, "-F", "-T", str(esp), "-N", uefi["esp_serial"], "::"],
        doing="making the EFI system partition")  # fmt: skip
    files = disk.parent / "esp"
    _fill_esp(files, tar, uefi["cmdline"])
    run(["mcopy", "-s", "-i", place, *sorted(files.iterdir()), "::"],
        doing="filling the EFI system partition")  # fmt: skip
    shutil.rmtree(files)


def _fill_esp(files: Path, tar: Path, cmdline: str) -> None:
    """Write what bootctl(1) and kernel-install(8) would put there."""
    machine = (HERE / "rootfs/etc/machine-id").read_text().strip()
    listed = subprocess.run(["tar", "--list", "--file", tar, "--wildcards", "./boot/vmlinuz-*"],
                            check=True, capture_output=True, text=True)  # fmt: skip
    release = listed.stdout.strip().partition("vmlinuz-")[2]
    loader = _content(tar, "./usr/lib/systemd/boot/efi/systemd-bootx64.efi")
    entry = (
        f"title      Debian GNU/Linux 13 (trixie)\nversion    {release}\n"
        f"machine-id {machine}\nsort-key   debian\noptions    {cmdline}\n"
        f"linux      /{machine}/{release}/linux\n"
        f"initrd     /{machine}/{release}/initrd.img-{release}\n"
    )
    for name, content in {
        "EFI/BOOT/BOOTX64.EFI": loader,
        "EFI/systemd/systemd-bootx64.efi": loader,
        "loader/loader.conf": b"timeout 0\n",
        "loader/entries.srel": b"type1\n",
        f"loader/entries/{machine}-{release}.conf": entry.encode(),
        f"{machine}/{release}/linux": _content(tar, f"./boot/vmlinuz-{release}"),
        f"{machine}/{release}/initrd.img-{release}": _content(tar, f"./boot/initrd.img-{release}"),
    }.items():
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_bytes(content)


def _fill(disk: Path, system: Path, first: int) -> None:
    """Write the file system from sector `first` to the disk's end."""
    run(["dd", f"if={system}", f"of={disk}", "bs=1M", f"seek={first * _SECTOR >> 20}",
         "conv=sparse,notrunc", "status=none"], doing="filling the machine's disk")  # fmt: skip
    with disk.open("r+b") as file:  # dd left out the last blocks, which are zero
        file.truncate(first * _SECTOR + system.stat().st_size)


def _content(tar: Path, name: str) -> bytes:
    return subprocess.run(
        ["tar", "--extract", "--to-stdout", "--file", tar, name], check=True, capture_output=True
    ).stdout
