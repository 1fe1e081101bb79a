"""A kernel's configuration: the options that are requested, and the check that they came out.

guests/kernel/required.config   what a host kernel needs, whoever configures it
guests/kernel/host.config       barometer's own small configuration, on top of `allnoconfig`
guests/kernel/wanted.config     taken if a kernel has it

kconfig silently drops an option whose dependencies are not met. So the options of the first two
files, and the scenario's own, are looked up in the .config that it made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator.base.errors import ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.kernels.source.buildroot import KERNEL_FILES
from orchestrator.scenario.vocabulary import is_config_line

_LINE = re.compile(
    r"""CONFIG_(?P<name>\w+)=(?P<value>[ymn]|-?\d+|(?:0[xX])?[0-9a-fA-F]+|"(?:[^"\\]|\\.)*")\s*(?:\#.*)?"""
)
_OFF = re.compile(r"# CONFIG_(?P<name>\w+) is not set(?!\w).*")
_WHOLE = re.compile(r"(?m)^# (Linux/\S+ .* Kernel Configuration|Automatically generated file)")
"""One of the first lines of a .config that kconfig wrote, and that therefore has all symbols."""
_MOST_OF_A_FRAGMENT = 1000
"""Symbols from which a file is a whole configuration, whoever wrote it: those of Fedora's and
RHEL's sources begin with other lines. A fragment is some options that must all come out."""
_MOST_TOLD = 20
_SIGNING = {
    # the keys of whoever made a .config are not here, and a new key would differ in each build
    "SYSTEM_TRUSTED_KEYS": '""',
    "SYSTEM_REVOCATION_KEYS": '""',
    "MODULE_SIG": "n",
    # the release ends with barometer's own suffix
    "LOCALVERSION_AUTO": "n",
}

Symbols = Mapping[str, str]
"""Name without CONFIG_ -> value: y, m, n, a number, or a text in its quotes."""


@dataclass(frozen=True)
class Config:
    """The configuration that is requested of a kernel."""

    whole: str | None
    """A .config in place of barometer's; None for `allnoconfig` with barometer's options."""
    requested: Symbols
    """Symbols that must come out as requested: the scenario's, and barometer's own unless there is
    a whole .config."""
    origins: Mapping[str, str]
    """Requested symbol -> where it was requested: a file's name, `config` for a line of the
    scenario, or barometer's host.config."""
    required: Symbols = field(default_factory=dict)
    """Symbols that must come out as y or m, except for those that the scenario sets."""
    desired: Symbols = field(default_factory=dict)
    """Symbols that are set if the kernel has them."""

    @cached_property
    def digest(self) -> str:
        return digest_of({
            "whole": self.whole, "asked": dict(self.requested), "required": dict(self.required),
            "wanted": dict(self.desired), "schema": 1,
        })  # fmt: skip

    @property
    def target(self) -> str:
        """The kconfig target that makes a .config from `text`."""
        return "allnoconfig" if self.whole is None else "olddefconfig"

    def text(self) -> str:
        """Return the text that kconfig starts from, in which a later line wins."""
        if self.whole is None:
            return _lines({**self.required, **self.desired, **_SIGNING, **self.requested})
        symbols = parse_config(self.whole)
        lacking = {n: v for n, v in self.required.items() if symbols.get(n, "n") == "n"}
        return self.whole + "\n" + _lines({**lacking, **_SIGNING, **self.requested})

    def check(self, out: str, release: str) -> None:
        """Raise a ScenarioError that names every option that did not come out. `out` is the
        .config that kconfig made, `release` names the kernel."""
        got = parse_config(out)
        # what the scenario itself says comes first, then its files, then barometer's own
        order = {"config": 0, "barometer's host.config": 2}
        asked = sorted(self.requested, key=lambda name: order.get(self.origins[name], 1))
        lines = [
            f"CONFIG_{name}: asked {self.requested[name]} ({self.origins[name]}),"
            f" got {got.get(name, 'n')}"
            for name in asked
            if not _came_out(self.requested[name], got.get(name, "n"))
        ] + [
            f"CONFIG_{name}: {value} needed for a host, got n"
            for name, value in self.required.items()
            if name not in self.requested and got.get(name, "n") == "n"
        ]
        if lines:
            more = [f"and {len(lines) - _MOST_TOLD} more"] * (len(lines) > _MOST_TOLD)
            raise ScenarioError(
                f"the configuration of {release} lacks requested options:",
                evidence="\n".join([*lines[:_MOST_TOLD], *more]),
                hint="request the options that it depends on, too: search for its name in `make"
                " menuconfig` (the key /), which lists them if the kernel has the option at all",
                reason=Reason.CONFIG,
            )


