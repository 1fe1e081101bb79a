"""Types of single values in a scenario file: sizes, shares, expectations, addresses, words."""

from __future__ import annotations

import difflib
import operator
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from orchestrator.formats.units import MIB, PREFIXES, SIZE, TIB, format_size, parse_size
from orchestrator.scenario.metrics import MetricKind
from orchestrator.scenario.vocabulary import word_name


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


_size_schema = WithJsonSchema({"type": "string", "pattern": SIZE.pattern, "examples": ["32GiB"]})


_as_text = PlainSerializer(format_size, return_type=str)


ByteSize = Annotated[int, BeforeValidator(parse_size), _as_text, _size_schema]


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


_INSTRUCTIONS = tuple(PREFIXES["Ginsn"])


_BOUND = re.compile(
    r"(<=|>=|<|>)\s*(([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*"
    rf"(x|{'|'.join((*PREFIXES['s'], *_INSTRUCTIONS))})?)"
)


Bounded = Literal["ratio", "count", "s", "Ginsn"]
"""What a bound limits: the ratio candidate / baseline, or the candidate's own number in a unit."""


@dataclass(frozen=True)
class Bound:
    """A bound that a scenario sets: on the ratio candidate / baseline (`<= 1.02`, `<= 2x`), or on
    the candidate's own number (`<= 1ms`, `<= 50 kinsn`; of a count `<= 32`)."""

    sign: Literal["<=", ">=", "<", ">"]
    limit: float
    """In the unit of what is bounded."""
    unit: Literal["", "x", "s", "Ginsn"] = ""
    """The spelled unit without its prefix; x: times the baseline's."""
    spelled: str = ""
    """The number with its unit, as the scenario spells it."""

    def bounded(self, kind: MetricKind) -> Bounded | None:
        """Return what the bound limits of a metric of this kind; None if it cannot apply. Without
        a unit a whole number limits a count, and any other number a ratio."""
        if self.unit == "s":
            return None if kind == "count" else "s"
        if self.unit == "Ginsn":
            return "Ginsn" if kind == "cost" else None
        is_number = kind == "count" and not self.unit and self.spelled.isdecimal()
        return "count" if is_number else "ratio"

    def holds(self, number: float) -> bool:
        compare = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}
        return bool(compare[self.sign](number, self.limit))

    @property
    def limits_above(self) -> bool:
        """True if the bound keeps the candidate from being dearer."""
        return self.sign in ("<=", "<")

    def __str__(self) -> str:
        return f"{self.sign} {self.spelled or f'{self.limit:g}'}"


def parse_bound(text: str) -> Bound | None:
    """Parse a bound as a scenario spells it; None if the text is none."""
    match = _BOUND.fullmatch(text.strip())
    if match is None:
        return None
    sign, spelled, number, suffix = match.groups()
    limit, unit = float(number), ""
    for name, prefixes in PREFIXES.items():
        if suffix in prefixes:
            limit, unit = limit * prefixes[suffix], name
    return Bound(
        cast(Literal["<="], sign), limit, cast(Literal["x"], suffix if suffix == "x" else unit),
        spelled,
    )  # fmt: skip


def _parse_expectation(text: object) -> object:
    if isinstance(text, str) and text not in _OUTCOMES:
        bound = parse_bound(text)
        if bound is None:
            near = difflib.get_close_matches(text, _OUTCOMES, 1, 0.5)
            raise ValueError(
                f'"{text}" is not an expectation'
                + (f'; did you mean "{near[0]}"?' if near else "")
                + f': one of {", ".join(_OUTCOMES)}, a bound of the ratio as "<= 1.02", or a'
                ' bound of the candidate\'s own number as "<= 1ms", "<= 50 kinsn", "<= 32"'
            )
        return bound
    return text


PatchSources = tuple[Annotated[str, Field(min_length=1)], ...]
"""Sources of patches, in the order in which the patches are applied."""


Expectation = Annotated[
    Literal["improved", "equivalent", "not-regressed", "regressed"] | Bound,
    BeforeValidator(_parse_expectation),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({
        "anyOf": [{"enum": list(_OUTCOMES)}, {"type": "string", "pattern": _BOUND.pattern}],
        "examples": ["improved", "<= 1.02", "<= 1ms", "<= 50 kinsn", "<= 32"],
    }),
]  # fmt: skip


class ScenarioModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _expand_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("a path cannot hold a NUL byte")
    return Path(os.path.expanduser(value))  # noqa: PTH111  # Path.expanduser() raises for ~nobody


KernelPath = Annotated[Path, AfterValidator(_expand_path)]


DebianSuite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]


_OWN_WORDS = ("barometer.token", "console", "init", "panic", "root")


LONGEST_CMDLINE = 1800
"""Most characters that a scenario may add to a kernel's command line. x86 kernels keep 2048 bytes
of it (COMMAND_LINE_SIZE), and barometer's own words take some of them."""


def _check_words(cmdline: str) -> str:
    if not all(" " <= c <= "~" for c in cmdline):
        raise ValueError("a kernel's command line must be printable ASCII on one line")
    if '"' in cmdline:
        raise ValueError("a word cannot contain a quote: the kernel takes quotes off")
    if len(cmdline) > LONGEST_CMDLINE:
        raise ValueError(f"it has {len(cmdline)} characters; there is room for {LONGEST_CMDLINE}")
    for word in cmdline.split():
        if word_name(word) in _OWN_WORDS:
            raise ValueError(f'"{word}": {word.partition("=")[0]} is set by barometer itself')
    return cmdline


CommandLine = Annotated[str, AfterValidator(_check_words)]
"""Words of a host's kernel command line, besides those that barometer needs."""


_ADDRESS = re.compile(r"(ssh://)?[A-Za-z0-9_][A-Za-z0-9_.:@%\[\]-]*/?")


def _check_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError(
            f'"{text}" is not an SSH address: expected a name that ssh knows, "root@gpu1.lab" or'
            ' "ssh://root@gpu1.lab:2222"'
        )
    return text


def _check_command(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is not a command line: {exc}") from exc
    if not words:
        raise ValueError("the command is empty: leave the key out")
    return text


SshAddress = Annotated[str, AfterValidator(_check_address)]


Command = Annotated[str, AfterValidator(_check_command)]
"""A program and its arguments, quoted as for a shell. It runs without a shell."""


FunctionAddress = Annotated[str, Field(pattern=r"^[0-9a-f]{4,8}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$")]
"""A PCI function as sysfs names it. Domains behind Intel's VMD begin at 10000."""


def _parse_map_size(text: object) -> object:
    return text if text == "full" else parse_size(text)


MapSize = Annotated[
    int | Literal["full"],
    BeforeValidator(_parse_map_size),
    PlainSerializer(lambda size: size if size == "full" else format_size(size), return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"full|{SIZE.pattern}", "examples": ["full"]}),
]


PARAMETER = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


SETTING = re.compile(r"/(sys|proc/sys)(/[^/\0\s]+)+")


def _parse_scalar(value: object) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    if not isinstance(value, str | int) or not str(value) or re.search(r"[\s\0\"]", str(value)):
        raise ValueError(
            f"{value!r} is not a value: expected a number, true, false, or a word without spaces"
        )
    return str(value)


Scalar = Annotated[
    str,
    BeforeValidator(_parse_scalar),
    WithJsonSchema({"type": ["string", "integer", "boolean"]}),
]
"""A value as the kernel takes it; true becomes Y."""
