"""Read and write records on the disk: JSON with a schema number, and a checksum that shows
damage."""

from __future__ import annotations

import json
import math
import re
import zlib
from typing import Any, Union

SCHEMA = 2
"""Schema 1 had neither number nor checksum."""
_LONGEST_INTEGER = 20
"""Most digits of an integer. A token has 19."""

Shape = Union[
    type, None, dict[str, "Shape"], list["Shape"], tuple["Shape", ...], "re.Pattern[str]", range
]
"""Shape of a value: a type; None; an object with at least these members; a list of one shape; a
choice (tuple); a text that matches as a whole; an integer in a range."""


class UnreadableError(Exception):
    """A record cannot be used; the message says why."""


def seal(record: dict[str, Any]) -> bytes:
    """Return the record as a line, without the newline."""
    whole = {**record, "schema": SCHEMA}
    return json.dumps({**whole, "sum": _sum(whole)}).encode()


def unseal(line: bytes, shape: Shape, *, newer: bool = False) -> dict[str, Any]:
    """Return the record in a line that `seal` made. With `newer` a record of a newer keeper is
    accepted, as long as it has what this keeper needs. Raises UnreadableError."""
    record = _parse(line)
    is_sealed = "schema" in record or "sum" in record
    schema = record.pop("schema", 1)
    if type(schema) is not int or schema < 1:
        raise UnreadableError("it is damaged: its schema is no number")
    if schema > SCHEMA and not newer:
        raise UnreadableError(
            f"a newer barometer wrote it (schema {schema}; this one reads {SCHEMA})"
        )
    found = record.pop("sum", None)
    if is_sealed and found != _sum({**record, "schema": schema}):
        raise UnreadableError("it is damaged: its checksum is wrong")
    if not has_shape(record, shape):
        raise UnreadableError("it lacks a member, or one has a wrong type")
    return record


def _parse(line: bytes) -> dict[str, Any]:
    def integer(digits: str) -> int:  # int() takes quadratic time for a long text, or refuses it
        if len(digits) > _LONGEST_INTEGER:
            raise ValueError("an integer is too long")
        return int(digits)

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON")

    try:
        record = json.loads(line.decode(), parse_int=integer, parse_constant=constant)
    except (ValueError, RecursionError) as exc:
        raise UnreadableError("it is damaged: it is no JSON") from exc
    if not isinstance(record, dict):
        raise UnreadableError("it is no JSON object")
    return record


def _sum(record: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"


def has_shape(value: object, shape: Shape) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(
            name in value and has_shape(value[name], member) for name, member in shape.items()
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(item, shape[0]) for item in value)
    if isinstance(shape, tuple):
        return any(has_shape(value, choice) for choice in shape)
    return value is None if shape is None else _is_one(value, shape)


def _is_one(value: object, shape: type | re.Pattern[str] | range) -> bool:
    if isinstance(value, str):
        is_text = shape is str or (isinstance(shape, re.Pattern) and shape.fullmatch(value))
        return bool(is_text) and _is_clean(value)
    if isinstance(value, (int, float)) and shape is float:
        return not isinstance(value, bool) and math.isfinite(value)
    if isinstance(shape, range):
        return type(value) is int and value in shape
    return type(value) is shape


def _is_clean(text: str) -> bool:
    """True if the kernel takes the text as an argument: no NUL, no half of a UTF-16 pair."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
