"""The cache of saved hosts: hosts that were booted and proven once, to be restored.

A saved host has no devices, no keys and no connection yet, and none of VFIO's modules. So one
serves both arms of a module series, and BARs of every size. It is found by the content of all that
its boot depends on. The content of each module that was loaded when it was saved is compared as
well, because a disk of modules is an arm's own.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.base.cache import Cache, Draft, recorded_sha256
from orchestrator.base.errors import BenchError
from orchestrator.base.hashing import sha256_file
from orchestrator.base.reasons import Reason
from orchestrator.formats.units import GIB
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.vm.domain import Disk, HostDomain, host_xml
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.machines import EmulatedDevice, NestedHost

_KIND = "hosts"
_SCHEMA = 1
_KEPT_SECONDS = 14 * 24 * 3600.0
_MOST_BYTES = 2 * GIB
"""A saved host of 4 GiB takes about 200 MiB: QEMU leaves out pages that are all zero."""
_FACTS, _MEMORY, _CONSOLE = "host.json", "state", "console.log"
_MOST_RESERVED = 64 * GIB
_TOKEN = re.compile(r"(?<=barometer\.token=)\S+")


@dataclass(frozen=True)
class SavedHost:
    place: Path
    """Its entry in the cache."""
    token: str
    """Token on its kernel's command line."""
    boot_id: str
    booted: str
    """Time of its boot, as ISO 8601 with its zone."""
    modules: Path
    """Disk of modules that is mounted in it."""
    modules_sha256: str
    loaded: Mapping[str, str]
    """Modules that are loaded in it: name -> sha256 of the file."""

    @property
    def digest(self) -> str:
        return self.place.name

    @property
    def memory(self) -> Path:
        """QEMU's state."""
        return self.place / _MEMORY

    @property
    def console(self) -> Path:
        """What the host printed until it was saved."""
        return self.place / _CONSOLE


@dataclass(frozen=True)
class SavedFiles:
    """The files of a host that is being saved. Only their user can read them."""

    draft: Draft

    @property
    def memory(self) -> Path:
        """Place for QEMU's state."""
        return self.draft.folder / _MEMORY

    def add_console(self, content: bytes) -> None:
        """Add what the host has printed. Raises OSError."""
        self._write(_CONSOLE, content)

    def _write(self, name: str, content: bytes) -> None:
        path = self.draft.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)

    def keep(self, *, token: str, boot_id: str, modules: Path, loaded: Mapping[str, str]) -> None:
        """Make it a saved host. Raises BenchError if the disk is full."""
        facts = {
            "token": token, "boot_id": boot_id,
            "booted": datetime.now(UTC).isoformat(timespec="seconds"),
            "modules": str(modules), "modules_sha256": recorded_sha256(modules),
            "loaded": dict(loaded),
        }  # fmt: skip
        try:
            self._write(_FACTS, json.dumps(facts, indent=1).encode())
            self.draft.keep()
        except OSError as exc:
            raise BenchError(f"{self.draft.place}: {exc}", reason=Reason.OS_ERROR) from exc


class SavedHosts:
    """The saved hosts of this user, for the QEMU and the CPU of this machine."""

    def __init__(self, cache: Cache, libvirt: Connection) -> None:
        self._cache, self._libvirt = cache, libvirt

    @cached_property
    def _runner(self) -> dict[str, Any]:
        """What of this machine a boot depends on."""
        return {"versions": self._libvirt.version(), "qemu": _read_qemu(), "cpu": _read_cpu()}

    def find(self, domain: HostDomain, kernel: KernelBundle) -> SavedHost | None:
        """Return a saved host that a boot of `domain` with this kernel would lead to; None if
        there is none, or if it cannot be proven to be the same."""
        place = self._cache.find(_KIND, self._key(domain))
        if place is None:
            return None
        try:
            facts = json.loads((place / _FACTS).read_text())
            saved = SavedHost(place, **{**facts, "modules": Path(facts["modules"])})
            is_same = (
                recorded_sha256(saved.modules) == saved.modules_sha256
                and digest_modules(kernel, saved.loaded) == saved.loaded
            )
        except (OSError, ValueError, KeyError, TypeError):  # a disk was removed from the cache
            return None
        return saved if is_same else None

    @contextlib.contextmanager
    def saving(self, domain: HostDomain) -> Iterator[SavedFiles | None]:
        """Yield files for a host that may be saved. Yield None if it is saved already, if another
        run saves it, or if the disk may not have room for it."""
        if shutil.disk_usage(self._cache.folder(_KIND)).free < domain.memory:
            yield None
            return
        with self._cache.draft(_KIND, self._key(domain)) as draft:
            yield None if draft is None else SavedFiles(draft)
        self._cache.evict(_KIND, _KEPT_SECONDS, _MOST_BYTES)

    def remove(self, saved: SavedHost) -> None:
        self._cache.remove(saved.place)

    def _key(self, domain: HostDomain) -> dict[str, Any]:
        return {"schema": _SCHEMA, "domain": host_xml(_by_content(domain)), **self._runner}


def reserve_space(host: NestedHost, device: EmulatedDevice) -> int:
    """Return the bytes of address space to reserve for each device: enough for most BARs, so that
    a saved host serves them all, if the window for 64-bit BARs has room for it."""
    window = 2**host.phys_bits // 4
    most = _MOST_RESERVED if 2 * device.count * _MOST_RESERVED <= window else 0
    return max(most, device.bar)


def _by_content(domain: HostDomain) -> HostDomain:
    """Return the domain without what differs between two boots of the same host, and with digests
    in place of paths."""
    kernel, initramfs = domain.kernel, domain.initramfs
    return replace(
        domain, name="host", uuid="", console=Path("console"), restored=False, bar=0,
        shm_names=("",) * len(domain.shm_names),
        cmdline=_TOKEN.sub("", domain.cmdline),
        kernel=Path(recorded_sha256(kernel)),
        initramfs=None if initramfs is None else Path(recorded_sha256(initramfs)),
        disks=tuple(
            Disk(Path("" if disk.serial == "modules" else recorded_sha256(disk.path)), disk.serial)
            for disk in domain.disks
        ),
    )  # fmt: skip


def digest_modules(kernel: KernelBundle, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each module's file. A module without a file is left out."""
    files = {name: kernel.module_file(name) for name in names}
    return {name: sha256_file(file) for name, file in files.items() if file is not None}


def _read_qemu() -> list[str]:
    """Identify the emulator's file: a rebuilt QEMU may have the same version."""
    path = Path(shutil.which("qemu-system-x86_64") or "/usr/libexec/qemu-kvm")
    stat = path.stat()
    return [str(path), str(stat.st_size), str(stat.st_mtime_ns)]


def _read_cpu() -> str:
    """Return what /proc/cpuinfo says of the CPU's model and its features."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    kept = ("vendor_id", "cpu family", "model", "stepping", "flags", "bugs")
    return "\n".join(line for line in lines if line.startswith(kept))
