"""Explain what is wrong with a scenario file; its JSON schema."""

from __future__ import annotations

import re
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.base.spelling import nearest_name
from orchestrator.formats.units import MIB, SIZE, format_size
from orchestrator.scenario.model import Scenario

_HAVE_KINDS = ("kernel", "host", "device")
"""Keys whose tables have several forms: pydantic adds the form to an error's location."""


def explain(source: str, error: ValidationError) -> list[str]:
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
            names = _list_names_at(where[:-1])
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


def _list_names_at(where: tuple[int | str, ...]) -> list[str]:
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


def build_schema() -> dict[str, Any]:
    """Return the JSON schema of a scenario file, for editors."""
    schema = Scenario.model_json_schema()
    for model in schema["$defs"].values():
        for key in model["properties"].values():
            if key.get("pattern") == SIZE.pattern and "default" in key:
                key["default"] = format_size(key["default"])  # as in a file
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "barometer scenario",
        **{k: v for k, v in schema.items() if k != "title"},
    }
