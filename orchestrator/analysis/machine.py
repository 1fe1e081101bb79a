"""What a machine said of itself (guests/agents/checkup.py), read for the doctor. Pure."""

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
    """Of the function, empty without one."""
    growable: int
    """Bytes that it can at most be made to have (Resizable BAR); 0: its size is fixed."""
    refused: tuple[str, ...]
    """Why the machine cannot spare the function; empty where nothing is known to be in the way."""


@dataclass(frozen=True)
class Superpages:
    """What one VT-d unit's page tables can have."""

    unit: str
    path: str
    register: str
    sizes: tuple[str, ...]
    """Of 2MiB and 1GiB."""
    address_bits: int
    """MGAW: how wide the addresses are that it translates."""


class Machine:
    """`raw`: the document of evidence; what is missing from it reads as not there."""

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
        """A guest ran under it; not, where nobody tried."""
        return "kvm" in self.raw and self.raw["kvm"] is None

    def file(self, path: str) -> str | None:
        """Its text without what surrounds it; None where it is not there or cannot be read."""
        text = self.files.get(path)
        return None if text is None else text.strip()

    def chosen(self, path: str) -> str | None:
        """Of `always [madvise] never` the word in brackets."""
        text = self.file(path)
        return None if text is None else chosen(text)

    def said(self, path: str) -> str:
        """Evidence: `file: content`, on one line."""
        text = self.file(path)
        why = (self.raw.get("unreadable") or {}).get(path, "no such file")
        return f"{path}: {why if text is None else ' '.join(text.split()) or 'empty'}"

    def present(self, path: str) -> bool:
        return bool((self.raw.get("present") or {}).get(path)) or path in self.files

    def access(self, path: str) -> bool:
        """This user may read and write it."""
        return bool((self.raw.get("access") or {}).get(path))

    def program(self, *names: str) -> str | None:
        """The path of the first of these that is there."""
        there = self.raw.get("programs") or {}
        return next((there[name]["path"] for name in names if there.get(name)), None)

    def version(self, *names: str) -> tuple[tuple[int, ...], str] | None:
        """Of the first of these that says one: its numbers, and its line."""
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
        """It is itself a virtual machine: CPUID says so (X86_FEATURE_HYPERVISOR)."""
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
        """Of the kernel's command line."""
        return (self.file("/proc/cmdline") or "").split()

    def options(self, name: str) -> list[str]:
        """Of `name=ONE,OTHER` on the command line, given once or more."""
        given = [word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")]
        return [option for text in given for option in text.split(",")]

    @property
    def memory_available(self) -> int | None:
        match = re.search(r"(?m)^MemAvailable:\s+(\d+) kB", self.files.get("/proc/meminfo", ""))
        return int(match[1]) * 1024 if match else None

    @property
    def superpages(self) -> tuple[Superpages, ...]:
        """Of each VT-d unit that is on."""
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
        """What could not be looked into for functions: evidence."""
        return tuple(f"{path}: {why}" for path, why in (self.raw.get("unread") or {}).items())

    @property
    def remaps_interrupts(self) -> bool:
        """A chip behind a remapping unit is named IR-* in /proc/interrupts."""
        return any(chip.startswith("IR-") for chip in self.raw.get("interrupts") or [])

    @property
    def tracefs(self) -> tuple[str, ...]:
        """Where it is mounted."""
        mounts = (line.split() for line in self.files.get("/proc/self/mounts", "").splitlines())
        return tuple(m[1] for m in mounts if len(m) > 2 and m[2] == "tracefs")

    @property
    def governors(self) -> dict[str, str]:
        """By the path of each CPU's."""
        return {p: t.strip() for p, t in self.files.items() if p.endswith("/scaling_governor")}

    @property
    def has_series(self) -> bool | None:
        """By its types the kernel has "vfio: Improve DMA mapping performance for huge pfnmaps"
        (v6.15): follow_pfnmap_start() gives a mask, and vaddr_get_pfns() fills a batch. None
        where the types are not there to be read, or the module's alone are not."""
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
        """Of the one map that was made: how often its pages were looked up. None: none was made,
        or its count is not whole."""
        try:
            return parse_hist(str((self.raw.get("probe") or {}).get("lookups", ""))).hits or None
        except EvidenceError:
            return None

    @property
    def has_pfnmaps(self) -> bool:
        """The struct is there, which came with huge pfnmaps (v6.12)."""
        return bool((self.raw.get("types") or {}).get("members"))
