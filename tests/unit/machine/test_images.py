"""Kernel modules as images have them: unpacked."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.runner.images import read_bundle_module, tree_digest

ELF = b"\x7fELF\r\n\xff" * 1000


def kernel(modules: Path) -> KernelBundle:
    return KernelBundle("7.0.0", modules / "vmlinuz", modules, config=None, digest="")


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.ko", ELF), ("x.ko.xz", lzma.compress(ELF)), ("x.ko.gz", gzip.compress(ELF, mtime=0))],
)
def test_module_is_unpacked_byte_by_byte(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_bundle_module(kernel(tmp_path), name) == ELF


@pytest.mark.parametrize("name", ["x.ko.xz", "x.ko.gz", "x.ko.bz3", "missing.ko.xz"])
def test_module_that_cannot_be_unpacked_is_named(tmp_path: Path, name: str) -> None:
    if name.startswith("x"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(BenchError, match=name) as caught:
        read_bundle_module(kernel(tmp_path), name)
    assert caught.value.reason == "kernel-modules"


def test_byte_code_that_another_process_writes_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text("1")
    digest = tree_digest(tmp_path)
    cached = tmp_path / "__pycache__"
    cached.mkdir()
    (cached / "agent.cpython-311.pyc.1404").symlink_to(tmp_path / "renamed-meanwhile")
    assert tree_digest(tmp_path) == digest
    (tmp_path / "agent.py").write_text("2")
    assert tree_digest(tmp_path) != digest
