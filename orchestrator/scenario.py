"""A scenario file: its models, units and defaults. Every default of barometer lives here."""

from __future__ import annotations

import difflib
import logging
import operator
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, cast, get_args, get_origin

import tomlkit
import tomlkit.exceptions
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from orchestrator.abi import LEAVES, PAGE
from orchestrator.errors import ScenarioError
from orchestrator.packaged import packaged
from orchestrator.reasons import Reason

log = logging.getLogger("barometer.scenario")
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SIZE = re.compile(r"([1-9][0-9]*)\s*(KiB|MiB|GiB|TiB)")
_DOT = re.compile(r"""\.(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")
"""Dots that separate the parts of a dotted key; a dot within quotes does not."""


def is_emulated(accel: str) -> bool:
    """True if the accelerator emulates the machine, so that its seconds are emulated. `none` is a
    real machine."""
    return accel in ("tcg", "exact")


Metric = str
"""Name of a metric: a key of METRICS; at a point of a map also NAME@SIZE/ALIGNMENT/STATE."""
METRICS: dict[Metric, Literal["cost", "s", "count"]] = {
    "guest_boot_cost": "cost",
    "guest_ssh_cost": "cost",
    "host_boot_seconds": "s",
    "bar_map_cost": "cost",
    "bar_unmap_cost": "cost",
    "bar_maps_per_boot": "count",
    "bar_unmaps_per_boot": "count",
    "bar_map_cost_per_boot": "cost",
    "bar_unmap_cost_per_boot": "cost",
    "pfn_lookups_per_map": "count",
    "pfn_faults_per_map": "count",
    "iova_lookups_per_unmap": "count",
    "iommu_map_cost": "cost",
}
"""What each metric measures. A cost is in seconds, or on an exact host in Ginsn (10^9
instructions): analysis/comparison.py `unit_of`. Its name has no unit, so that an expectation, a
bisection and a plot apply to every accelerator as they are; the unit stands beside each number."""
_FORMER_NAMES: dict[Metric, Metric] = {
    name.replace("_cost", "_seconds"): name for name, kind in METRICS.items() if kind == "cost"
}
"""Name up to schema 1 of comparison.json -> name. It said seconds of what may be instructions."""
AT_POINTS: tuple[Metric, ...] = (
    "bar_map_cost",
    "bar_unmap_cost",
    "pfn_lookups_per_map",
    "pfn_faults_per_map",
    "iova_lookups_per_unmap",
)
"""The metrics that each point of the `map` workload has."""
Pass = Literal["plain", "timing", "counts", "profile"]
ArmName = Literal["baseline", "candidate"]
ARMS: tuple[ArmName, ...] = ("baseline", "candidate")
Role = Literal["baseline", "candidate", "control", "warm-up"]
"""Role of a trial. control: the baseline's kernel once more, to compare the bench with itself.
warm-up: its numbers are not used."""
CONTROL: Role = "control"
WARM_UP: Role = "warm-up"
Alignment = Literal["1GiB", "2MiB", "4KiB"]
State = Literal["cold", "warm"]
Backing = Literal["anonymous", "memfd", "hugetlb-2MiB", "hugetlb-1GiB"]
_BACKING_PAGE: dict[Backing, int] = {
    "anonymous": PAGE,
    "memfd": PAGE,
    "hugetlb-2MiB": 2 * MIB,
    "hugetlb-1GiB": GIB,
}


def parse_size(text: object) -> int:
    """Parse "32GiB", "512MiB" or "1TiB" into bytes. Raises ValueError; decimal units are
    refused."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is not a size; write it like "32GiB" (KiB, MiB, GiB or TiB)')
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """Return the shortest exact spelling: 34359738368 is "32GiB"."""
    for unit, factor in reversed(_UNITS.items()):
        if size % factor == 0 and size:
            return f"{size // factor}{unit}"
    return f"{size} bytes"


def _parse_bar(text: object) -> int:
    size = parse_size(text)
    if size < MIB or size > TIB or size & (size - 1):
        below = max(MIB, min(TIB, 1 << (size.bit_length() - 1)))
        nearest = " or ".join(
            dict.fromkeys(format_size(s) for s in (below, min(TIB, below * 2)))
            if MIB < size < TIB
            else [format_size(below)]
        )
        raise ValueError(
            "a BAR is a power of two (PCI Local Bus Specification 3.0, 6.2.5.1) from 1MiB to 1TiB,"
            f" {text!r} is not; nearest: {nearest}"
        )
    return size


_size_schema = WithJsonSchema({"type": "string", "pattern": _SIZE.pattern, "examples": ["32GiB"]})
_as_text = PlainSerializer(format_size, return_type=str)
Size = Annotated[int, BeforeValidator(parse_size), _as_text, _size_schema]
BarSize = Annotated[int, BeforeValidator(_parse_bar), _as_text, _size_schema]


_PERCENT = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")


def _parse_percent(text: object) -> float:
    match = _PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or not 0 < float(match[1]) <= 50:
        raise ValueError(f'{text!r} is not a percentage above 0 and up to 50; write it like "2%"')
    return float(match[1]) / 100


Percent = Annotated[
    float,
    BeforeValidator(_parse_percent),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": _PERCENT.pattern, "examples": ["2%"]}),
]
"""A share: "2%" is 0.02."""

_OUTCOMES = ("improved", "equivalent", "not-regressed", "regressed")
_BOUND = re.compile(r"(<=|>=|<|>)\s*([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)")


@dataclass(frozen=True)
class Bound:
    """A bound that a scenario sets on a ratio, candidate / baseline: `<= 1.02`."""

    sign: Literal["<=", ">=", "<", ">"]
    limit: float

    def holds(self, ratio: float) -> bool:
        compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
        return bool(compare[self.sign](ratio, self.limit))

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


def _parse_expectation(text: object) -> object:
    if isinstance(text, str) and text not in _OUTCOMES:
        match = _BOUND.fullmatch(text.strip())
        if match is None:
            near = difflib.get_close_matches(text, _OUTCOMES, 1, 0.5)
            raise ValueError(
                f'"{text}" is no expectation'
                + (f'; did you mean "{near[0]}"?' if near else "")
                + f': one of {", ".join(_OUTCOMES)}, or a bound of the ratio as "<= 1.02"'
            )
        return Bound(cast(Literal["<="], match[1]), float(match[2]))
    return text


Series = tuple[Annotated[str, Field(min_length=1)], ...]
"""Sources of patches, in the order in which the patches are applied."""
Expectation = Annotated[
    Literal["improved", "equivalent", "not-regressed", "regressed"] | Bound,
    BeforeValidator(_parse_expectation),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({
        "anyOf": [{"enum": list(_OUTCOMES)}, {"type": "string", "pattern": _BOUND.pattern}],
        "examples": ["improved", "<= 1.02"],
    }),
]  # fmt: skip


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _a_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL byte")
    return Path(os.path.expanduser(value))  # noqa: PTH111  # Path.expanduser() raises for ~nobody


KernelPath = Annotated[Path, AfterValidator(_a_path)]
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
_MESSAGE_ID = re.compile(r"<?[^\s<>@/]+@[^\s<>@/]+>?")
_RANGE = re.compile(r"[^\s/.][^\s]*\.\.[^\s.][^\s]*")


class DebKernel(_Model):
    """A kernel from Debian's packages, resolved by apt with Debian's own keyring."""

    deb: PackageName
    """Package name, for example linux-image-cloud-amd64."""
    suite: Suite | None = None
    """Debian suite, for example trixie or trixie-backports."""
    version: str | None = None
    """Exact package version; with or without a suite."""

    @model_validator(mode="after")
    def _one_of(self) -> DebKernel:
        _some_version("deb", self.deb, self.version, self.suite)
        return self

    def __str__(self) -> str:
        return "deb:" + _package(self.deb, self.version, self.suite)


class ModuleKernel(DebKernel):
    """A kernel from Debian's packages with some of its modules rebuilt from changed sources;
    everything else is the package's. For changes that affect modules only."""

    module: KernelPath | None = None
    """Folder or git repository with the changed source files, at their paths in a kernel's tree
    (drivers/vfio/vfio_iommu_type1.c). They replace the package's files."""
    ref: str | None = None
    """Commit of the git repository `module`. Default: the files that are in the folder now."""
    series: Series = ()
    """Patches on top of the package's source (and of `module`)."""

    @model_validator(mode="after")
    def _changed(self) -> ModuleKernel:
        if self.module is None and not self.series:
            raise ValueError("needs changed sources: module, or series")
        if self.ref is not None and self.module is None:
            raise ValueError("ref is the commit of a module's git repository; module is missing")
        return self

    @property
    def package(self) -> DebKernel:
        """The packaged kernel whose modules are rebuilt."""
        return DebKernel(deb=self.deb, suite=self.suite, version=self.version)

    def __str__(self) -> str:
        at = f"@{self.ref}" if self.ref else ""
        module = [f"module:{self.module}{at}"] if self.module else []
        return " + ".join([str(self.package), *module, *map(_shown, self.series)])


class DirKernel(_Model):
    """A kernel that is built already: a folder with vmlinuz and its modules."""

    dir: KernelPath
    """Folder with vmlinuz (or boot/vmlinuz-*) and lib/modules/RELEASE. A relative path starts at
    the scenario's folder."""

    def __str__(self) -> str:
        return f"dir:{self.dir}"


class _Built(_Model):
    """Keys that all kernels built from source share."""

    series: Series = ()
    """Patches on top of the source, in this order: a file (mbox, patch), a folder of patches, a
    range of commits of the tree's repository (A..B), or the message-id of a mail on
    lore.kernel.org."""
    config: tuple[str, ...] = ()
    """Options on top of barometer's own small configuration for hosts: "CONFIG_X=y", or a file
    with such lines. A whole .config replaces barometer's, except for the options that a host
    needs."""


class TreeKernel(_Built):
    """A kernel that is built from a source tree."""

    tree: KernelPath
    """A git repository, a folder with a kernel's source, or a tarball of one."""
    ref: str | None = None
    """Commit of a git repository, by any name that git knows. Default: the commit that is checked
    out; uncommitted changes are then refused."""

    def __str__(self) -> str:
        at = f"@{self.ref}" if self.ref else ""
        return " + ".join([f"tree:{self.tree}{at}", *map(_shown, self.series)])


class SourceKernel(_Built):
    """A kernel that is built from one of Debian's source packages."""

    source: PackageName
    """Package name, for example linux-source-7.3, or linux-source for a suite's default."""
    suite: Suite | None = None
    version: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> SourceKernel:
        _some_version("source", self.source, self.version, self.suite)
        return self

    def __str__(self) -> str:
        name = "source:" + _package(self.source, self.version, self.suite)
        return " + ".join([name, *map(_shown, self.series)])


def _some_version(key: str, name: str, version: str | None, suite: str | None) -> None:
    if suite is None and version is None:
        raise ValueError(f'{{ {key} = "{name}" }} needs a suite or a version beside it')


def _package(name: str, version: str | None, suite: str | None) -> str:
    return name + (f"={version}" if version else "") + (f"@{suite}" if suite else "")


def _shown(patches: str) -> str:
    return patches if is_message_id(patches) else Path(patches).name


def is_message_id(patches: str) -> bool:
    """True if an item of a series is the message-id of a mail on lore.kernel.org, and no such file
    exists."""
    return _MESSAGE_ID.fullmatch(patches) is not None and not os.path.lexists(patches)


def is_range(patches: str) -> bool:
    """True if an item of a series is a range of commits, A..B, and no such file exists."""
    return _RANGE.fullmatch(patches) is not None and not os.path.lexists(patches)


def _kernel_tag(value: Any) -> str:
    """Return the tag of the kernel form that the table's keys select."""
    if not isinstance(value, Mapping):
        forms: dict[type[Any], str] = {
            DirKernel: "dir", TreeKernel: "tree", SourceKernel: "source", ModuleKernel: "module"
        }  # fmt: skip
        return forms.get(type(value), "deb")
    for form in ("deb", "tree", "source", "dir"):
        if form in value:
            changed = form == "deb" and ("module" in value or "series" in value)
            return "module" if changed else form
    return "module" if "module" in value else "deb"


Kernel = Annotated[
    Annotated[DebKernel, Tag("deb")]
    | Annotated[DirKernel, Tag("dir")]
    | Annotated[TreeKernel, Tag("tree")]
    | Annotated[SourceKernel, Tag("source")]
    | Annotated[ModuleKernel, Tag("module")],
    Discriminator(_kernel_tag),
]


_OWN_WORDS = ("barometer.token", "console", "init", "panic", "root")
_LONGEST_CMDLINE = 1800
"""Most characters that a scenario may add to a kernel's command line. x86 kernels keep 2048 bytes
of it (COMMAND_LINE_SIZE), and barometer's own words take some of them."""


def word_name(word: str) -> str:
    """Return the name of what a word of a kernel's command line sets. The kernel does not
    distinguish `-` and `_` there (parameq() in kernel/params.c)."""
    return word.partition("=")[0].replace("-", "_")


def _words(cmdline: str) -> str:
    if not all(" " <= c <= "~" for c in cmdline):
        raise ValueError("a kernel's command line is of printable ASCII, on one line")
    if '"' in cmdline:
        raise ValueError("a word with a quote would be another for the kernel, which takes it off")
    if len(cmdline) > _LONGEST_CMDLINE:
        raise ValueError(f"{len(cmdline)} characters; there is room for {_LONGEST_CMDLINE}")
    for word in cmdline.split():
        if word_name(word) in _OWN_WORDS:
            raise ValueError(f'"{word}": {word.partition("=")[0]} is set by barometer itself')
    return cmdline


CommandLine = Annotated[str, AfterValidator(_words)]
"""Words of a host's kernel command line, besides those that barometer needs."""


class HostSpec(_Model):
    """What every kind of host answers about itself. A kind overrides what differs."""

    @property
    def exact(self) -> bool:
        """True if the host counts instructions, one per nanosecond."""
        return False

    @property
    def measures_boot(self) -> bool:
        """True if the time of the host's boot is a metric."""
        return False

    def check_device(self, device: Device, guest: Guest | None) -> None:
        """Raise ValueError if the device's BAR has no place on the host."""

    def check_map(self, bar: int) -> None:
        """Raise ValueError if the host's IOMMU cannot address a map of the whole BAR."""

    def check_guest(self, guest: Guest) -> None:
        """Raise ValueError if the host cannot boot the guest."""

    def check_backing(self, guest: Guest) -> None:
        """Raise ValueError if the host would not find the pages of the guest's memory."""


class NestedHost(HostSpec):
    """The host under test is a VM of this machine."""

    kind: Literal["nested"] = "nested"
    title: ClassVar[str] = "nested VM"
    address: ClassVar[None] = None
    ssh_config: ClassVar[None] = None
    accel: Literal["auto", "kvm", "tcg", "exact"] = "auto"
    """auto: kvm if a guest really runs under it, else tcg. tcg: emulation; its seconds are
    emulated. exact: emulation that counts instructions, one per nanosecond; the numbers are always
    the same."""
    suite: Literal["trixie", "bookworm"] = "trixie"
    """Debian release of the host's user space: bookworm's QEMU 7.2 does not align BAR mappings."""
    viommu: Literal["intel", "virtio"] = "intel"
    """IOMMU that the host sees. Only the costs of intel are comparable between kernels."""
    viommu_aw_bits: Literal[39, 48] = 48
    """Address width of the intel IOMMU. With 39 bits, a BAR that the guest places above 512 GiB is
    refused."""
    phys_bits: Annotated[int, Field(ge=36, le=52)] = 46
    """Physical address bits of the host's CPU. The BARs must fit into its window for 64-bit BARs,
    a quarter of the address space."""
    memory: Annotated[Size, Field(ge=GIB)] = 4 * GIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 2
    """Number of CPUs. An exact host always has 1, which is then also the default."""
    cmdline: CommandLine = ""
    """Words appended to the host's kernel command line in both arms."""
    settle: Annotated[int, Field(ge=0, le=3600)] = 300
    """Seconds of the host's own clock that an exact host idles before anything is measured, so
    that late work of its boot does not share the only CPU with the measurement. They cost almost
    no real time. Other hosts do not wait."""
    fresh_boots: bool = True
    """true: the host boots anew for each trial. false: consecutive trials of one arm share a boot,
    as on a metal host; this is faster, but the reported p is too low. Guest boots with accel exact
    need true."""

    @model_validator(mode="before")
    @classmethod
    def _one_cpu_is_the_default_of_exact(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("accel") == "exact":
            return {"cpus": 1, **data}
        return data

    @model_validator(mode="after")
    def _one_cpu(self) -> NestedHost:
        if self.accel == "exact" and self.cpus != 1:
            raise ValueError(
                f'accel = "exact" counts the instructions of one CPU; cpus is {self.cpus}'
            )
        return self

    @property
    def name(self) -> str:
        return self.title

    @property
    def exact(self) -> bool:
        return self.accel == "exact"

    @property
    def measures_boot(self) -> bool:
        return self.fresh_boots and not self.exact

    def check_device(self, device: Device, guest: Guest | None) -> None:
        # firmware puts 64-bit BARs into a window that is a part of the address space
        bits, window = self.phys_bits, 2**self.phys_bits // 4
        guest_bits = guest.phys_bits if guest is not None else None
        if guest_bits is not None and guest_bits > bits:
            raise ValueError(
                f"guest.phys_bits is {guest_bits}, more than host.phys_bits, {bits}: the guest has"
                " the host's CPU"
            )
        if device.count * device.bar > window:
            raise ValueError(
                f"device.count x device.bar is {format_size(device.count * device.bar)};"
                f" host.phys_bits = {bits} leaves {format_size(window)} for BARs, a quarter of"
                " what they address: fewer or smaller devices, or more bits"
            )

    def check_map(self, bar: int) -> None:
        if self.viommu_aw_bits == 39 and bar > 256 * GIB:
            raise ValueError(
                f"host.viommu_aw_bits: 39 bits have no room for a BAR of {format_size(bar)}"
            )

    def check_guest(self, guest: Guest) -> None:
        if guest.memory > self.memory - GIB:
            raise ValueError(
                f"guest.memory is {format_size(guest.memory)}; it needs to be 1GiB less than"
                f" host.memory ({format_size(self.memory)}), or still less"
            )

    def check_backing(self, guest: Guest) -> None:
        if guest.backing == "hugetlb-1GiB" and self.memory < guest.memory + 2 * GIB:
            raise ValueError(
                f"host.memory is {format_size(self.memory)}; guest.backing ="
                f' "{guest.backing}" needs 2GiB more than guest.memory'
                f" ({format_size(guest.memory)}), or the host finds no pages of that size"
            )


_ADDRESS = re.compile(r"(ssh://)?[A-Za-z0-9_][A-Za-z0-9_.:@%\[\]-]*/?")


def _an_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError(
            f'"{text}" is no address for ssh: expected a name that it knows, "root@gpu1.lab" or'
            ' "ssh://root@gpu1.lab:2222"'
        )
    return text


def _a_command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no command line: {exc}") from exc
    if not words:
        raise ValueError("an empty command does nothing: leave the key out")
    return text


Address = Annotated[str, AfterValidator(_an_address)]
Command = Annotated[str, AfterValidator(_a_command)]
"""A program and its arguments, quoted as for a shell. It runs without a shell."""


BootWay = Literal["kexec", "grub", "systemd-boot"]
"""Methods to boot another kernel once on a machine, the best first."""
BOOT_WAYS: tuple[BootWay, ...] = get_args(BootWay)


class MetalHost(HostSpec):
    """The host under test is an existing machine, reached over SSH as root or with sudo. A run
    leaves it as it was, and on the kernel that it ran before."""

    kind: Literal["metal"]
    title: ClassVar[str] = "real machine"
    viommu: ClassVar[None] = None
    cpus: ClassVar[None] = None
    phys_bits: ClassVar[None] = None
    address: Address
    """Address as ssh(1) takes it: a Host of its configuration, USER@HOST, or
    ssh://USER@HOST:PORT."""
    ssh_config: KernelPath | None = None
    """Configuration file for `ssh -F`. Default: the user's. A relative path starts at the
    scenario's folder."""
    boot: Literal["auto", BootWay] = "auto"
    """Method to boot a kernel under test. auto: kexec if the machine can, else a one-shot entry of
    its boot loader."""
    deadline: Annotated[int, Field(ge=180, le=7200)] = 600
    """Seconds within which the machine must answer again after a boot, its firmware included."""
    wait: Annotated[int, Field(ge=0, le=86400)] = 0
    """Seconds to wait while another runner holds the machine's lease."""
    lease: Annotated[int, Field(ge=30, le=3600)] = 60
    """Seconds without a sign of the runner after which another runner may use the machine. After
    as many seconds again, the machine restarts into its own kernel."""
    console: Command | None = None
    """Command on this machine whose output is the host's serial console, for example "ipmitool -H
    bmc sol activate". With it, a failed boot is reported with the last lines of the console."""
    power_cycle: Command | None = None
    """Command on this machine that turns the host off and on, as the last resort."""
    fresh_boots: bool = False
    """true: the host boots anew for each trial. false: consecutive trials of one arm share a boot.
    This is faster, but what differs from boot to boot then affects several pairs at once, and the
    reported p is too low."""
    cmdline: CommandLine = ""
    """Words appended, in both arms, to the kernel command line with which the host runs its own
    kernel."""

    @property
    def name(self) -> str:
        return self.address

    def check_guest(self, guest: Guest) -> None:
        if guest.boot == "disk":
            raise ValueError('guest.boot: "disk" is of a nested host; a metal one has "direct"')


def _host_tag(value: Any) -> str | None:
    kind = value.get("kind", "nested") if isinstance(value, Mapping) else value.kind
    return kind if kind in ("nested", "metal") else None


Host = Annotated[
    Annotated[NestedHost, Tag("nested")] | Annotated[MetalHost, Tag("metal")],
    Discriminator(_host_tag, custom_error_type="kind", custom_error_message='"nested" or "metal"'),
]


class EmulatedDevice(_Model):
    """A device that barometer makes for a nested host."""

    host_kind: ClassVar[str] = "nested"
    kind: Literal["ivshmem", "pci-testdev"] = "ivshmem"
    """ivshmem: a sparse shared-memory file backs the BAR. pci-testdev: a BAR without memory."""
    bar: BarSize = 32 * GIB
    """Size of the large BAR: a power of two from 1MiB to 1TiB."""
    count: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of devices, each with a BAR of that size behind a root port of its own. The workload
    map takes one device."""
    mmap: bool = True
    """false: the guest's QEMU has x-no-mmap=on, so the BAR is never mapped for DMA and each access
    to it traps. For guest boots only."""


FunctionAddress = Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]


class HostDevice(_Model):
    """A PCI function of a metal host."""

    host_kind: ClassVar[str] = "metal"
    kind: Literal["hostdev"]
    address: FunctionAddress | None = None
    """Address of the function: "0000:3b:00.0"."""
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{4}:[0-9a-f]{4}$")] | None = None
    """Vendor and device ID, "10de:2330". The machine must have exactly one such function."""
    pick: Literal["largest-bar"] | None = None
    """largest-bar: the function with the largest BAR among those that may be used."""
    bar: BarSize
    """Size of the function's large BAR. A function without a BAR of this size is refused."""
    mmap: bool = True
    """false: the guest's QEMU has x-no-mmap=on, so the BAR is never mapped for DMA and each access
    to it traps. For guest boots only."""

    @model_validator(mode="after")
    def _one_way(self) -> HostDevice:
        given = [key for key in ("address", "id", "pick") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "needs one of address, id and pick; it has " + (" and ".join(given) or "none")
            )
        return self

    @property
    def count(self) -> int:
        return 1


def _device_tag(value: Any) -> str | None:
    kind = value.get("kind", "ivshmem") if isinstance(value, Mapping) else value.kind
    return {"hostdev": "hostdev", "ivshmem": "emulated", "pci-testdev": "emulated"}.get(kind)


Device = Annotated[
    Annotated[EmulatedDevice, Tag("emulated")] | Annotated[HostDevice, Tag("hostdev")],
    Discriminator(
        _device_tag, custom_error_type="kind",
        custom_error_message='"ivshmem", "pci-testdev" or "hostdev"',
    ),
]  # fmt: skip


class Guest(_Model):
    kernel: Kernel
    """Kernel of the guest, the same in both arms. Its PCI code decides how often a BAR is
    mapped."""
    memory: Size = 512 * MIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    cmdline: str = ""
    """Words appended to the guest's kernel command line in both arms."""
    firmware: Literal["seabios", "ovmf"] = "seabios"
    """Firmware of the guest: a BIOS (seabios) or UEFI (ovmf). It places the BARs before the kernel
    runs."""
    boot: Literal["direct", "disk"] = "direct"
    """direct: QEMU loads kernel and initramfs, and there is no disk. disk: the guest boots from a
    disk with GRUB and systemd; it needs 512MiB of memory or more."""
    backing: Backing = "anonymous"
    """Memory of the host that backs the guest's memory, whose size must be a multiple of the
    backing's pages."""
    viommu: Literal["none", "intel"] = "none"
    """IOMMU that the guest sees."""
    backend: Literal["type1", "iommufd"] = "type1"
    """Interface by which QEMU assigns the device: VFIO's container and group (type1), or iommufd
    and the device's cdev, which maps a BAR only as a dma-buf (QEMU 11.1, Linux v6.19)."""
    phys_bits: Annotated[int, Field(ge=36, le=52)] | None = None
    """Physical address bits of the guest's CPU, at most the host's; default: the host's."""


def _parse_map_size(text: object) -> object:
    return text if text == "full" else parse_size(text)


MapSize = Annotated[
    int | Literal["full"],
    BeforeValidator(_parse_map_size),
    PlainSerializer(lambda size: size if size == "full" else format_size(size), return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"full|{_SIZE.pattern}", "examples": ["full"]}),
]


def is_headline(point: str, *, whole: bool) -> bool:
    """True if SIZE/ALIGNMENT/STATE is the headline: the whole BAR, aligned as well as possible,
    warm. `whole`: SIZE is the whole BAR."""
    return whole and point.endswith("/1GiB/warm")


def metric_at(base: Metric, point: str, *, whole: bool) -> Metric:
    """Return the name of one of AT_POINTS at SIZE/ALIGNMENT/STATE. The headline has the plain
    name."""
    return base if is_headline(point, whole=whole) else f"{base}@{point}"


def current_name(metric: Metric) -> Metric:
    """Return the present name of a metric, which may have its former one; any other text as it
    is."""
    base, at, point = metric.partition("@")
    return _FORMER_NAMES.get(base, base) + at + point


def former_names_note(source: str, names: Iterable[Metric]) -> str:
    """Return a line that tells the present names of metrics with former ones; empty if all names
    are the present ones."""
    renamed = [f"{name} is {now} now" for name in names if (now := current_name(name)) != name]
    return f"{source}: {', '.join(renamed)}; the old names still work" if renamed else ""


@dataclass(frozen=True)
class Point:
    """A point at which a map is measured: how much of the BAR, how aligned, in which state."""

    size: int
    """Bytes."""
    spelled: str
    """The size as the scenario spells it: "full" or "4GiB"."""
    alignment: Alignment
    state: State
    headline: bool
    """True for the headline (is_headline) and for the one point of a guest boot. Its metrics have
    plain names."""

    @property
    def name(self) -> str:
        return f"{self.spelled}/{self.alignment}/{self.state}"

    def metric(self, base: Metric) -> Metric:
        """Return the name of one of AT_POINTS at this point."""
        return base if self.headline else f"{base}@{self.name}"


class Map(_Model):
    """The `map` workload: the BAR is mapped and unmapped from the host's user space."""

    sizes: Annotated[tuple[MapSize, ...], Field(min_length=1)] = ("full",)
    """Sizes to map; "full" is the whole BAR. Each size is a mapping of its own."""
    alignment: Annotated[tuple[Alignment, ...], Field(min_length=1)] = ("1GiB",)
    """Alignment of the mapping's virtual address to the BAR's. It limits the largest leaf of the
    page table."""
    state: Annotated[tuple[State, ...], Field(min_length=1)] = ("cold", "warm")
    """cold: the BAR's page tables were zapped before; warm: they are as the last map left them."""
    repeats: Annotated[int, Field(ge=1, le=10000)] = 3
    """Samples of each point in one trial, reduced to their median."""
    backend: Literal["type1", "iommufd"] = "type1"
    """VFIO interface: container and group (type1v2), or iommufd and the device's cdev."""
    thp: Literal["inherit", "disable", "nohugepage", "hugepage"] = "inherit"
    """Transparent huge pages of the process that maps. inherit: as on the host. disable: off by
    prctl. nohugepage, hugepage: off or on by madvise."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Map:
        for key in ("sizes", "alignment", "state"):
            values = getattr(self, key)
            if len(set(values)) != len(values):
                twice = next(v for v in values if values.count(v) > 1)
                shown = format_size(twice) if isinstance(twice, int) else twice
                raise ValueError(f"{key} names {shown} twice")
        return self


_PARAMETER = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_SETTING = re.compile(r"/(sys|proc/sys)(/[^/\0\s]+)+")


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    if not isinstance(value, str | int) or not str(value) or re.search(r"[\s\0\"]", str(value)):
        raise ValueError(f"{value!r} is no value: a number, true, false, or a word without spaces")
    return str(value)


Scalar = Annotated[
    str,
    BeforeValidator(_scalar),
    WithJsonSchema({"type": ["string", "integer", "boolean"]}),
]
"""A value as the kernel takes it; true becomes Y."""


class Arm(_Model):
    """A kernel and its settings."""

    kernel: Kernel
    cmdline: CommandLine = ""
    """Words appended to the host's kernel command line in this arm only: "iommu.strict=1"."""
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    """Parameters of modules, also of built-in ones: "vfio_iommu_type1.disable_hugepages" =
    true."""
    sysfs: dict[str, Scalar] = Field(default_factory=dict)
    """Files under /sys or /proc/sys and the values written to them once the modules are loaded:
    "/sys/kernel/mm/transparent_hugepage/enabled" = "never"."""

    @model_validator(mode="after")
    def _named_well(self) -> Arm:
        for name in self.parameters:
            if not _PARAMETER.fullmatch(name):
                raise ValueError(
                    f'parameters."{name}": expected "MODULE.PARAMETER", for example'
                    ' "vfio_iommu_type1.disable_hugepages"'
                )
        for path in self.sysfs:
            if not _SETTING.fullmatch(path) or ".." in path.split("/"):
                raise ValueError(
                    f'sysfs."{path}": expected a file under /sys or /proc/sys, for example'
                    ' "/sys/kernel/mm/transparent_hugepage/enabled"'
                )
        return self

    @model_validator(mode="after")
    def _set_once(self) -> Arm:
        for word in self.cmdline.split():
            if word == "--" or word_name(word) == "rdinit":
                raise ValueError(f'cmdline: "{word}": what init is given is barometer\'s own')
        by_name: dict[str, str] = {}
        for name in self.parameters:
            if (other := by_name.setdefault(word_name(name), name)) != name:
                raise ValueError(f'parameters: "{other}" and "{name}" are one parameter')
        for word in self.cmdline.split():
            if (name := by_name.get(word_name(word), "")) != "":
                raise ValueError(f'"{name}" is set in parameters and in cmdline: take one out')
        return self

    @property
    def is_set(self) -> bool:
        """True if the arm sets anything besides its kernel."""
        return bool(self.words or self.sysfs)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the kernel, for JSON."""
        return self.model_dump(mode="json", exclude={"kernel"})

    @property
    def words(self) -> tuple[str, ...]:
        """Words that the arm adds to the host's kernel command line. Parameters of modules are
        among them: both kmod and the kernel take them from there (modprobe(8))."""
        parameters = (f"{name}={value}" for name, value in self.parameters.items())
        return (*self.cmdline.split(), *parameters)


class Arms(_Model):
    baseline: Arm
    """The unpatched kernel."""
    candidate: Arm
    """The patched kernel."""

    def __getitem__(self, name: ArmName) -> Arm:
        return self.baseline if name == "baseline" else self.candidate


class Until(_Model):
    """Rule that ends a run, in place of a number of pairs."""

    precision: Percent = 0.02
    """Half the width of the 95 % interval of every metric that decides, as a share of the baseline
    (or of the candidate if that costs more). The run goes on, block by block, until every interval
    is that narrow and every verdict is clear."""
    max_pairs: Annotated[int, Field(ge=2, le=1000, multiple_of=2)] = 30
    """Most pairs of trials. A block is two pairs, so the number is even."""


class Trials(_Model):
    pairs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of pairs. A pair is two trials, one host boot of each arm. Two pairs are a block, and
    the second has the arms in the opposite order. A verdict on a time that changes by less than a
    factor of two needs 10 pairs; with two expected metrics it needs 11, with four 12."""
    until: Until | None = None
    """Rule that ends the run, in place of `pairs`: as many pairs as needed, an even number."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order. With an even seed the baseline goes first, with an odd one the candidate.
    The arm that starts each later block is drawn."""
    warm_up: bool | Literal["auto"] = "auto"
    """A trial of the baseline's kernel before all others, to fill the machine's caches. Its
    numbers are not used. auto: if there are several pairs and accel is not exact."""
    control: bool | Literal["auto"] = "auto"
    """A trial of the baseline's kernel in each block besides its pairs, to compare the bench with
    itself. A metric that differs between baseline and control has no verdict. auto: from 10 pairs
    on."""

    @model_validator(mode="after")
    def _one_of(self) -> Trials:
        if self.until is not None and self.pairs != Trials.model_fields["pairs"].default:
            raise ValueError("pairs and until exclude one another: take one of them out")
        return self

    @property
    def most_pairs(self) -> int:
        return self.pairs if self.until is None else self.until.max_pairs


CONDITION_ROOMS = ("accel", "barometer", "device", "guest", "host", "map", "runner", "workload")
"""First parts of condition names."""
_CONDITIONS_ALONE = ("accel", "barometer", "workload")
"""Conditions whose names have no dot."""


def not_a_condition(names: Iterable[str]) -> str | None:
    """Explain the first name that cannot be a condition's, or return None if all can."""
    for name in names:
        room = name.partition(".")[0]
        if room not in CONDITION_ROOMS:
            rooms = ", ".join(CONDITION_ROOMS)
            return f'"{name}" is no condition; one begins with {rooms}, as "runner.qemu"'
        if name == room and room not in _CONDITIONS_ALONE:
            return f'"{name}" is no condition; all that begin with it are "{room}.*"'
    return None


class Judgement(_Model):
    margin: Percent = 0.03
    """Margin of `equivalent`: the 95 % interval of the ratio must lie within 1 / (1 + margin) and
    1 + margin."""
    floor: Percent = 0.01
    """Smallest change of a time that is called improved or regressed."""
    allow: tuple[str, ...] = ()
    """Conditions that may differ between the arms besides the kernel, by their names in the
    report: "runner.qemu", or "runner.*"."""

    @field_validator("allow")
    @classmethod
    def _of_a_room(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := not_a_condition(names):
            raise ValueError(wrong)
        return names

    @model_validator(mode="after")
    def _floor_within_margin(self) -> Judgement:
        if self.floor > self.margin:
            raise ValueError(
                f"floor is {self.floor:.2%}, more than margin, {self.margin:.2%}: a change that is"
                " not called would not be equivalent either"
            )
        return self


class Trace(_Model):
    passes: Annotated[tuple[Pass, ...], Field(min_length=1)] = ("plain", "timing", "counts")
    """plain: untraced. timing: a few records per map. counts: exact page counts. profile (map
    workload, accel exact): instructions by kernel function."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Trace:
        if len(set(self.passes)) != len(self.passes):
            raise ValueError("each pass is named once")
        return self


class Scenario(_Model):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    workload: Literal["guest-boot", "map"] = "guest-boot"
    """guest-boot: boot a guest that owns the device. map: map the BAR without a guest."""
    host: Host = NestedHost()
    device: Device = EmulatedDevice()
    guest: Guest | None = None
    """Guest of the workload guest-boot, which needs this table."""
    map: Map = Map()
    """Settings of the workload map."""
    arms: Arms
    trials: Trials = Trials()
    trace: Trace = Trace()
    judgement: Judgement = Judgement()
    expect: dict[Metric, Expectation] = Field(default_factory=dict)
    """Results that the metrics must have for exit code 0: improved, equivalent, not-regressed,
    regressed, or a bound of the ratio candidate / baseline such as "<= 1.02"."""

    @property
    def nested(self) -> NestedHost:
        """The nested host, for a scenario without a metal host."""
        assert isinstance(self.host, NestedHost)
        return self.host

    def points(self) -> tuple[Point, ...]:
        """Return every point of the map workload in the order of measurement, the best alignment
        first. A guest boot has one point, for its counts: the full BAR at its best alignment,
        cold."""
        asked = self.map if self.workload == "map" else Map(state=("cold",))
        return tuple(
            self._point(size, alignment, state)
            for alignment in sorted(asked.alignment, key=lambda name: -LEAVES[name])
            for size in asked.sizes
            if size != self.device.bar or "full" not in asked.sizes
            for state in sorted(asked.state)
        )

    def _point(self, asked: int | Literal["full"], alignment: Alignment, state: State) -> Point:
        size = self.device.bar if asked == "full" else asked
        spelled = "full" if asked == "full" else format_size(asked)
        headline = self.workload == "guest-boot" or is_headline(
            f"{spelled}/{alignment}/{state}", whole=size == self.device.bar
        )
        return Point(size, spelled, alignment, state, headline)

    def metrics(self) -> tuple[Metric, ...]:
        """Return the names of all metrics that a run of this scenario measures."""
        passes = self.trace.passes
        at_points = [m for m in AT_POINTS if METRICS[m] == "count" and "counts" in passes]
        if self.workload == "map":
            at_points += [m for m in AT_POINTS if METRICS[m] == "cost" and "plain" in passes]
        names = [p.metric(m) for m in at_points for p in self.points()]
        if self.workload == "guest-boot":
            names += [m for m in ("guest_boot_cost", "guest_ssh_cost") if "plain" in passes]
            traced = [m for m in METRICS if m.startswith(("bar_", "iommu_"))]
            by_iommufd = self.guest is not None and self.guest.backend == "iommufd"
            if not self.device.mmap or by_iommufd:  # no maps to time: there are 0
                traced = [m for m in traced if m.endswith("_per_boot")]
            names += [m for m in traced if "timing" in passes]
        if self.host.measures_boot:
            names.append("host_boot_seconds")
        return tuple(names)

    @field_validator("expect", mode="before")
    @classmethod
    def _rename_metrics(cls, expect: object) -> object:
        """Give metrics with former names, as scenario files of earlier versions have, their
        present ones."""
        if not isinstance(expect, Mapping):
            return expect
        for name in expect:
            if (now := current_name(name)) != name and now in expect:
                raise ValueError(f'"{name}" is the former name of "{now}": take one of them out')
        return {current_name(name): value for name, value in expect.items()}

    @model_validator(mode="after")
    def _workload_is_whole(self) -> Scenario:
        if self.workload == "guest-boot":
            if self.guest is None:
                raise ValueError('guest: workload = "guest-boot" needs a [guest] with a kernel')
            if "profile" in self.trace.passes:
                raise ValueError('trace.passes: profile is a pass of workload = "map"')
        elif "profile" in self.trace.passes and not self.host.exact:
            raise ValueError('trace.passes: profile needs host.accel = "exact"')
        elif "timing" in self.trace.passes and self.map.backend == "iommufd":
            raise ValueError(
                "trace.passes: timing traces functions of vfio_iommu_type1, which map.backend ="
                ' "iommufd" does not use; leave it out'
            )
        if self.workload == "guest-boot":
            if self.map != Map():
                raise ValueError('map: is of workload = "map"; a guest boot has nothing of it')
            if self.host.exact and not self.host.fresh_boots:
                raise ValueError(
                    'host.fresh_boots: false, and workload = "guest-boot" with host.accel ='
                    ' "exact": a second guest boot on one exact host all but stands still'
                )
            return self
        self._maps_fit()
        return self

    def _maps_fit(self) -> None:
        if self.device.count != 1:
            raise ValueError(
                f'device.count: workload = "map" maps the BAR of one device; count is'
                f" {self.device.count}"
            )
        if not self.device.mmap:
            raise ValueError(
                'device.mmap: false is of workload = "guest-boot"; workload = "map" does nothing'
                " but map the BAR"
            )
        if not {"plain", "counts"} & {*self.trace.passes}:
            raise ValueError("trace.passes: needs plain or counts, or nothing is measured")
        self.host.check_map(self.device.bar)
        for size in self.map.sizes:
            if size == "full":
                continue
            if size % PAGE:
                raise ValueError(f"map.sizes: {format_size(size)} is no multiple of 4KiB")
            if size > self.device.bar:
                raise ValueError(
                    f"map.sizes: {format_size(size)} is more than the BAR,"
                    f" {format_size(self.device.bar)}"
                )

    @model_validator(mode="after")
    def _arms_are_set_apart(self) -> Scenario:
        """Raise ValueError if host.cmdline also sets what an arm sets, or if a command line is too
        long."""
        common = {word_name(word): word for word in self.host.cmdline.split()}
        for arm in ARMS:
            words = self.arms[arm].words
            for word in words:
                if (other := common.get(word_name(word))) is not None:
                    raise ValueError(
                        f'arms.{arm}: "{word}", and host.cmdline has "{other}": take one out'
                    )
            length = len(" ".join([*words, self.host.cmdline]))
            if length > _LONGEST_CMDLINE:
                raise ValueError(
                    f"arms.{arm}: with host.cmdline its kernel's command line has {length}"
                    f" characters more than barometer's own; there is room for {_LONGEST_CMDLINE}"
                )
        return self

    @model_validator(mode="after")
    def _device_is_the_hosts(self) -> Scenario:
        if self.device.host_kind != self.host.kind:
            raise ValueError(
                'device.kind: "hostdev" is a device of host.kind = "metal", and such a host has no'
                f' other; here they are "{self.device.kind}" and "{self.host.kind}"'
            )
        return self

    @model_validator(mode="after")
    def _bars_fit(self) -> Scenario:
        self.host.check_device(self.device, self.guest)
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> Scenario:
        if self.workload != "guest-boot" or self.guest is None:
            return self
        if self.guest.memory == self.device.bar:
            raise ValueError(
                f"guest.memory and device.bar are both {format_size(self.device.bar)}: the maps of"
                " the guest's memory could not be told from those of the BAR"
            )
        if self.guest.memory < 128 * MIB:
            raise ValueError(
                f"guest.memory is {format_size(self.guest.memory)}; it needs 128MiB or more"
            )
        self.host.check_guest(self.guest)
        self._memory_suits(self.guest)
        return self

    def _memory_suits(self, guest: Guest) -> None:
        """Raise ValueError unless the guest's memory suits its boot and its backing."""
        memory, page = format_size(guest.memory), _BACKING_PAGE[guest.backing]
        if guest.boot == "disk" and guest.memory < 512 * MIB:
            raise ValueError(f'guest.memory is {memory}; guest.boot = "disk" needs 512MiB or more')
        if guest.memory % page:
            raise ValueError(
                f'guest.memory is {memory}; guest.backing = "{guest.backing}" needs a multiple of'
                f" {format_size(page)}"
            )
        self.host.check_backing(guest)

    @model_validator(mode="after")
    def _expected_is_measured(self) -> Scenario:
        names = self.metrics()
        headline = {f"{m}@{p.name}": m for p in self.points() if p.headline for m in AT_POINTS}
        for name in self.expect:
            if name in names:
                continue
            known = name in METRICS or name.partition("@")[0] in AT_POINTS
            why = "is not measured by this workload and its passes" if known else "is no metric"
            if headline.get(name) in names:
                near = f'; its name is "{headline[name]}"'
            else:
                near = nearest_name(name, names, names)
            raise ValueError(f'expect.{name}: "{name}" {why}{near}')
        return self


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> tuple[Scenario, str]:
    """Load the scenario of a TOML file with `key=value` overrides, and its text with them applied.

    Raises ScenarioError, which names the file, the key and the nearest valid name.
    """
    document = _overridden(read_file(path), str(path), overrides)
    note_former_names(document, str(path))
    return scenario_of(document, str(path), path.parent), tomlkit.dumps(document)


_LONGEST = 1 << 20


def read_file(path: Path) -> str:
    """Read the text of a scenario file. Raises ScenarioError, which names the nearest file."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST + 1)
        if len(text) > _LONGEST:  # a device, or no scenario at all
            raise ScenarioError(
                f"{path}: is longer than {_LONGEST} characters", reason=Reason.SCENARIO
            )
    except (OSError, UnicodeDecodeError) as exc:
        nearest = difflib.get_close_matches(path.name, _toml_files(path) - {path.name}, 1)
        examples = f"examples are in {packaged('fixtures') / 'scenarios'}"
        raise ScenarioError(
            f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}",
            hint=f"did you mean {path.parent / nearest[0]}?" if nearest else examples,
            reason=Reason.SCENARIO,
        ) from exc
    return text


def _toml_files(path: Path) -> set[str]:
    try:
        return {p.name for p in path.parent.glob("*.toml")}
    except OSError:
        return set()


def parse_scenario(
    text: str, source: str, folder: Path = Path(), overrides: Sequence[str] = ()
) -> tuple[Scenario, str]:
    """Parse text like `load_scenario`. Relative paths start at `folder`."""
    document = _overridden(text, source, overrides)
    return scenario_of(document, source, folder), tomlkit.dumps(document)


def _overridden(text: str, source: str, overrides: Sequence[str]) -> tomlkit.TOMLDocument:
    document = parse_toml(text, source)
    for override in overrides:
        set_key(document, *parse_override(override))
    return document


def note_former_names(document: tomlkit.TOMLDocument, source: str) -> None:
    """Log the present names of metrics that a user's scenario expects under former names."""
    expect = document.unwrap().get("expect")
    if isinstance(expect, dict) and (note := former_names_note(f"{source}: expect", expect)):
        log.warning(note)


def parse_toml(text: str, source: str) -> tomlkit.TOMLDocument:
    """Parse a document and keep its comments. Raises ScenarioError, which names `source`."""
    try:
        return tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as exc:
        raise ScenarioError(f"{source}: not valid TOML: {exc}", reason=Reason.SCENARIO) from exc


def scenario_of(document: tomlkit.TOMLDocument, source: str, folder: Path) -> Scenario:
    """Return the scenario of a document without a [matrix]. Raises ScenarioError."""
    if "matrix" in document:
        raise ScenarioError(
            f"{source}: matrix: makes several scenarios of a file, and here is one expected",
            reason=Reason.SCENARIO,
        )
    try:
        scenario = Scenario.model_validate(document.unwrap())
    except ValidationError as exc:
        raise ScenarioError(
            "\n".join(_explain(source, exc)),
            hint="`barometer schema` prints every key with its meaning",
            reason=Reason.SCENARIO,
        ) from exc
    return _absolute_paths(scenario, folder)


def parse_override(override: str) -> tuple[tuple[str, ...], Any]:
    """Parse `device.bar=1GiB` into the parts of its key and its value. A value that is not TOML is
    a string. A dot within quotes does not end a part. Raises ScenarioError."""
    key, equals, value = override.partition("=")
    parts = tuple(part.strip().strip("'\"") for part in _DOT.split(key))
    if not equals or not all(parts):
        raise ScenarioError(
            f"--set {override}: expected key=value, for example device.bar=1GiB",
            reason=Reason.SCENARIO,
        )
    try:
        return parts, tomlkit.value(value.strip())
    except (tomlkit.exceptions.ParseError, ValueError):
        return parts, value.strip()


def set_key(document: tomlkit.TOMLDocument, parts: Sequence[str], value: Any) -> None:
    """Set a key, with the tables that lead to it. Raises ScenarioError if one of them is a
    value."""
    table: Any = document
    for part in parts[:-1]:
        table = table.setdefault(part, tomlkit.table())
        if not isinstance(table, Mapping):
            raise ScenarioError(
                f"--set {'.'.join(parts)}: {part} is a value, not a table", reason=Reason.SCENARIO
            )
    if parts[:-1] == ("expect",):  # in place of the same metric, whichever name the file gives it
        for name in [
            n for n in table if n != parts[1] and current_name(n) == current_name(parts[1])
        ]:
            del table[name]
    table[parts[-1]] = value


def _absolute_paths(scenario: Scenario, folder: Path) -> Scenario:
    """Make relative paths absolute; they start at the scenario's folder."""

    def absolute(arm: Arm) -> Arm:
        return arm.model_copy(update={"kernel": absolute_kernel(arm.kernel, folder)})

    arms = Arms(baseline=absolute(scenario.arms.baseline),
                candidate=absolute(scenario.arms.candidate))  # fmt: skip
    guest = scenario.guest and scenario.guest.model_copy(
        update={"kernel": absolute_kernel(scenario.guest.kernel, folder)}
    )
    host = scenario.host
    if host.ssh_config is not None:
        host = host.model_copy(update={"ssh_config": (folder / host.ssh_config).resolve()})
    return scenario.model_copy(update={"arms": arms, "guest": guest, "host": host})


def absolute_kernel(kernel: Kernel, folder: Path) -> Kernel:
    """Return the kernel with its relative paths resolved from `folder`."""
    more: dict[str, Any] = {}
    for key in ("dir", "tree", "module"):
        if (path := getattr(kernel, key, None)) is not None:
            more[key] = (folder / path).resolve()
    if series := getattr(kernel, "series", ()):
        more["series"] = tuple(
            p if (is_message_id(p) or is_range(p)) and not os.path.lexists(folder / p)
            else str((folder / p).resolve()) for p in series
        )  # fmt: skip
    if config := getattr(kernel, "config", ()):
        more["config"] = tuple(
            c if is_config_line(c) else str((folder / c).resolve()) for c in config
        )
    return kernel.model_copy(update=more)


def is_config_line(text: str) -> bool:
    """True if an item of a kernel's `config` is a line of configuration, not a file."""
    return text.startswith(("CONFIG_", "# CONFIG_"))


_HAVE_KINDS = ("kernel", "host", "device")
"""Keys whose tables have several forms: pydantic adds the form to an error's location."""


def _explain(source: str, error: ValidationError) -> list[str]:
    """Return one line per wrong key: `FILE: KEY: what is wrong; did you mean "NAME"?`"""
    lines: dict[str, str] = {}
    wrong_inside = {item["loc"][:-1] for item in error.errors()}
    for item in error.errors():
        if item["type"] == "too_short" and item["loc"] in wrong_inside:
            continue  # the list is empty only because its elements are wrong
        loc = item["loc"]  # after a kernel, host or device, the location names its form
        where = tuple(p for i, p in enumerate(loc) if not i or loc[i - 1] not in _HAVE_KINDS)
        key = ".".join(map(str, where))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            names = _names_at(where[:-1])
            message = "unknown key" + nearest_name(str(where[-1]), names, names)
        elif item["type"] == "literal_error":
            valid = re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", "")))
            if where and where[-1] == "[key]":
                where, wrong = where[:-1], str(where[-2])
                key = ".".join(map(str, where))
            else:
                wrong = str(item["input"])
            if valid:
                message = f'"{wrong}" is not one of the valid values' + nearest_name(
                    wrong, valid, valid
                )
        elif item["type"] == "kind":
            valid = re.findall(r'"([^"]*)"', message)
            key, wrong = f"{key}.kind", str(item["input"]["kind"])
            message = f'"{wrong}" is not one of the valid values' + nearest_name(
                wrong, valid, valid
            )
        elif item["type"] == "tuple_type":
            message = f'expected a list, for example ["{item["input"]}"]'
        elif item["type"] == "greater_than_equal" and item["ctx"]["ge"] >= MIB:
            message = f"needs {format_size(int(item['ctx']['ge']))} or more"
        elif item["type"] == "missing":
            message = "this key is needed and missing"
        lines.setdefault(key, ": ".join(filter(None, (source, key, message))))
    return list(lines.values()) or [f"{source}: {error}"]


def nearest_name(wrong: str, candidates: Sequence[str], every: Sequence[str] = ()) -> str:
    """Return `; did you mean "X"?`. If no candidate is near, return the list `every`, or "" if
    that is empty."""
    if near := difflib.get_close_matches(wrong, candidates, 1, 0.5):
        return f'; did you mean "{near[0]}"?'
    return f"; valid: {', '.join(every)}" if every else ""


def _names_at(where: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model at a place in the scenario."""
    annotation: Any = Scenario
    for part in where:
        models = [m for m in models_of(annotation) if part in m.model_fields]
        if not models:
            return []
        annotation = models[0].model_fields[str(part)].annotation
    return [name for model in models_of(annotation) for name in model.model_fields]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a key's value may be: one for a table, one for each form of a
    kernel."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [m for arg in get_args(annotation) for m in models_of(arg)]
    return []


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a scenario file, for editors."""
    schema = Scenario.model_json_schema()
    for model in schema["$defs"].values():
        for key in model["properties"].values():
            if key.get("pattern") == _SIZE.pattern and "default" in key:
                key["default"] = format_size(key["default"])  # as in a file
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "barometer scenario",
        **{k: v for k, v in schema.items() if k != "title"},
    }
