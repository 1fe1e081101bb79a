"""The output of verbs: JSON, a judged run, log lines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import typer

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.streams import CommandsStopped, print_commands

if TYPE_CHECKING:
    from orchestrator.run.judging.judge import Judged


def set_logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("barometer").setLevel(level)
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its errors reach us as exceptions


def find_step_summary(github: bool) -> Path | None:
    """Return the file of GitHub's job summary, checked before anything boots. Raises
    ScenarioError."""
    if not github:
        return None
    if not (name := os.environ.get("GITHUB_STEP_SUMMARY")):
        raise ScenarioError(
            "--github: GITHUB_STEP_SUMMARY is not set",
            hint="GitHub Actions sets it in each step; leave --github out elsewhere",
            reason=Reason.NO_STEP_SUMMARY,
        )
    try:
        Path(name).open("a").close()
    except OSError as exc:
        raise ScenarioError(
            f"--github: GITHUB_STEP_SUMMARY, {name}, cannot be written: {exc.strerror}",
            reason=Reason.NO_STEP_SUMMARY,
        ) from exc
    return Path(name)


def print_json(document: Mapping[str, object]) -> None:
    print(json.dumps(document, indent=2))


def end_with(
    judged: Judged, as_json: bool, summary: Path | None,
    *, form: Literal["brief", "table", "mail"] = "brief",
) -> NoReturn:  # fmt: skip
    """Print a judged run in the requested form, and end with its exit code."""
    # GitHub reads commands on either stream
    stream = sys.stderr if as_json else sys.stdout
    if as_json:
        print_json(judged.document)
    else:
        table = f"{judged.report}\nrun: {judged.document.get('run')}"
        text = {"brief": judged.brief, "table": table, "mail": judged.mail.rstrip("\n")}[form]
        with CommandsStopped(stream) if summary is not None else contextlib.nullcontext():
            print(text)
    if summary is not None:
        from orchestrator.report.exports.github import job_summary, workflow_commands

        with summary.open("a", encoding="utf-8") as file:
            file.write(judged.hidden.apply(job_summary(judged.suites)))
        print_commands(judged.hidden.apply(workflow_commands(judged.suites)), stream)
    raise typer.Exit(judged.exit_code)