def _came_out(requested: str, got: str) -> bool:
    """True if a symbol has the value that is requested. kconfig does not heed "is not set" for a
    number or a text."""
    return got == requested or (requested == "n" and got not in ("y", "m"))


def read_config(items: Sequence[str]) -> Config:
    """Read the lines and files of a kernel's `config`. Raises ScenarioError, which names a wrong
    line."""
    requested: dict[str, str] = {}
    origins: dict[str, str] = {}
    whole: str | None = None
    for item in items:
        if is_config_line(item):
            new, origin = _strict([item], "config"), "config"
        else:
            path = Path(item)
            text = _read(path)
            if _is_whole(text):
                if whole is not None:
                    raise ScenarioError(
                        f"{item}: a second whole .config; one can be the base of the others",
                        reason=Reason.CONFIG,
                    )
                whole = text
                continue
            new, origin = _strict(text.splitlines(), item), path.name
        _add(requested, new)
        origins |= dict.fromkeys(new, origin)
    required = {n: v for n, v in _own("required").items() if n not in requested}
    if whole is not None:
        return Config(whole, requested, origins, required)
    own = {n: v for n, v in _own("host").items() if n not in requested}
    desired = {n: v for n, v in _own("wanted").items() if n not in requested}
    by_us = dict.fromkeys(own, "barometer's host.config")
    return Config(None, {**own, **requested}, {**by_us, **origins}, required, desired)


def _is_whole(text: str) -> bool:
    if _WHOLE.search(text) and len(text.splitlines()) > 200:
        return True
    return len(parse_config(text)) >= _MOST_OF_A_FRAGMENT


def parse_config(text: str) -> dict[str, str]:
    """Parse the symbols of a .config, or of some of its lines. Other lines are ignored."""
    symbols: dict[str, str] = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.strip()):
            symbols[match["name"]] = match["value"]
        elif match := _OFF.fullmatch(line.strip()):
            _add(symbols, {match["name"]: "n"})
    return symbols


def _add(symbols: dict[str, str], new: Symbols) -> None:
    """Set symbols to the values of later lines. kconfig does not heed "is not set" for a number or
    a text."""
    for name, value in new.items():
        if value != "n" or symbols.get(name, "n") in ("y", "m", "n"):
            symbols[name] = value


def _own(name: str) -> dict[str, str]:
    return parse_config((KERNEL_FILES / f"{name}.config").read_text())


def _strict(lines: Iterable[str], origin: str) -> dict[str, str]:
    """Parse like `parse_config`, but raise ScenarioError for a line that is neither a symbol nor a
    comment. A line that begins with # is one, unless it says of a symbol that it is not set
    (conf_read_simple() in scripts/kconfig/confdata.c)."""
    symbols: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        new = parse_config(line)
        is_comment = line.lstrip().startswith("#") and origin != "config"
        if not new and line.strip() and not is_comment:
            word = re.match(r"[\w.]+", line.strip())
            near = nearest_name(word[0], ["CONFIG_"], ["CONFIG_NAME=y"]) if word else ""
            raise ScenarioError(
                f"{origin}, line {number}: {line.strip()!r} is no line of a kernel's configuration"
                + near,
                hint='CONFIG_NAME=y, =m, =n, =NUMBER or ="TEXT", or "# CONFIG_NAME is not set"',
                reason=Reason.CONFIG,
            )
        _add(symbols, new)
    return symbols


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig", errors="replace")  # some editors write the mark
    except OSError as exc:
        raise ScenarioError(
            f"config: {path} cannot be read: {exc.strerror}",
            hint='name a file, or write a line like "CONFIG_KSM=y"', reason=Reason.CONFIG,
        ) from exc  # fmt: skip


def _lines(symbols: Symbols) -> str:
    return "".join(f"CONFIG_{name}={value}\n" for name, value in symbols.items())
