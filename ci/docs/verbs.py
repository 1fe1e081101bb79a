"""Every verb of the command line: what its `--help` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from orchestrator.cli.entry import app

_WIDTH = 90


def format_verbs() -> str:
    return "\n".join(f"## `{name}`\n\n```text\n{text}\n```\n" for name, text in list_helps())


def list_helps() -> Iterator[tuple[str, str]]:
    """Yield each verb, as it is typed, and its help."""
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="barometer", terminal_width=_WIDTH)
    commands = dict(getattr(command, "commands", {}))
    for name, verb in commands.items():
        yield from _list_helps(context, f"barometer {name}", verb)


def _list_helps(parent: Any, name: str, verb: Any) -> Iterator[tuple[str, str]]:
    """`parent`, `verb`: context and command of the click that typer bundles, which is private."""
    context = verb.context_class(
        verb, info_name=name.rpartition(" ")[2], parent=parent, terminal_width=_WIDTH
    )
    yield name, verb.get_help(context)
    for inner, command in getattr(verb, "commands", {}).items():
        yield from _list_helps(context, f"{name} {inner}", command)
