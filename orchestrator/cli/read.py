"""Verbs for who reads runs: report, compare, timeline, schema. They connect to nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.completions import complete_run
from orchestrator.cli.folders import check_run, read_middle_boots
from orchestrator.cli.options import AsJson, ForGitHub
from orchestrator.cli.output import end_with, find_step_summary, print_json


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", autocompletion=complete_run)],
    tester: Annotated[
        str | None,
        typer.Option(
            metavar="'NAME <MAIL>'", help="Name and mail for Tested-by (default: git's user)."
        ),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print all of report.txt, with the table.")
    ] = False,
    mail: Annotated[
        bool,
        typer.Option(
            "--mail", help="Print the reply to a patch: at most 15 lines, and a tag if one is due."
        ),
    ] = False,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact/--no-redact",
            help="Leave home folders, names of users and hosts, MAC addresses and serial numbers"
            " out of the page and the files for other tools.",
        ),
    ] = True,
    as_json: AsJson = False,
    github: ForGitHub = False,
) -> None:
    """Judge the saved evidence of a run again."""
    if table + mail + as_json > 1:
        raise ScenarioError(
            "report: --table, --mail and --json exclude one another", reason=Reason.COMMAND_LINE
        )
    check_run(run)
    summary = find_step_summary(github)
    from orchestrator.base.progress import Progress
    from orchestrator.run.judging.judgefolder import judge_folder

    with Progress().task("report"):
        judged = judge_folder(run.absolute(), tester, redact=redact)
    end_with(judged, as_json, summary, form="table" if table else "mail" if mail else "brief")


def compare_saved_runs(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs; the others are compared with the first.",
            autocompletion=complete_run,
        ),
    ],
    arm: Annotated[
        Literal["baseline", "candidate"], typer.Option(help="Arm of each run to compare.")
    ] = "candidate",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A condition that may differ, e.g. runner.qemu."),
    ] = None,
    as_json: AsJson = False,
    github: ForGitHub = False,
) -> None:
    """Compare runs from different days or machines. One arm of each is compared with the same arm
    of the first run."""
    summary = find_step_summary(github)
    from orchestrator.base.progress import Progress
    from orchestrator.run.judging.judge import judge_across
    from orchestrator.run.judging.noise import recall_usual_change

    with Progress().task("compare"):
        folders = [run.absolute() for run in runs]
        judged = judge_across(folders, arm, allow or [], recall_usual_change)
    end_with(judged, as_json, summary)


def timeline(
    trial: Annotated[
        Path,
        typer.Argument(
            help="Folder of a trial, such as RUN/trials/0001-baseline, or of a run: then of each"
            " arm the boot whose length is in the middle."
        ),
    ],
    as_json: AsJson = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a trace for ui.perfetto.dev."),
    ] = None,
) -> None:
    """Show the traced guest boots of a trial. Prints their phases, their maps and unmaps, and the
    causes of these."""
    from orchestrator.analysis.boot.timeline import timeline_json
    from orchestrator.base.progress import Progress
    from orchestrator.report.text.timeline_text import text_timeline
    from orchestrator.run.judging.judge import read_traced_boots

    with Progress().task("timeline"):
        is_run = (trial / "plan.json").exists()
        boots = read_middle_boots(trial) if is_run else []
        boots = boots or read_traced_boots(trial.absolute())
        if perfetto is not None:
            # only here: it loads Perfetto's protobuf
            from orchestrator.report.exports.perfetto import perfetto_trace

            try:
                perfetto.write_bytes(b"".join(map(perfetto_trace, boots)))
            except OSError as exc:
                raise ScenarioError(
                    f"{perfetto} cannot be written: {exc.strerror}", reason=Reason.PATH
                ) from exc
    if as_json:
        print_json({"schema": 1, "boots": [timeline_json(boot) for boot in boots]})
    else:
        print("\n".join(map(text_timeline, boots)), end="")
        if perfetto is not None:
            print(f"perfetto: {perfetto}")
    if any(boot.invalid for boot in boots):
        raise typer.Exit(EvidenceError.exit_code)


def schema() -> None:
    """Print the JSON schema of a scenario file, for editors."""
    from orchestrator.scenario.factors import build_file_schema

    print_json(build_file_schema())


def bundle(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", autocompletion=complete_run)],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write (default: NAME.bundle.tar.gz here)."),
    ] = None,
    all_kernels: Annotated[
        bool, typer.Option("--kernels", help="Also put kernels of Debian's packages into it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack a run into one file. `barometer run FILE` repeats it elsewhere."""
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.run.bundles.packing import make_bundle

    folder, progress = run.absolute(), Progress()
    path = (out or Path(f"{folder.name}.bundle.tar.gz")).absolute()
    with progress.task("bundle"):
        record = make_bundle(folder, path, Cache(), progress, all_kernels=all_kernels)
    if as_json:
        document = record.model_dump(mode="json", by_alias=True, exclude={"files"})
        print_json(document | {"bundle": str(path), "bytes": path.stat().st_size})
        return
    for note in record.notes:
        print(f"missing: {note}")
    print("its evidence names this machine and its settings: see whom you give it to")
    print(f"bundle: {path} ({path.stat().st_size / 1e6:.1f} MB)")
