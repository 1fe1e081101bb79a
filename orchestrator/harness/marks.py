"""The keys of a scenario that a test sets by its marks, merged and checked. Boots nothing.

`@pytest.mark.barometer(...)` takes tables and keys of a scenario by name, and texts such as
"device.bar=1GiB" as `--set` does. Marks of a module, a class, a function and a parameter are
merged in this order, key by key; within one of them the mark that was applied last wins.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomlkit

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.scenario.kernel_spec import parse_kernel
from orchestrator.scenario.loading import parse_override, parse_scenario
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import current_name

if TYPE_CHECKING:
    import pytest
    from _pytest.nodes import Node

MARK = "barometer"
DIMENSIONS = {
    "bar_size": ("device", "bar"), "firmware": ("guest", "firmware"),
    "guest_kernel": ("guest", "kernel"),
}  # fmt: skip
"""Fixture -> key of the scenario that its parameter sets."""
Keys = dict[str, Any]
"""Tables and keys of a scenario, as a TOML parser returns them."""


@dataclass(frozen=True)
class MarkedKeys:
    """The keys that the marks of a test set, and where."""

    keys: Keys
    places: Mapping[str, str]
    """Key, or a table above it -> `FILE:LINE` of the mark that set it last."""
    place: str
    """`FILE:LINE` of the test."""

    def apply(self, base: Keys, folder: Path = Path()) -> tuple[Scenario, str]:
        """Return the scenario of `base` with these keys, and its text. Relative paths start at
        `folder`. Raises ScenarioError, whose lines begin with the place of the mark."""
        source = "marks"
        text = tomlkit.dumps(merge_tables(base, self.keys))
        try:
            return parse_scenario(text, source, folder)
        except ScenarioError as exc:
            lines = (line.removeprefix(f"{source}: ") for line in exc.message.splitlines())
            message = "\n".join(f"{self._place_of(line)}: {line}" for line in lines)
            raise ScenarioError(message, hint=exc.hint, reason=exc.reason) from exc

    def _place_of(self, line: str) -> str:
        """Return the place of the mark with the key that a line begins with, else of the nearest
        table above it, else the test's."""
        key = line.partition(":")[0]
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places.get(key, self.place)


def collect_keys(node: pytest.Item) -> MarkedKeys:
    """Merge the marks of a test, and the parameters of its fixtures in DIMENSIONS. Raises
    ScenarioError for a text that is no key=value, with its place."""
    keys: Keys = {}
    places: dict[str, str] = {}
    path = getattr(node, "path", Path())
    place = f"{path}:{(node.reportinfo()[1] or 0) + 1}"
    for level in node.listchain():
        for mark in level.own_markers:
            if mark.name != MARK:
                continue
            of_mark: Keys = dict(mark.kwargs)
            for text in mark.args:
                of_mark = merge_tables(of_mark, _parse_text(text, place))
            keys = merge_tables(keys, of_mark)
            for key in _list_keys(of_mark):
                places[key] = _locate_mark(level, mark, key.partition(".")[0]) or place
    parameters = getattr(getattr(node, "callspec", None), "params", {})
    for fixture in DIMENSIONS.keys() & parameters.keys():
        table, key = DIMENSIONS[fixture]
        keys = merge_tables(keys, {table: {key: _spell(parameters[fixture], fixture)}})
    return MarkedKeys(keys, places, place)


def _spell(value: object, fixture: str) -> object:
    """Return a parameter's value as a scenario spells it; a kernel may be spelled as in `ab`."""
    if fixture == "guest_kernel" and isinstance(value, str):
        kernel = parse_kernel(value, fixture, folder=Path.cwd())
        return kernel.model_dump(mode="json", exclude_defaults=True)
    return value


def _parse_text(text: object, place: str) -> Keys:
    if not isinstance(text, str):
        raise ScenarioError(
            f"{place}: {MARK}({text!r}): expected a text such as \"device.bar=1GiB\", or keys by"
            " name",
            reason=Reason.SCENARIO,
        )  # fmt: skip
    try:
        parts, value = parse_override(text)
    except ScenarioError as exc:
        message = f"{place}: {MARK}: {exc.message.removeprefix('--set ')}"
        raise ScenarioError(message, reason=exc.reason) from exc
    unwrapped = value.unwrap() if hasattr(value, "unwrap") else value
    return functools.reduce(lambda inner, part: {part: inner}, reversed(parts), unwrapped)


def _list_keys(table: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield the keys of a table, and of those in it, with dots."""
    for key, value in table.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _list_keys(value, f"{above}{key}.")


def merge_tables(base: Mapping[str, Any], over: Mapping[str, Any]) -> Keys:
    """Return `base` with the keys of `over`, table by table. A kernel, and a table of another
    `kind`, takes the place of the whole table: the keys of two kinds do not go together."""
    merged = dict(base)
    for key, value in over.items():
        if key == "expect" and isinstance(value, Mapping):  # metrics may have former names
            before = merged.get(key, {})
            merged[key] = {current_name(n): v for n, v in (*before.items(), *value.items())}
            continue
        before = merged.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and key != "kernel":
            is_other = "kind" in value and value["kind"] != before.get("kind", value["kind"])
            merged[key] = merge_tables({} if is_other else before, value)
        else:
            merged[key] = merge_tables({}, value) if isinstance(value, Mapping) else value
    return merged


def _locate_mark(level: Node, mark: pytest.Mark, key: str) -> str | None:
    """Return `FILE:LINE` of the key in a mark of a module, a class or a function; None if the
    source does not show it there: a base class or a list of marks may have it."""
    path = getattr(level, "path", None)
    names = [
        str(getattr(node, "originalname", None) or node.name)
        for node in level.listchain() if getattr(node, "path", None) == path
    ]  # fmt: skip
    body: list[ast.stmt] = _parse_source(path)
    roots: Iterable[ast.AST] = [s for s in body if isinstance(s, ast.Assign)]
    for name in names:
        if (defined := _find_definition(body, name)) is not None:
            body = defined.body
            own = [s for s in body if isinstance(s, ast.Assign)]
            roots = [*defined.decorator_list, *(own if isinstance(defined, ast.ClassDef) else [])]
    lines = [line for root in roots for line in _find_key(root, mark, key)]
    return f"{path}:{lines[-1]}" if lines else None


_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _find_definition(body: Iterable[ast.stmt], name: str) -> _Definition | None:
    return next((s for s in body if isinstance(s, _Definition) and s.name == name), None)


@functools.lru_cache(maxsize=64)
def _parse_source(path: Path | None) -> list[ast.stmt]:
    try:
        return ast.parse(path.read_text("utf-8")).body if path is not None else []
    except (OSError, SyntaxError, ValueError):
        return []


def _find_key(root: ast.AST, mark: pytest.Mark, key: str) -> Iterator[int]:
    """Yield the lines of a key in those marks below `root` that may be this one."""
    for call in ast.walk(root):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == MARK:
            yield from (
                word.value.lineno for word in call.keywords
                if word.arg == key and _may_be(word.value, mark.kwargs.get(key))
            )  # fmt: skip
            for text in call.args:
                words = str(text.value) if isinstance(text, ast.Constant) else ""
                if words in mark.args and words.startswith((f"{key}.", f"{key}=")):
                    yield text.lineno


def _may_be(expression: ast.expr, value: object) -> bool:
    """True unless the expression is a literal of another value."""
    try:
        return bool(ast.literal_eval(expression) == value)
    except ValueError:
        return value is not None
