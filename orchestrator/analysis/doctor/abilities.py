"""Questions of the doctor's checks about a machine, answered from its facts. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.surveys.checkup_facts import (
    NOT_EXAMINED,
    BarFacts,
    BootMeans,
    CheckupFacts,
    CountedMap,
)
from orchestrator.formats.abi import parse_selected

LOCKDOWN = "/sys/kernel/security/lockdown"
_CAP_SUPERPAGES = {"2MiB": 1 << 34, "1GiB": 1 << 35}
"""SLLPS of a VT-d unit's CAP_REG (Intel VT-d specification, 11.4.2)."""


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


class ExaminedMachine:
    """A machine by its facts: questions that the checks ask about them."""

    def __init__(self, facts: CheckupFacts) -> None:
        self.facts = facts
        self._files = facts.files
        self.is_root = facts.uid == 0

    @property
    def has_kvm(self) -> bool:
        """True if a guest ran under KVM; False if nobody tried."""
        return self.facts.kvm is None

    @property
    def bars(self) -> tuple[BarFacts, ...]:
        """Memory BARs that are known; none if nobody looked for them."""
        return () if self.facts.bars is NOT_EXAMINED else self.facts.bars

    @property
    def means(self) -> BootMeans | None:
        """Boot methods and watchdogs; None if they are not known."""
        return self.facts.means if isinstance(self.facts.means, BootMeans) else None

    def file(self, path: str) -> str | None:
        """Return a file's text, stripped of white space; None if it is absent or cannot be
        read."""
        text = self._files.get(path)
        return None if text is None else text.strip()

    def chosen(self, path: str) -> str | None:
        """Return the word in brackets of a file like `always [madvise] never`."""
        text = self.file(path)
        return None if text is None else parse_selected(text)

    def quote(self, path: str) -> str:
        """Return a file as evidence: `file: content`, on one line."""
        text = self.file(path)
        why = self.facts.unreadable.get(path, "no such file")
        return f"{path}: {why if text is None else ' '.join(text.split()) or 'empty'}"

    def present(self, path: str) -> bool:
        """True if the path is known to exist."""
        return self.facts.present.get(path, False) or path in self._files

    def access(self, path: str) -> bool:
        """True if this user may read and write the file."""
        return self.facts.access.get(path, False)

    def program(self, *names: str) -> str | None:
        """Return the path of the first of these programs that is there."""
        programs = map(self.facts.programs.get, names)
        return next((program.path for program in programs if program), None)

    def version(self, *names: str) -> tuple[tuple[int, ...], str] | None:
        """Return version numbers and version line of the first of these programs that prints
        one."""
        for name in names:
            program = self.facts.programs.get(name)
            if program and (match := re.search(r"\d{1,9}(?:\.\d{1,9})+", program.version)):
                return tuple(map(int, match[0].split("."))), program.version
        return None

    def cpu(self, field: str) -> str:
        match = re.search(rf"(?m)^{re.escape(field)}\s*:[ \t]*(.*)$", self.cpuinfo)
        return match[1] if match else ""

    @property
    def cpuinfo(self) -> str:
        return self._files.get("/proc/cpuinfo", "")

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
        match = re.match(r"(\d{1,3}) bits physical", self.cpu("address sizes"))
        return int(match[1]) if match else None

    @property
    def words(self) -> list[str]:
        """Words of the kernel's command line."""
        return (self.file("/proc/cmdline") or "").split()

    def options(self, name: str) -> list[str]:
        """Return the options of all words `name=ONE,OTHER` on the command line."""
        texts = [word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")]
        return [option for text in texts for option in text.split(",")]

    @property
    def memory_available(self) -> int | None:
        match = re.search(
            r"(?m)^MemAvailable:\s+(\d{1,15}) kB", self._files.get("/proc/meminfo", "")
        )
        return int(match[1]) * 1024 if match else None

    @property
    def superpages(self) -> tuple[Superpages, ...]:
        """Superpages of each VT-d unit that is on."""
        units = []
        for unit in self.facts.iommus:
            path = f"/sys/class/iommu/{unit}/intel-iommu/cap"
            try:
                register = int(self.file(path) or "", 16)
            except ValueError:
                continue
            sizes = tuple(s for s, bit in _CAP_SUPERPAGES.items() if register & bit)
            bits = (register >> 16 & 0x3F) + 1  # MGAW, bits 21:16
            units.append(Superpages(unit, path, f"{register:x}", sizes, bits))
        return tuple(units)

    @property
    def unread(self) -> tuple[str, ...]:
        """Evidence: what could not be searched for functions, and why."""
        return tuple(f"{path}: {why}" for path, why in self.facts.unread.items())

    @property
    def remaps_interrupts(self) -> bool:
        """True if interrupts are remapped: /proc/interrupts names an interrupt chip IR-*, which is
        one behind a remapping unit."""
        return any(chip.startswith("IR-") for chip in self.facts.interrupts)

    @property
    def tracefs(self) -> tuple[str, ...]:
        """Mount points of tracefs."""
        mounts = (line.split() for line in self._files.get("/proc/self/mounts", "").splitlines())
        return tuple(m[1] for m in mounts if len(m) > 2 and m[2] == "tracefs")

    @property
    def governors(self) -> dict[str, str]:
        """Governor of each CPU, by the path of its file."""
        return {p: t.strip() for p, t in self._files.items() if p.endswith("/scaling_governor")}

    @property
    def has_series(self) -> bool | None:
        """True if the kernel has "vfio: Improve DMA mapping performance for huge pfnmaps" (v6.15),
        by its types: follow_pfnmap_start() gives a mask, and vaddr_get_pfns() fills a batch. None
        if the types cannot be read, or if only those of the module cannot."""
        types = self.facts.types
        if types is None:
            return None
        if "addr_mask" not in (types.members or ()):
            return False
        if types.parameters is None:
            return None
        return any(kind == "vfio_batch" for _, kind in types.parameters)

    @property
    def lookups(self) -> int | None:
        """Number of page lookups in the map that the doctor's probe made. None if it made none, or
        if the histogram is not complete."""
        if not isinstance(self.facts.probe, CountedMap):
            return None
        try:
            return parse_hist(self.facts.probe.lookups).hits or None
        except EvidenceError:
            return None

    @property
    def has_pfnmaps(self) -> bool:
        """True if the kernel has the struct that came with huge pfnmaps (v6.12)."""
        return bool(self.facts.types and self.facts.types.members)


def parse_number(text: str | None) -> int | None:
    """Parse the text of a file that holds one decimal number; None if it holds anything else."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,19}", text) else None


def parse_version(text: str) -> tuple[int, ...]:
    """Return the numbers of a version like 3.11.7; none if the text is no version."""
    return tuple(map(int, re.findall(r"[0-9]{1,9}", re.split(r"[^0-9.]", text)[0])))
