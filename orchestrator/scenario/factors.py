"""The [matrix] of a scenario file: factors and their values, expanded into cells.

A factor is a key of the scenario with a list of values. A cell is a scenario with one value of
each factor. Each cell is an A/B comparison of its own; all cells have the same arms, workload and
expectations.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import BaseModel

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.base.spelling import nearest_name
from orchestrator.scenario.explaining import build_schema, models_of
from orchestrator.scenario.loading import (
    build_scenario,
    note_former_names,
    parse_override,
    parse_toml,
    read_file,
    set_key,
)
from orchestrator.scenario.model import Scenario

MOST_CELLS = 64
_NAME_LENGTH = 60
_NO_FACTORS = ("arms", "trials", "matrix", "name", "expect", "workload", "history")


@dataclass(frozen=True)
class Cell:
    """One combination of the factors' values."""

    name: str
    """Made from the values, and safe as the name of a folder. "" in a file without [matrix]."""
    settings: dict[str, Any]
    """Key -> value as the file spells it, in the file's order."""
    scenario: Scenario
    text: str
    """A scenario file of its own, without [matrix]."""


@dataclass(frozen=True)
class ScenarioFile:
    name: str
    text: str
    """The file's text, with the overrides applied."""
    cells: tuple[Cell, ...]

    @property
    def has_matrix(self) -> bool:
        return self.cells[0].name != ""

    def select_cells(self, names: Sequence[str]) -> tuple[Cell, ...]:
        """Return the cells with these names, in the file's order; all cells if there are no names.
        Raises ScenarioError for a name that no cell has."""
        known = [cell.name for cell in self.cells]
        for name in names:
            if not self.has_matrix:
                raise ScenarioError(
                    f"--cell {name}: {self.name} has no [matrix], and so no cells",
                    reason=Reason.NO_SUCH_CELL,
                )
            if name not in known:
                raise ScenarioError(
                    f"--cell {name}: {self.name} has no such cell"
                    + nearest_name(name, known, known),
                    reason=Reason.NO_SUCH_CELL,
                )
        return tuple(cell for cell in self.cells if not names or cell.name in names)


def load_scenarios(path: Path, overrides: Sequence[str] = ()) -> ScenarioFile:
    """Load every scenario of a TOML file, with `key=value` overrides applied before its expansion.

    Raises a ScenarioError that names the file, the cell, the key and the nearest valid name.
    """
    return parse_scenarios(read_file(path), str(path), path.parent, overrides)


def parse_scenarios(
    text: str, source: str, folder: Path = Path(), overrides: Sequence[str] = ()
) -> ScenarioFile:
    """Parse a scenario file's text, as `load_scenarios` does. Relative kernel folders are taken
    from `folder`."""
    document = parse_toml(text, source)
    pinned = {}
    for override in overrides:
        parts, value = parse_override(override)
        if parts[0] == "matrix" and len(parts) > 1:
            _set_factor(document, ".".join(parts[1:]), value, source)
        else:
            set_key(document, parts, value)
            pinned[".".join(parts)] = override
    note_former_names(document, source)
    text = tomlkit.dumps(document)
    factors = _parse_factors(document, source)
    _check_not_overridden(factors, pinned)
    document.pop("matrix", None)
    if not factors:
        scenario = build_scenario(document, source, folder)
        return ScenarioFile(
            scenario.name, text, (Cell("", {}, scenario, tomlkit.dumps(document)),)
        )
    return ScenarioFile(
        str(document.unwrap().get("name")), text, _expand_cells(document, factors, source, folder)
    )


def _expand_cells(
    document: tomlkit.TOMLDocument, factors: dict[str, list[Any]], source: str, folder: Path
) -> tuple[Cell, ...]:
    """Return a cell for each combination of the factors' values. The last factor varies
    fastest."""
    combinations = [
        dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())
    ]
    base = tomlkit.dumps(document)
    cells: list[Cell] = []
    for name, settings in zip(_name_cells(combinations), combinations, strict=True):
        where = f"{source}: cell {name}"
        cell = parse_toml(base, where)
        for key, value in settings.items():
            set_key(cell, key.split("."), _to_toml(value))
        if isinstance(cell.get("name"), str):  # else build_scenario() reports it
            cell["name"] = f"{cell['name']}-{name}"
        scenario = build_scenario(cell, where, folder)
        cells.append(Cell(name, settings, scenario, tomlkit.dumps(cell)))
    _check_all_different(cells, source)
    return tuple(cells)


def _to_toml(value: Any) -> Any:
    """Convert a value for TOML so that a kernel, also one in a list, is an inline table."""
    if isinstance(value, list):
        array = tomlkit.array()
        array.extend(map(_to_toml, value))
        return array
    if isinstance(value, Mapping):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    return value


def _check_all_different(cells: Sequence[Cell], source: str) -> None:
    """Raise ScenarioError if two cells are the same: equal values may be spelled differently, such
    as 32GiB and 32768MiB."""
    for cell, other in itertools.combinations(cells, 2):
        if cell.scenario == other.scenario.model_copy(update={"name": cell.scenario.name}):
            key = next(k for k, value in cell.settings.items() if other.settings[k] != value)
            raise ScenarioError(
                f"{source}: matrix.{key}: {format_toml(cell.settings[key])} and"
                f" {format_toml(other.settings[key])} are the same",
                reason=Reason.SCENARIO,
            )


