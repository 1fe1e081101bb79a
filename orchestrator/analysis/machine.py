"""A machine's answers about itself (guests/agents/checkup.py), read for the doctor. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.abi import chosen
from orchestrator.analysis.hist import parse_hist
from orchestrator.errors import EvidenceError

LOCKDOWN = "/sys/kernel/security/lockdown"
_CAP_SUPERPAGES = {"2MiB": 1 << 34, "1GiB": 1 << 35}
"""SLLPS of a VT-d unit's CAP_REG (Intel VT-d specification, 11.4.2)."""


@dataclass(frozen=True)
class Bar:
    """A memory BAR of a PCI function."""

    address: str
    index: int
    size: int
    """Bytes."""
    placed: bool
    driver: str
    """Driver of the function, empty without one."""
    growable: int
    """Largest size in bytes that it can be given (Resizable BAR); 0: its size is fixed."""
    refused: tuple[str, ...]
    """Why the machine cannot spare the function; empty if nothing is known to be in the way."""


@dataclass(frozen=True)
class Superpages:
    """Abilities of one VT-d unit's page tables."""

    unit: str
    path: str
    register: str
    sizes: tuple[str, ...]
    """Sizes that its leaves can have, of 2MiB and 1GiB."""
    address_bits: int
    """MGAW: width of the addresses that it translates."""


