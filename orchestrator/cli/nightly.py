"""Verb for who owns a lab's nights: `barometer nightly`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.history import StoreOption
from orchestrator.cli.options import CellNames, ForGitHub, Overrides, Pairs, Verbose

_MACHINE_KEYS = ("host.address", "host.ssh_config")


def nightly(
    scenarios: Annotated[
        list[Path], typer.Argument(metavar="SCENARIO...", help="Scenario files (TOML).")
    ],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Folder of the nights of all scenarios.")
    ] = Path("nightly"),
    keep: Annotated[
        int, typer.Option(min=1, metavar="NIGHTS", help="Nights whose evidence is kept.")
    ] = 14,
    keep_red: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NIGHTS",
            help="The same of nights that regressed (default: four times that).",
        ),
    ] = None,
    limit: Annotated[
        str, typer.Option(metavar="TIME", help="Limit of a run, e.g. 90m or 5h.")
    ] = "5h",
    budget: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Time to explain a regression: kernel or machine, and which commit (0: none).",
        ),
    ] = "1h",
    recover: Annotated[
        bool,
        typer.Option("--recover", help="Only put the machines back, as a CI's last step does."),
    ] = False,
    link: Annotated[
        str, typer.Option(metavar="URL", help="Address of the pages, for the feed and the mail.")
    ] = "",
    store: StoreOption = None,
    pairs: Pairs = None,
    overrides: Overrides = None,
    names: CellNames = None,
    github: ForGitHub = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Run a night: measure, put back, compare, explain, publish."""
    for override in overrides or []:
        if override.partition("=")[0].strip() in _MACHINE_KEYS:
            raise ScenarioError(
                f"--set {override}: the scenario names the machine, which is put back",
                reason=Reason.COMMAND_LINE,
            )
    from orchestrator.cli.output import set_logging
    from orchestrator.run.nights.nightly import NightPlan, parse_time, recover_nights, run_nights

    set_logging(verbose)
    options = [] if pairs is None else ["--pairs", str(pairs)]
    for option, values in (("--set", overrides), ("--cell", names)):
        options += [word for value in values or [] for word in (option, value)]
    options += ["--github"] * github + ["--verbose"] * verbose
    plan = NightPlan(
        folder.absolute(), keep, keep_red or 4 * keep, parse_time("--limit", limit),
        0.0 if budget == "0" else parse_time("--budget", budget), store or "", link,
        tuple(options),
    )  # fmt: skip
    paths = [scenario.absolute() for scenario in scenarios]
    if len({path.stem for path in paths}) < len(paths):
        raise ScenarioError(
            "two scenarios have one name, and would share a folder", reason=Reason.COMMAND_LINE
        )
    raise typer.Exit(recover_nights(paths, plan) if recover else run_nights(paths, plan))