def _parse_factors(document: tomlkit.TOMLDocument, source: str) -> dict[str, list[Any]]:
    """Return key -> values, in the file's order. Raises a ScenarioError that names the key."""
    factors: dict[str, list[Any]] = {}
    for key, values in _flatten(document.unwrap().get("matrix", {}), source):
        wrong = _explain_wrong_key(key) or _explain_wrong_values(values)
        if key in factors:
            wrong = "named twice, as a quoted key and in tables"
        if wrong:
            raise ScenarioError(f"{source}: matrix.{key}: {wrong}", reason=Reason.SCENARIO)
        factors[key] = values
    sizes = [len(values) for values in factors.values()]
    if math.prod(sizes) > MOST_CELLS:
        product = " x ".join(f"{len(values)} of {key}" for key, values in factors.items())
        raise ScenarioError(
            f"{source}: matrix: {product} are {math.prod(sizes)} cells, more than {MOST_CELLS};"
            " split it into several files",
            reason=Reason.SCENARIO,
        )
    return factors


def _flatten(matrix: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Yield each key with its values. `"guest.firmware" = [...]` and `guest.firmware = [...]` are
    the same key."""
    if not isinstance(matrix, Mapping):
        raise ScenarioError(
            f'{source}: matrix: expected a table, for example "device.count" = [1, 4] below'
            " [matrix]",
            reason=Reason.SCENARIO,
        )
    for key, value in matrix.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{rest}", values) for rest, values in _flatten(value, source))
        else:
            yield key, value


def _set_factor(document: tomlkit.TOMLDocument, key: str, value: Any, source: str) -> None:
    """Set a factor within [matrix] to the value of an override, in whatever form the file has its
    key."""
    matrix = dict(_flatten(document.unwrap().get("matrix", {}), source)) | {key: value}
    table = tomlkit.table()
    for name, values in matrix.items():
        table[name] = _to_toml(values)
    document.pop("matrix", None)
    document["matrix"] = table


def _explain_wrong_key(key: str) -> str | None:
    top, known = key.partition(".")[0], list_factor_keys()
    if top in _NO_FACTORS:
        return (
            f"{top} cannot be a factor: every cell asks the same question; write another"
            " scenario file"
        )
    if key not in known:
        return "unknown key" + nearest_name(key, list(known), list(known))
    return None


def _explain_wrong_values(values: Any) -> str | None:
    if not isinstance(values, list):
        return f"expected a list of values, for example [{format_toml(values)}]"
    if not values:
        return "the list is empty: give it values, or take the key out"
    twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
    return None if twice is None else f"names {format_toml(twice)} twice"


def _check_not_overridden(factors: Mapping[str, Any], pinned: Mapping[str, str]) -> None:
    """Raise ScenarioError if an override sets a key that the matrix replaces in every cell."""
    for dotted, override in pinned.items():
        for key in factors:
            if f"{dotted}.".startswith(f"{key}."):
                raise ScenarioError(
                    f"--set {override}: [matrix] gives {key} its value in each cell",
                    hint=f"""--set 'matrix."{key}"=[...]', or --cell NAME, or --set matrix={{}}""",
                    reason=Reason.SCENARIO,
                )


@functools.cache
def list_factor_keys() -> Mapping[str, Any]:
    """Return every key that can be a factor -> the JSON schema of its value."""
    schema = build_schema()
    return {
        key: value
        for name in Scenario.model_fields
        if name not in _NO_FACTORS
        for key, value in _list_keys_below(name, Scenario, schema)
    }


def _list_keys_below(
    name: str, model: type[BaseModel], schema: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Yield the field `name` of a model and the keys below it, each with its JSON schema. The
    scenario's own fields are tables; only the keys in them are yielded."""
    inner = models_of(model.model_fields[name].annotation)
    properties = schema if model is Scenario else schema["$defs"][model.__name__]
    if model is not Scenario:
        yield name, properties["properties"][name]
    for below in inner:
        for field in below.model_fields:
            for key, value in _list_keys_below(field, below, schema):
                yield f"{name}.{key}", value


def build_file_schema() -> dict[str, Any]:
    """Return the JSON schema of a scenario file with its [matrix], for editors."""
    schema = build_schema()
    schema["properties"]["matrix"] = {
        "type": "object",
        "title": "Matrix",
        "description": (
            "Factors: keys of the scenario, as quoted dotted keys or in tables, each with a list"
            f" of values. Each combination is a cell, an A/B of its own; at most {MOST_CELLS}."
        ),
        "properties": {
            key: {
                "type": "array", "minItems": 1, "uniqueItems": True,
                "items": {k: v for k, v in value.items() if k != "default"},
            }
            for key, value in list_factor_keys().items()
        },
        "additionalProperties": {"type": "object"},
    }  # fmt: skip
    return schema


def _name_cells(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each cell, made from its values. If two names are equal, all get a
    number."""
    names = [
        "-".join(_make_label(key, value) for key, value in settings.items())[:_NAME_LENGTH].rstrip(
            "-._"
        )
        for settings in combinations
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{number}-{name}" for number, name in enumerate(names, 1)]


def _make_label(key: str, value: Any) -> str:
    """Return a value as a word of a cell's name: the suite, version or folder of a kernel, the
    key's name (or `no-` and the name) for a boolean, else the value itself."""
    last = key.rpartition(".")[2]
    if isinstance(value, bool):
        word = last if value else f"no-{last}"
    elif isinstance(value, Mapping):
        folder = str(value.get("dir", "")).rstrip("/").rpartition("/")[2]
        word = str(value.get("suite") or value.get("version") or folder)
    elif isinstance(value, list):
        word = "-".join(map(str, value))
    else:
        word = str(value)
    return re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-._") or last


def format_toml(value: Any) -> str:
    """Return a value as TOML spells it."""
    return str(tomlkit.item(_to_toml(value)).as_string())
