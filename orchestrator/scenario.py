"""A scenario file: its models, units and defaults. Every default of barometer lives here."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomlkit
import tomlkit.exceptions
from pydantic import (
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

from orchestrator.errors import ScenarioError

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}
_SIZE = re.compile(r"([1-9][0-9]*)\s*(KiB|MiB|GiB|TiB)")

Metric = Literal[
    "guest_boot_seconds",
    "guest_ssh_seconds",
    "host_boot_seconds",
    "bar_map_seconds",
    "bar_unmap_seconds",
    "bar_maps_per_boot",
    "bar_unmaps_per_boot",
    "bar_map_seconds_per_boot",
    "bar_unmap_seconds_per_boot",
    "pfn_lookups_per_map",
    "pfn_faults_per_map",
    "iommu_map_seconds",
]
Pass = Literal["plain", "timing", "counts"]
ArmName = Literal["baseline", "candidate"]
ARMS: tuple[ArmName, ...] = ("baseline", "candidate")


def parse_size(text: object) -> int:
    """Bytes of "32GiB", "512MiB", "1TiB".  Raises ValueError; decimal units are refused."""
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'{text!r} is not a size; write it like "32GiB" (KiB, MiB, GiB or TiB)')
    return int(match[1]) * _UNITS[match[2]]


def format_size(size: int) -> str:
    """The shortest exact spelling: 34359738368 is "32GiB"."""
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


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DebKernel(_Model):
    """A kernel from Debian's packages, resolved by apt with Debian's own keyring."""

    deb: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
    """Package name, for example linux-image-cloud-amd64."""
    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")] | None = None
    """Debian suite, for example trixie or trixie-backports."""
    version: str | None = None
    """Exact package version; with or without a suite."""

    @model_validator(mode="after")
    def _one_of(self) -> DebKernel:
        if self.suite is None and self.version is None:
            raise ValueError(f'{{ deb = "{self.deb}" }} needs a suite or a version beside it')
        return self

    def __str__(self) -> str:
        version = f"={self.version}" if self.version else ""
        return f"deb:{self.deb}{version}" + (f"@{self.suite}" if self.suite else "")


class DirKernel(_Model):
    """A kernel that is built already: a folder with vmlinuz and its modules."""

    dir: Path
    """Folder with vmlinuz (or boot/vmlinuz-*) and lib/modules/RELEASE; from the scenario's."""

    @field_validator("dir")
    @classmethod
    def _a_path(cls, value: Path) -> Path:
        if "\0" in str(value):
            raise ValueError("a path cannot hold a NUL byte")
        return Path(os.path.expanduser(value))  # noqa: PTH111  # Path's raises for ~nobody

    def __str__(self) -> str:
        return f"dir:{self.dir}"


def _kernel_tag(value: Any) -> str:
    if isinstance(value, Mapping):
        return "dir" if "dir" in value and "deb" not in value else "deb"
    return "dir" if isinstance(value, DirKernel) else "deb"


Kernel = Annotated[
    Annotated[DebKernel, Tag("deb")] | Annotated[DirKernel, Tag("dir")],
    Discriminator(_kernel_tag),
]


class Host(_Model):
    kind: Literal["nested"] = "nested"
    """The host under test is a VM of this machine."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """auto: kvm if a guest really runs under it, else tcg (emulation; seconds are emulated)."""
    viommu: Literal["intel", "virtio"] = "intel"
    """The IOMMU the host sees; intel is the one whose costs are comparable between kernels."""
    viommu_aw_bits: Literal[39, 48] = 48
    """Address width of the intel IOMMU; 39 refuses a BAR that the guest places above 512 GiB."""
    phys_bits: Annotated[int, Field(ge=36, le=52)] = 46
    """Physical address bits of the host's CPU; the BAR must fit into its 64-bit window."""
    memory: Size = 4 * GIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 2
    cmdline: str = ""
    """Appended to the host's kernel command line, in both arms."""


class Device(_Model):
    kind: Literal["ivshmem", "pci-testdev"] = "ivshmem"
    """ivshmem: a sparse shared-memory file backs the BAR. pci-testdev: a BAR without memory."""
    bar: BarSize = 32 * GIB
    """Size of the large BAR: a power of two from 1MiB to 1TiB."""


class Guest(_Model):
    kernel: Kernel
    """The same in both arms: its PCI code decides how often a BAR is mapped."""
    memory: Size = 512 * MIB
    cpus: Annotated[int, Field(ge=1, le=64)] = 1
    cmdline: str = ""
    """Appended to the guest's kernel command line, in both arms."""


class Arm(_Model):
    kernel: Kernel


class Arms(_Model):
    baseline: Arm
    """The unpatched kernel."""
    candidate: Arm
    """The patched kernel."""

    def __getitem__(self, name: ArmName) -> Arm:
        return self.baseline if name == "baseline" else self.candidate


class Trials(_Model):
    pairs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pairs of trials: one host boot of each arm; the order flips from pair to pair."""
    seed: Annotated[int, Field(ge=0)] = 0
    """An even seed starts with the baseline, an odd one with the candidate."""


class Trace(_Model):
    passes: Annotated[tuple[Pass, ...], Field(min_length=1)] = ("plain", "timing", "counts")
    """plain: boot times, untraced. timing: a few records per map. counts: exact page counts."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Trace:
        if len(set(self.passes)) != len(self.passes):
            raise ValueError("each pass is named once")
        return self


