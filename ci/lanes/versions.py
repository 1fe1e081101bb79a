"""Digest the parts of the tests' machines that are not in the repository: the runner's QEMU, the
packages in images, Debian's current kernels.

Images come from the cache, and are built if they are not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from orchestrator.base.cache import Cache
from orchestrator.base.process import run
from orchestrator.kernels.debian.package import resolve_version
from orchestrator.kernels.source.buildroot import build_root
from orchestrator.machine.runner.images import read_recipe, root_disk, unpack_packages
from orchestrator.scenario.kernel_forms import DebKernel
from tests.lab.machine.disk import machine_disk

_RUNNER = ("qemu-system-x86", "libvirt-daemon-driver-qemu")
_KERNEL = "linux-image-cloud-amd64"
_SUITES = ("trixie", "trixie-backports", "bookworm")


def _list_qemu(_: Cache) -> str:
    return run(["dpkg-query", "-W", *_RUNNER], doing="asking for the runner's QEMU").stdout


def _list_guest(cache: Cache) -> str:
    recipe = read_recipe("guest")
    tree = unpack_packages(recipe["suites"], recipe["packages"], recipe["files"], cache)
    return (tree / "packages.txt").read_text()


def _list_disk(cache: Cache) -> str:
    recipe = read_recipe("disk")
    boot = recipe["boot"]
    loader = unpack_packages(recipe["suites"], boot["packages"], boot["files"], cache)
    root = root_disk("disk", recipe, cache)
    return "".join((place / "packages.txt").read_text() for place in (root, loader))


def _list_kernels(cache: Cache) -> str:
    kernels = [DebKernel(deb=_KERNEL, suite=suite) for suite in _SUITES]
    return "".join(f"{kernel} {resolve_version(kernel, cache)[0]}\n" for kernel in kernels)


VERSIONS: Mapping[str, Callable[[Cache], str]] = {
    "qemu": _list_qemu,
    "kernels": _list_kernels,
    "host": lambda cache: (
        root_disk("host", read_recipe("host"), cache) / "packages.txt"
    ).read_text(),
    "guest": _list_guest,
    "disk": _list_disk,
    "build": lambda cache: "".join(f"{k} {v}\n" for k, v in build_root(cache).packages.items()),
    "machine": lambda cache: (machine_disk(cache) / "packages.txt").read_text(),
    "machine-uefi": lambda cache: (
        machine_disk(cache, "systemd-boot") / "packages.txt"
    ).read_text(),
}


def digest_versions(names: Sequence[str], cache: Cache) -> str:
    """Return one digest of the versions that `names` stand for. Raises BenchError and
    ScenarioError if one can be neither found nor built."""
    text = "".join(f"{name}\n{VERSIONS[name](cache)}" for name in names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
