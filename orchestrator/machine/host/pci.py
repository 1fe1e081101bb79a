"""A machine's PCI functions and what uses them, as guests/agents/survey.py reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.surveys.pci_survey import FunctionFacts, User, parse_survey_facts
from orchestrator.formats.abi import (
    IORESOURCE_MEM,
    IORESOURCE_MEM_64,
    IORESOURCE_PREFETCH,
    IORESOURCE_UNSET,
)
from orchestrator.formats.units import format_size

_BARS = 6
_BRIDGE = 0x06
"""Base class of bridges. The next line has base class and subclass of host bridges and of
PCI-to-PCI bridges (PCI Code and ID Assignment, 1.7)."""
_HOST_BRIDGE, _PCI_BRIDGE = 0x0600, 0x0604


@dataclass(frozen=True)
class Resource:
    """One line of /sys/bus/pci/devices/*/resource: `0xSTART 0xEND 0xFLAGS`."""

    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        return self.end - self.start + 1 if self.end else 0

    @property
    def placed(self) -> bool:
        return self.start != 0 and not self.flags & IORESOURCE_UNSET

    @property
    def is_memory(self) -> bool:
        return bool(self.flags & IORESOURCE_MEM)

    def __str__(self) -> str:
        width = "64-bit" if self.flags & IORESOURCE_MEM_64 else "32-bit"
        prefetchable = ", prefetchable" if self.flags & IORESOURCE_PREFETCH else ""
        place = f"at {self.start:#x}" if self.placed else "not placed"
        return f"{format_size(self.size)} {place} ({width}{prefetchable})"


def parse_resources(lines: Iterable[str]) -> list[Resource]:
    return [Resource(*(int(word, 16) for word in line.split())) for line in lines]


@dataclass(frozen=True)
class Function:
    address: str
    facts: FunctionFacts

    @property
    def sysfs(self) -> str:
        return f"/sys/bus/pci/devices/{self.address}"

    @property
    def slot(self) -> str:
        """Part of the address that the functions of one device share."""
        return self.address.rpartition(".")[0]

    @property
    def id(self) -> str:
        """vendor:device as lspci -n prints it: 10de:2330."""
        return ":".join((number or "?")[2:] for number in (self.facts.vendor, self.facts.device))

    @property
    def is_bridge(self) -> bool:
        return self._class >> 8 == _BRIDGE

    @property
    def only_leads_on(self) -> bool:
        """True for a bridge whose only work is to lead to other devices."""
        return self._class in (_HOST_BRIDGE, _PCI_BRIDGE)

    @property
    def _class(self) -> int:
        """Base class and subclass."""
        return int(self.facts.class_code or "0", 16) >> 8

    @property
    def resources(self) -> list[Resource]:
        return parse_resources(self.facts.resource)

    @property
    def bars(self) -> dict[int, Resource]:
        """Memory BARs of the function, by number."""
        bars = enumerate(self.resources[:_BARS])
        return {index: bar for index, bar in bars if bar.is_memory and bar.size}

    @property
    def largest_bar(self) -> int:
        """Size of the largest BAR in bytes; 0 if there is none."""
        return max((bar.size for bar in self.bars.values()), default=0)

    @property
    def resizable(self) -> Mapping[int, tuple[int, ...]]:
        """Number of a BAR -> sizes in bytes that it is known to be able to have."""
        return self.facts.resizable or {}

    @property
    def group(self) -> str | None:
        return self.facts.iommu_group

    @property
    def driver(self) -> str | None:
        return self.facts.driver

    def __str__(self) -> str:
        bars = [f"BAR {index} of {format_size(bar.size)}" for index, bar in self.bars.items()
                if bar.size == self.largest_bar]  # fmt: skip
        parts = [self.id, *bars[:1], f"driver {self.driver}" if self.driver else "no driver"]
        return f"{self.address} ({', '.join(parts)})"


@dataclass(frozen=True)
class Survey:
    iommus: tuple[str, ...]
    functions: Mapping[str, Function]
    """Functions by address, in their order."""
    users: tuple[User, ...]
    unread: int
    """Number of processes whose open files could not be read."""

    @classmethod
    def parse(cls, text: str) -> Survey:
        """Parse the output of survey.py. Raises BenchError if it is anything else."""
        try:
            facts = parse_survey_facts(text)
        except EvidenceError as exc:
            raise BenchError(
                exc.message, evidence=text[:500],
                hint="does a login there print something, in ~/.bashrc?",
                reason=Reason.SURVEY_UNREADABLE,
            ) from exc  # fmt: skip
        functions = {entry.address: Function(entry.address, entry) for entry in facts.functions}
        return cls(facts.iommus, functions, facts.users, facts.unread)

    def members(self, function: Function) -> list[Function]:
        """Return every function in its IOMMU group, itself included."""
        listed = {function.address, *function.facts.group_devices}
        return [member for address, member in self.functions.items() if address in listed]

    def reached(self, functions: Iterable[Function]) -> list[Function]:
        """Return the functions and everything behind them, if they are bridges or controllers of
        Intel's VMD."""
        through = {function.address for function in functions}
        return [
            candidate
            for address, candidate in self.functions.items()
            if through & {address, *candidate.facts.parents}
        ]

    def users_of(self, functions: Iterable[Function]) -> list[User]:
        """Return the users of the functions and of everything behind them, each once."""
        reached = {function.address for function in self.reached(functions)}
        users = [user for user in self.users if user.function in reached]
        return list({(user.kind, user.name): user for user in reversed(users)}.values())[::-1]