class Scenario(_Model):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    workload: Literal["guest-boot"] = "guest-boot"
    host: Host = Host()
    device: Device = Device()
    guest: Guest
    arms: Arms
    trials: Trials = Trials()
    trace: Trace = Trace()
    expect: dict[Metric, Literal["improved", "not-regressed", "regressed"]] = Field(
        default_factory=dict
    )
    """What each metric must come out as, for exit code 0."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Scenario:
        if self.guest.memory == self.device.bar:
            raise ValueError(
                f"guest.memory and device.bar are both {format_size(self.device.bar)}: the maps of"
                " the guest's memory could not be told from those of the BAR"
            )
        if not 128 * MIB <= self.guest.memory <= self.host.memory - GIB:
            raise ValueError(
                f"guest.memory is {format_size(self.guest.memory)}; it needs 128MiB or more, and"
                f" 1GiB less than host.memory ({format_size(self.host.memory)}) or less"
            )
        return self


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> tuple[Scenario, str]:
    """The scenario in a TOML file with `key=value` overrides, and its text with them applied.

    Raises ScenarioError that names the file, the key and the nearest valid name.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        nearest = difflib.get_close_matches(path.name, _toml_files(path), 1)
        raise ScenarioError(
            f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}",
            hint=f"did you mean {path.parent / nearest[0]}?" if nearest else "",
            reason="scenario",
        ) from exc
    return parse_scenario(text, str(path), path.parent, overrides)


def _toml_files(path: Path) -> list[str]:
    try:
        return [p.name for p in path.parent.glob("*.toml")]
    except OSError:
        return []


def parse_scenario(
    text: str, source: str, folder: Path = Path(), overrides: Sequence[str] = ()
) -> tuple[Scenario, str]:
    """As `load_scenario`, from text. Relative kernel folders are taken from `folder`."""
    try:
        document = tomlkit.parse(text)
    except tomlkit.exceptions.ParseError as exc:
        raise ScenarioError(f"{source}: not valid TOML: {exc}", reason="scenario") from exc
    for override in overrides:
        _apply_override(document, override)
    data = document.unwrap()
    try:
        scenario = Scenario.model_validate(data)
    except ValidationError as exc:
        raise ScenarioError(
            "\n".join(_explain(source, exc)),
            hint="`barometer schema` prints every key with its meaning",
            reason="scenario",
        ) from exc
    return _absolute_dirs(scenario, folder), tomlkit.dumps(document)


def _apply_override(document: tomlkit.TOMLDocument, override: str) -> None:
    key, equals, value = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ScenarioError(
            f"--set {override}: expected key=value, for example device.bar=1GiB", reason="scenario"
        )
    try:
        parsed: Any = tomlkit.value(value.strip())
    except (tomlkit.exceptions.ParseError, ValueError):
        parsed = value.strip()
    table: Any = document
    for part in parts[:-1]:
        table = table.setdefault(part, tomlkit.table())
        if not isinstance(table, Mapping):
            raise ScenarioError(
                f"--set {override}: {part} is a value, not a table", reason="scenario"
            )
    table[parts[-1]] = parsed


def _absolute_dirs(scenario: Scenario, folder: Path) -> Scenario:
    def absolute(kernel: Kernel) -> Kernel:
        if isinstance(kernel, DirKernel):
            return DirKernel(dir=(folder / kernel.dir).resolve())
        return kernel

    arms = Arms(
        baseline=Arm(kernel=absolute(scenario.arms.baseline.kernel)),
        candidate=Arm(kernel=absolute(scenario.arms.candidate.kernel)),
    )
    guest = scenario.guest.model_copy(update={"kernel": absolute(scenario.guest.kernel)})
    return scenario.model_copy(update={"arms": arms, "guest": guest})


def _explain(source: str, error: ValidationError) -> list[str]:
    """One line per wrong key: `FILE: KEY: what is wrong; did you mean "NAME"?`"""
    lines: dict[str, str] = {}
    for item in error.errors():
        loc = item["loc"]  # a kernel's kind stands in the location behind "kernel"
        where = tuple(p for i, p in enumerate(loc) if not i or loc[i - 1] != "kernel")
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
        elif item["type"] == "missing":
            message = "this key is needed and missing"
        lines.setdefault(key, f"{source}: {key}: {message}")
    return list(lines.values()) or [f"{source}: {error}"]


def nearest_name(wrong: str, candidates: Sequence[str], every: Sequence[str]) -> str:
    """`; did you mean "X"?`, or the whole list where nothing is near."""
    near = difflib.get_close_matches(wrong, candidates, 1, 0.5)
    return f'; did you mean "{near[0]}"?' if near else f"; valid: {', '.join(every)}"


def _names_at(where: tuple[int | str, ...]) -> list[str]:
    """The field names of the model at a place in the scenario."""
    annotation: Any = Scenario
    for part in where:
        models = [m for m in _models_of(annotation) if part in m.model_fields]
        if not models:
            return []
        annotation = models[0].model_fields[str(part)].annotation
    return [name for model in _models_of(annotation) for name in model.model_fields]


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [m for arg in get_args(annotation) for m in _models_of(arg)]
    return []


def json_schema() -> dict[str, Any]:
    """The JSON schema of a scenario file, for editors."""
    schema = Scenario.model_json_schema()
    for model in schema["$defs"].values():
        for key in model["properties"].values():
            if key.get("pattern") == _SIZE.pattern and "default" in key:
                key["default"] = format_size(key["default"])  # as a file says it
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "barometer scenario",
        **{k: v for k, v in schema.items() if k != "title"},
    }