class Machine:
    """A machine by its evidence, `raw`. Anything that is missing there counts as absent."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.files: dict[str, str] = dict(raw.get("files") or {})
        self.groups: dict[str, list[str]] = dict(raw.get("groups") or {})
        self.iommus: list[str] = list(raw.get("iommus") or [])
        self.root = raw.get("uid") == 0
        self.bars = tuple(
            Bar(**{**bar, "refused": tuple(bar["refused"])}) for bar in raw.get("bars") or []
        )

    @property
    def has_kvm(self) -> bool:
        """True if a guest ran under KVM; False if nobody tried."""
        return "kvm" in self.raw and self.raw["kvm"] is None

    def file(self, path: str) -> str | None:
        """Return a file's text, stripped of white space; None if it is absent or cannot be
        read."""
        text = self.files.get(path)
        return None if text is None else text.strip()

    def chosen(self, path: str) -> str | None:
        """Return the word in brackets of a file like `always [madvise] never`."""
        text = self.file(path)
        return None if text is None else chosen(text)

    def said(self, path: str) -> str:
        """Return a file as evidence: `file: content`, on one line."""
        text = self.file(path)
        why = (self.raw.get("unreadable") or {}).get(path, "no such file")
        return f"{path}: {why if text is None else ' '.join(text.split()) or 'empty'}"

    def present(self, path: str) -> bool:
        return bool((self.raw.get("present") or {}).get(path)) or path in self.files

    def access(self, path: str) -> bool:
        """True if this user may read and write the file."""
        return bool((self.raw.get("access") or {}).get(path))

    def program(self, *names: str) -> str | None:
        """Return the path of the first of these programs that is there."""
        there = self.raw.get("programs") or {}
        return next((there[name]["path"] for name in names if there.get(name)), None)

    def version(self, *names: str) -> tuple[tuple[int, ...], str] | None:
        """Return version numbers and version line of the first of these programs that prints
        one."""
        there = self.raw.get("programs") or {}
        for name in names:
            line = (there.get(name) or {}).get("version", "")
            if (match := re.search(r"\d+(?:\.\d+)+", line)) is not None:
                return tuple(map(int, match[0].split("."))), line
        return None

    def cpu(self, field: str) -> str:
        match = re.search(rf"(?m)^{re.escape(field)}\s*:[ \t]*(.*)$", self.cpuinfo)
        return match[1] if match else ""

    @property
    def cpuinfo(self) -> str:
        return self.files.get("/proc/cpuinfo", "")

    @property
    def flags(self) -> frozenset[str]:
        return frozenset(self.cpu("flags").split())

    @property
    def lockdown(self) -> str:
        """none, integrity or confidentiality (lockdown(7))."""
        return self.chosen(LOCKDOWN) or "none"

    @property
    def is_guest(self) -> bool:
        """True if the machine is itself virtual: CPUID says so (X86_FEATURE_HYPERVISOR)."""
        return "hypervisor" in self.flags

    @property
    def intel(self) -> bool:
        return self.cpu("vendor_id") != "AuthenticAMD"

    @property
    def physical_bits(self) -> int | None:
        match = re.match(r"(\d+) bits physical", self.cpu("address sizes"))
        return int(match[1]) if match else None

    @property
    def words(self) -> list[str]:
        """Words of the kernel's command line."""
        return (self.file("/proc/cmdline") or "").split()

    def options(self, name: str) -> list[str]:
        """Return the options of all words `name=ONE,OTHER` on the command line."""
        given = [word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")]
        return [option for text in given for option in text.split(",")]

    @property
    def memory_available(self) -> int | None:
        match = re.search(r"(?m)^MemAvailable:\s+(\d+) kB", self.files.get("/proc/meminfo", ""))
        return int(match[1]) * 1024 if match else None

    @property
    def superpages(self) -> tuple[Superpages, ...]:
        """Superpages of each VT-d unit that is on."""
        found = []
        for unit in self.iommus:
            path = f"/sys/class/iommu/{unit}/intel-iommu/cap"
            try:
                register = int(self.file(path) or "", 16)
            except ValueError:
                continue
            sizes = tuple(s for s, bit in _CAP_SUPERPAGES.items() if register & bit)
            bits = (register >> 16 & 0x3F) + 1  # MGAW, bits 21:16
            found.append(Superpages(unit, path, f"{register:x}", sizes, bits))
        return tuple(found)

    @property
    def unread(self) -> tuple[str, ...]:
        """Evidence: what could not be searched for functions, and why."""
        return tuple(f"{path}: {why}" for path, why in (self.raw.get("unread") or {}).items())

    @property
    def remaps_interrupts(self) -> bool:
        """True if interrupts are remapped: /proc/interrupts names an interrupt chip IR-*, which is
        one behind a remapping unit."""
        return any(chip.startswith("IR-") for chip in self.raw.get("interrupts") or [])

    @property
    def tracefs(self) -> tuple[str, ...]:
        """Mount points of tracefs."""
        mounts = (line.split() for line in self.files.get("/proc/self/mounts", "").splitlines())
        return tuple(m[1] for m in mounts if len(m) > 2 and m[2] == "tracefs")

    @property
    def governors(self) -> dict[str, str]:
        """Governor of each CPU, by the path of its file."""
        return {p: t.strip() for p, t in self.files.items() if p.endswith("/scaling_governor")}

    @property
    def has_series(self) -> bool | None:
        """True if the kernel has "vfio: Improve DMA mapping performance for huge pfnmaps" (v6.15),
        by its types: follow_pfnmap_start() gives a mask, and vaddr_get_pfns() fills a batch. None
        if the types cannot be read, or if only those of the module cannot."""
        types = self.raw.get("types") or {}
        if not types:
            return None
        if "addr_mask" not in (types.get("members") or []):
            return False
        parameters = types.get("parameters")
        if parameters is None:
            return None
        return any(kind == "vfio_batch" for _, kind in parameters)

    @property
    def lookups(self) -> int | None:
        """Number of page lookups in the map that the doctor's probe made. None if it made none, or
        if the histogram is not complete."""
        try:
            return parse_hist(str((self.raw.get("probe") or {}).get("lookups", ""))).hits or None
        except EvidenceError:
            return None

    @property
    def has_pfnmaps(self) -> bool:
        """True if the kernel has the struct that came with huge pfnmaps (v6.12)."""
        return bool((self.raw.get("types") or {}).get("members"))
