"""Verbs for who follows many runs: `barometer history ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.completions import complete_metric, complete_run
from orchestrator.cli.options import AsJson
from orchestrator.cli.output import print_json

history = typer.Typer(
    help="What many runs tell together: their numbers in one store.",
    no_args_is_help=True, rich_markup_mode=None,
)  # fmt: skip

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="PLACE",
        help="SQLite file, or postgresql://USER@HOST/DATABASE (default: BAROMETER_HISTORY).",
    ),
]  # fmt: skip
Table = Literal["effects", "samples", "trials", "failures", "runs", "nights"]


@history.command("add")
def add(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs or matrices.", autocompletion=complete_run),
    ],
    machine: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Machine of older runs, which do not tell it."),
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Judge saved runs and add them. A run that is there already is not added twice."""
    from orchestrator.base.progress import Progress
    from orchestrator.run.nights.remember import add_folders, open_history

    progress = Progress()
    with progress.task("history add"), open_history(store) as history_store:
        added = []
        for run in add_folders(history_store, runs, machine):
            added.append(run)
            if not as_json:
                print(f"{run.what}: {run.folder}", flush=True)
    if as_json:
        runs_json = [{"run": str(run.folder), "what": run.what} for run in added]
        print_json({"schema": 1, "runs": runs_json})


@history.command("list")
def list_runs(
    scenario: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this scenario.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this machine.")
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """List the runs of the store, the oldest first."""
    from orchestrator.run.nights.remember import open_history

    with open_history(store, create=False) as history_store:
        runs = history_store.runs(scenario=scenario, machine=machine)
    if as_json:
        print_json({"schema": 1, "runs": [run.row._asdict() for run in runs]})
        return
    from orchestrator.history.listing import format_runs

    print(format_runs(runs))


@history.command("show")
def show(
    run: Annotated[
        str, typer.Argument(help="Folder of a run, or the beginning of its name or key.")
    ],
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Show a run as the store has it: its verdict, its metrics; with --json its conditions."""
    from orchestrator.run.nights.remember import open_history

    with open_history(store, create=False) as history_store:
        from orchestrator.history.listing import find_run, format_run, run_document

        found = find_run(history_store, run)
        if as_json:
            print_json(run_document(history_store, found))
        else:
            print(format_run(history_store, found))


@history.command("export")
def export(
    table: Annotated[Table, typer.Option(help="What is in a row.")] = "effects",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV (the default).")] = False,
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Parquet file instead.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Export a table of the store for other programs."""
    if as_csv and parquet is not None:
        raise ScenarioError(
            "history export: --csv and --parquet exclude one another", reason=Reason.COMMAND_LINE
        )
    from orchestrator.run.nights.remember import open_history

    with open_history(store, create=False) as history_store:
        from orchestrator.history.listing import export_csv, export_parquet

        if parquet is None:
            print(export_csv(history_store, table), end="")
        else:
            export_parquet(history_store, table, parquet)
            print(f"parquet: {parquet}")


@history.command("trend")
def trend(
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only this metric; repeatable.", autocompletion=complete_metric
        ),
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this scenario.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only runs of this machine.")
    ] = None,
    last: Annotated[
        int | None, typer.Option(min=2, metavar="NIGHTS", help="Only the last so many nights.")
    ] = None,
    store: StoreOption = None,
    as_json: AsJson = False,
) -> None:
    """Find the nights since which a metric is at another level: how large, how sure, and whether
    it is the kernel or the machine."""
    from orchestrator.run.nights.remember import open_history

    with open_history(store, create=False) as history_store:
        from orchestrator.history.moves import read_trend
        from orchestrator.history.wording import format_trend, trend_json

        chosen = [
            series for series in history_store.series()
            if (not metric or series.metric in metric)
            and scenario in (None, series.scenario) and machine in (None, series.machine)
        ]  # fmt: skip
        trends = [read_trend(history_store, series, last) for series in chosen]
    if as_json:
        print_json({"schema": 1, "series": [trend_json(of_series) for of_series in trends]})
    else:
        print("\n".join(map(format_trend, trends)))


@history.command("page")
def page(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pages.")],
    link: Annotated[
        str, typer.Option(metavar="URL", help="Address of the page, for the feed and the mail.")
    ] = "",
    store: StoreOption = None,
) -> None:
    """Write static pages: an index, a page for each series, a feed and a mail of changes, numbers
    for Prometheus. Prints the mail, which is empty if nothing changed."""
    from orchestrator.run.nights.remember import open_history

    with open_history(store, create=False) as history_store:
        from orchestrator.history.events import format_mail
        from orchestrator.history.pages import write_pages

        print(format_mail(write_pages(history_store, out.absolute(), link), link), end="")


@history.command("prune")
def prune(
    folder: Annotated[Path, typer.Argument(help="Folder whose subfolders are nights.")],
    keep: Annotated[int, typer.Option(min=1, help="Nights whose evidence is kept.")] = 14,
    keep_red: Annotated[
        int | None,
        typer.Option(min=1, help="The same of nights that regressed (default: four times that)."),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Remove the evidence of old nights, whose numbers the store keeps. What the store has not is
    never removed."""
    from orchestrator.run.nights.remember import open_history
    from orchestrator.run.nights.retention import Kept, prune_nights

    with open_history(store, create=False) as history_store:
        for night in prune_nights(history_store, folder, keep, keep_red or 4 * keep):
            if isinstance(night, Kept):
                print(f"kept: {night.folder}: {night.why}")
            else:
                print(f"removed: {night}")
