"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.completions import complete_key
from orchestrator.scenario.choices import GUEST_KERNEL, AccelChoice, Workload

ScenarioPath = Annotated[
    Path, typer.Argument(help="Scenario file (TOML); see `barometer schema`.")
]
ScenarioOrBundle = Annotated[
    Path, typer.Argument(help="Scenario file (TOML), or a file of `barometer bundle`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the scenario, e.g. device.bar=1GiB.",
        autocompletion=complete_key,
    ),
]
Pairs = Annotated[int | None, typer.Option("--pairs", min=1, help="Number of pairs of trials.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show commands and console lines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")]
ForGitHub = Annotated[
    bool,
    typer.Option("--github", help="In GitHub Actions: write a job summary, print annotations."),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run; an interrupted run there is resumed.")
]
Keep = Annotated[
    bool, typer.Option(help="Keep private files and unfinished evidence for debugging.")
]
KERNELS = "deb:NAME@SUITE, dir:PATH, tree:PATH@COMMIT, source:PACKAGE@SUITE"
BarOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Size of the device's BAR (default: 32GiB).")
]
AccelOption = Annotated[
    AccelChoice | None,
    typer.Option(
        help="How the host runs (default: kvm if a guest really runs under it, else exact)."
    ),
]
WorkloadOption = Annotated[
    Workload | None,
    typer.Option(help="map (default): the BAR alone; guest-boot: a guest that owns it."),
]
GuestOption = Annotated[
    str | None,
    typer.Option(
        "--guest",
        metavar="KERNEL",
        help=f"The guest's kernel (default: {GUEST_KERNEL}).",
    ),
]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config", metavar="FILE|CONFIG_X=y",
        help="Configuration of the kernels that are built; repeatable.",
    ),
]  # fmt: skip
SshConfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Configuration for ssh -F (default: the user's)."),
]
CellNames = Annotated[
    list[str] | None,
    typer.Option("--cell", metavar="NAME", help="Only this cell of a matrix; repeatable."),
]
