"""The man page: every verb with its arguments and options, as `--help` has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from orchestrator import __version__
from orchestrator.base.ends import EXIT_CODES, Ends
from orchestrator.cli.entry import app

_NAME = "what a host kernel costs a guest that owns a device with a huge PCI BAR"
_ENDS = {
    Ends.INPUT: "The command line, or a file that it names, is wrong. Nothing was booted.",
    Ends.BENCH: "The bench failed.",
    Ends.EVIDENCE: "The evidence is invalid, or it decides nothing.",
    Ends.LEFT: "recover: something is left on the machine.",
    Ends.BUG: "A bug in barometer.",
    Ends.INTERRUPT: "A signal ended it.",
}
_VARIABLES = {
    "BAROMETER_CACHE": "Folder of kernels, images and builds (default: ~/.cache/barometer).",
    "BAROMETER_STATE": "Folder of records of what runs (default: ~/.local/state/barometer).",
    "BAROMETER_HISTORY": "Store that runs are added to.",
    "BAROMETER_MIRROR": "Mirror of Debian's packages.",
    "BAROMETER_SECURITY_MIRROR": "Mirror of Debian's security updates.",
}


def format_man_page() -> str:
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="barometer")
    lines = [
        f'.TH BAROMETER 1 "" "barometer {__version__}" "User commands"',
        ".SH NAME", f"barometer \\- {_NAME}",
        ".SH SYNOPSIS", ".B barometer", ".I VERB", "[OPTION...] [ARGUMENT...]",
        ".SH VERBS",
    ]  # fmt: skip
    for name, verb in getattr(command, "commands", {}).items():
        lines += _format_verb(context, name, verb)
    lines += [".SH EXIT STATUS", *_item("0", "As expected."), *_item("1", "Not as expected.")]
    for end, text in _ENDS.items():
        lines += _item(str(EXIT_CODES[end]), text)
    lines.append(".SH ENVIRONMENT")
    for name, text in _VARIABLES.items():
        lines += _item(name, text)
    return "\n".join(lines) + "\n"


def _format_verb(parent: Any, name: str, verb: Any) -> Iterator[str]:
    """`parent`, `verb`: context and command of the click that typer bundles, which is private."""
    context = verb.context_class(verb, info_name=name.rpartition(" ")[2], parent=parent)
    yield f".SS {_escape(name)}"
    yield _escape(" ".join((verb.help or "").split()))
    for parameter in verb.params:
        record = parameter.get_help_record(context)
        if record is not None:
            yield from _item(*record)
    for inner, command in getattr(verb, "commands", {}).items():
        yield from _format_verb(context, f"{name} {inner}", command)


def _item(term: str, text: str) -> list[str]:
    return [".TP", f"\\fB{_escape(term)}\\fR", _escape(" ".join(text.split()))]


def _escape(text: str) -> str:
    """Escape what roff would take for its own (groff_char(7)): a line may not begin with a point
    or an apostrophe."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith(".") else escaped
