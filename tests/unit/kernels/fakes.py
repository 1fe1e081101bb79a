"""Fake kernels that look like real ones from outside."""

from __future__ import annotations

import struct
from pathlib import Path


def bzimage(release: str, extra: str = " (builder@host) #1 SMP") -> bytes:
    """Return the parts of an x86 boot header that identify a kernel
    (Documentation/arch/x86/boot.rst)."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x400 - 0x200)
    text = f"{release}{extra}".encode() + b"\0"
    head[0x400 : 0x400 + len(text)] = text
    return bytes(head)


def folder_kernel(folder: Path, release: str = "7.0.0-test") -> Path:
    """Fill a folder with an image and its modules."""
    modules = folder / "lib/modules" / release
    (modules / "kernel/fs").mkdir(parents=True)
    (modules / "kernel/fs/ext4.ko").write_bytes(b"not really")
    (modules / "modules.builtin").write_text("kernel/drivers/block/virtio_blk.ko\n")
    (modules / "modules.order").write_text("kernel/fs/ext4.ko\n")
    (folder / "vmlinuz").write_bytes(bzimage(release))
    return folder
