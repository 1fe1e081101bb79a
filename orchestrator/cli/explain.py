"""The verb `explain`: what a metric, a key of a scenario or a reason is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from orchestrator.base.ends import EXIT_CODES, Ends
from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.cli.completions import complete_name
from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json


@dataclass(frozen=True)
class Key:
    """A key of a scenario, in one form of its table."""

    name: str
    """As `--set` takes it: device.bar."""
    form: str
    """The form of the table, such as `nested`; empty if it has only one."""
    values: tuple[str, ...]
    """Its values, if they are few; empty for any text or number."""
    default: str
    """As TOML has it; empty if the key is required, or has none."""
    meaning: str

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name, "form": self.form, "values": list(self.values),
            "default": self.default, "meaning": self.meaning,
        }  # fmt: skip


def explain_name(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="METRIC|KEY|REASON",
            help="Its name; all metrics without one.",
            autocompletion=complete_name,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain a metric, a key of a scenario, or a reason."""
    from orchestrator.base.spelling import nearest_name
    from orchestrator.scenario.metrics import METRIC_WORDS, WORDS, explain_metric, metric_json
    from orchestrator.scenario.vocabulary import current_name

    metrics, keys, reason = METRIC_WORDS, list[Key](), None
    if name is not None:
        metric = current_name(name).partition("@")[0]
        metrics = (WORDS[metric],) if metric in WORDS else ()
        every_key = [*dict.fromkeys(list_keys())]
        keys = [key for key in every_key if key.name == name]
        reason = parse_reason(name)
        if not (metrics or keys or reason):
            names = [*WORDS, *dict.fromkeys(key.name for key in every_key), *map(str, Reason)]
            raise ScenarioError(
                f"explain {name}: is no metric, no key of a scenario and no reason"
                + nearest_name(name, names, [*WORDS]),
                reason=Reason.COMMAND_LINE,
            )
    if as_json:
        print_json({
            "schema": 1, "metrics": [metric_json(words) for words in metrics],
            "keys": [key.to_json() for key in keys],
            "reasons": [reason_json(reason)] if reason else [],
        })  # fmt: skip
        return
    texts = [*map(explain_metric, metrics), *map(explain_key, keys)]
    print("\n\n".join([*texts, *([explain_reason(reason)] if reason else [])]))


def list_keys() -> Iterator[Key]:
    """Yield every key of a scenario, by the schema that `barometer schema` prints."""
    from orchestrator.scenario.factors import build_file_schema

    schema = build_file_schema()
    yield from _list_keys("", "", schema, schema["$defs"])


def _list_keys(
    prefix: str, form: str, table: Mapping[str, Any], models: Mapping[str, Any]
) -> Iterator[Key]:
    required = table.get("required", ())
    for name, value in table.get("properties", {}).items():
        at = f"{prefix}{name}"
        default = value.get("default")
        is_plain = name not in required and not isinstance(default, (dict, type(None)))
        values = tuple(json.dumps(choice) for choice in value.get("enum", ()))
        meaning = " ".join(str(value.get("description", "")).split())
        yield Key(at, form, values, json.dumps(default) if is_plain else "", meaning)
        forms = [one for several in ("oneOf", "anyOf") for one in value.get(several, ())]
        tables = [one["$ref"].rpartition("/")[2] for one in (value, *forms) if "$ref" in one]
        for model in tables:
            inner = models[model]
            kind = inner.get("properties", {}).get("kind", {})
            kinds = [kind["const"]] if "const" in kind else kind.get("enum", ())
            # a table of one form has the form of the table around it
            own = form if len(tables) == 1 else ", ".join(kinds) or _name_form(inner)
            yield from _list_keys(f"{at}.", own, inner, models)


def _name_form(table: Mapping[str, Any]) -> str:
    """Return the name of a form without a kind: of a kernel, the key that it needs."""
    return " and ".join(table.get("required", ()))


def explain_key(key: Key) -> str:
    lines = [key.name + (f" ({key.form})" if key.form else "")]
    lines += [key.meaning] if key.meaning else []
    lines += [f"values: {', '.join(key.values)}"] if key.values else []
    lines += [f"default: {key.default}"] if key.default else []
    return "\n".join(lines)


def explain_reason(reason: Reason) -> str:
    lines = [f"{reason}: {reason.meaning}", f"what to do: {reason.remedy}"]
    if codes := list_exit_codes(reason):
        lines.append(f"exit code: {', '.join(map(str, codes))}")
    if trial := describe_charge(reason):
        lines.append(f"a trial: {trial}")
    return "\n".join(lines)


def reason_json(reason: Reason) -> dict[str, object]:
    return {
        "name": str(reason), "meaning": reason.meaning, "remedy": reason.remedy,
        "exit_codes": list_exit_codes(reason), "trial": describe_charge(reason),
    }  # fmt: skip


def list_exit_codes(reason: Reason) -> list[int]:
    """Return the exit codes of commands that end for this reason."""
    return [*dict.fromkeys(code for end, code in EXIT_CODES.items() if end in reason.ends)]


def describe_charge(reason: Reason) -> str:
    """Return what becomes of a trial: whom its failure is charged to, or that it is invalid; empty
    for a reason that no trial has."""
    from orchestrator.evidence.faults import FAULTS

    if reason in FAULTS:
        fault = FAULTS[reason]
        return fault.charge + (f"; emulated: {fault.emulated}" if fault.emulated else "")
    return "invalid" if Ends.EVIDENCE in reason.ends else ""
