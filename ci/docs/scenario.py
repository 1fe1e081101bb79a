"""Every key of a scenario file, from the JSON schema that `barometer schema` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.scenario.factors import build_file_schema

TITLES = {
    "NestedHost": '[host] kind = "nested"', "MetalHost": '[host] kind = "metal"',
    "EmulatedDevice": '[device] kind = "ivshmem", "pci-testdev"',
    "HostDevice": '[device] kind = "hostdev"', "Guest": "[guest]", "Map": "[map]",
    "Arms": "[arms]", "Arm": "[arms.baseline], [arms.candidate]", "Trials": "[trials]",
    "Until": "[trials.until]", "Trace": "[trace]", "Judgement": "[judgement]",
    "History": "[history]", "DebKernel": "kernel = { deb }", "ModuleKernel": "kernel = { module }",
    "SourceKernel": "kernel = { source }", "TreeKernel": "kernel = { tree }",
    "DirKernel": "kernel = { dir }",
}  # fmt: skip
"""Name of a model -> how its table is written in a scenario."""


def format_keys() -> str:
    schema = build_file_schema()
    tables = [("Top level", schema), *((TITLES[name], schema["$defs"][name]) for name in TITLES)]
    return "\n".join(line for title, table in tables for line in _format_table(title, table))


def list_models() -> set[str]:
    """Return the models that a scenario is made of; each has a title here."""
    return set(build_file_schema()["$defs"])


def _format_table(title: str, table: Mapping[str, Any]) -> Iterator[str]:
    yield f"## `{title}`" if title[0] in "[k" else f"## {title}"
    yield ""
    if text := table.get("description"):
        yield f"{_flow(text)}\n"
    yield "| key | value | default | what it is |"
    yield "| --- | --- | --- | --- |"
    required = table.get("required", ())
    for key, value in table["properties"].items():
        default = "required" if key in required else _format_default(value)
        yield f"| `{key}` | {_format_type(value)} | {default} | {_flow(_describe(value))} |"
    yield ""


def _describe(value: Mapping[str, Any]) -> str:
    return str(value.get("description", ""))


def _flow(text: str) -> str:
    """Return a docstring as one paragraph of a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _format_default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{json.dumps(default)}`"


def _format_type(value: Mapping[str, Any]) -> str:
    if "$ref" in value:
        return _link(value["$ref"])
    for several in ("oneOf", "anyOf"):
        if several in value:
            kinds = [_format_type(one) for one in value[several] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{json.dumps(one)}`" for one in value["enum"])
    return _format_plain(value)


def _format_plain(value: Mapping[str, Any]) -> str:
    kind = value.get("type")
    if isinstance(kind, list):
        return _format_kinds(kind)
    if kind == "array":
        return f"list of {_format_type(value.get('items', {}))}"
    if kind in ("integer", "number"):
        return _format_range(value)
    if kind == "string" and value.get("format") == "path":
        return "path"
    return {"object": "table", "boolean": "`true`, `false`", "string": "text"}.get(
        str(kind), "any"
    )


def _format_kinds(kinds: Sequence[str]) -> str:
    return " or ".join({"string": "text", "integer": "number"}.get(kind, kind) for kind in kinds)


def _format_range(value: Mapping[str, Any]) -> str:
    least = value.get("minimum", value.get("exclusiveMinimum"))
    most = value.get("maximum", value.get("exclusiveMaximum"))
    if least is None and most is None:
        return "number"
    if most is None:
        return f"{'at least' if 'minimum' in value else 'more than'} {least}"
    return f"{least} to {most}"


def _link(reference: str) -> str:
    title = TITLES[reference.rpartition("/")[2]]
    return f"[`{title}`](#{_anchor(title)})"


def _anchor(title: str) -> str:
    """Return the anchor that Python-Markdown and GitHub give a heading."""
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -_")
    return "-".join(kept.split())
