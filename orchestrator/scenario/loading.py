"""Load a scenario file with overrides."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit.exceptions
from pydantic import ValidationError

from orchestrator.base.errors import ScenarioError
from orchestrator.base.installed import packaged
from orchestrator.base.reasons import Reason
from orchestrator.scenario.explaining import explain
from orchestrator.scenario.kernel_forms import resolve_kernel_paths
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.trials import Arm, Arms
from orchestrator.scenario.vocabulary import current_name, former_names_note

_log = logging.getLogger("barometer.scenario")


_DOT = re.compile(r"""\.(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")
"""Dots that separate the parts of a dotted key; a dot within quotes does not."""


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> tuple[Scenario, str]:
    """Load the scenario of a TOML file with `key=value` overrides, and its text with them applied.

    Raises ScenarioError, which names the file, the key and the nearest valid name.
    """
    document = _apply_overrides(read_file(path), str(path), overrides)
    note_former_names(document, str(path))
    return build_scenario(document, str(path), path.parent), tomlkit.dumps(document)


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
        nearest = difflib.get_close_matches(path.name, _list_toml_files(path) - {path.name}, 1)
        examples = f"examples are in {packaged('fixtures') / 'scenarios'}"
        raise ScenarioError(
            f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}",
            hint=f"did you mean {path.parent / nearest[0]}?" if nearest else examples,
            reason=Reason.SCENARIO,
        ) from exc
    return text


def _list_toml_files(path: Path) -> set[str]:
    try:
        return {p.name for p in path.parent.glob("*.toml")}
    except OSError:
        return set()


def parse_scenario(
    text: str, source: str, folder: Path = Path(), overrides: Sequence[str] = ()
) -> tuple[Scenario, str]:
    """Parse text like `load_scenario`. Relative paths start at `folder`."""
    document = _apply_overrides(text, source, overrides)
    return build_scenario(document, source, folder), tomlkit.dumps(document)


def _apply_overrides(text: str, source: str, overrides: Sequence[str]) -> tomlkit.TOMLDocument:
    document = parse_toml(text, source)
    for override in overrides:
        set_key(document, *parse_override(override))
    return document


def note_former_names(document: tomlkit.TOMLDocument, source: str) -> None:
    """Log the present names of metrics that a user's scenario expects under former names."""
    expect = document.unwrap().get("expect")
    if isinstance(expect, dict) and (note := former_names_note(f"{source}: expect", expect)):
        _log.warning(note)


def parse_toml(text: str, source: str) -> tomlkit.TOMLDocument:
    """Parse a document and keep its comments. Raises ScenarioError, which names `source`."""
    try:
        return tomlkit.parse(text)
    except tomlkit.exceptions.TOMLKitError as exc:
        raise ScenarioError(f"{source}: not valid TOML: {exc}", reason=Reason.SCENARIO) from exc


def build_scenario(document: tomlkit.TOMLDocument, source: str, folder: Path) -> Scenario:
    """Return the scenario of a document without a [matrix]. Raises ScenarioError."""
    if "matrix" in document:
        raise ScenarioError(
            f"{source}: matrix: makes several scenarios, and only one is expected here",
            reason=Reason.SCENARIO,
        )
    try:
        scenario = Scenario.model_validate(document.unwrap())
    except ValidationError as exc:
        raise ScenarioError(
            "\n".join(explain(source, exc)),
            hint="`barometer schema` prints every key with its meaning",
            reason=Reason.SCENARIO,
        ) from exc
    return _resolve_paths(scenario, folder)


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


def _resolve_paths(scenario: Scenario, folder: Path) -> Scenario:
    """Make relative paths absolute; they start at the scenario's folder."""

    def absolute(arm: Arm) -> Arm:
        return arm.model_copy(update={"kernel": resolve_kernel_paths(arm.kernel, folder)})

    arms = Arms(baseline=absolute(scenario.arms.baseline),
                candidate=absolute(scenario.arms.candidate))  # fmt: skip
    guest = scenario.guest and scenario.guest.model_copy(
        update={"kernel": resolve_kernel_paths(scenario.guest.kernel, folder)}
    )
    host = scenario.host
    if host.ssh_config is not None:
        host = host.model_copy(update={"ssh_config": (folder / host.ssh_config).resolve()})
    return scenario.model_copy(update={"arms": arms, "guest": guest, "host": host})
