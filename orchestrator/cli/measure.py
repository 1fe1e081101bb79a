"""Verbs for who compares kernels: plan, run, ab, bisect."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.cli.options import (
    KERNELS,
    AccelOption,
    AsJson,
    BarOption,
    CellNames,
    ConfigOption,
    ForGitHub,
    GuestOption,
    Keep,
    Out,
    Overrides,
    Pairs,
    ScenarioPath,
    Verbose,
    WorkloadOption,
)
from orchestrator.cli.output import end_with, print_json, set_logging, step_summary

if TYPE_CHECKING:
    from orchestrator.scenario.factors import Cell, ScenarioFile


def load_cells(
    scenario: Path, overrides: list[str] | None, pairs: int | None, names: list[str] | None
) -> tuple[ScenarioFile, tuple[Cell, ...]]:
    """Load the scenario file, and select the requested cells."""
    from orchestrator.scenario.factors import load_scenarios

    more = [] if pairs is None else [f"trials.pairs={pairs}"]
    file = load_scenarios(scenario, [*(overrides or []), *more])
    return file, file.chosen(names or [])


def plan(
    scenario: ScenarioPath, pairs: Pairs = None, overrides: Overrides = None,
    names: CellNames = None, as_json: AsJson = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Show what a run would do. Prints the trials and the exact kernels; boots nothing."""
    set_logging(verbose)
    file, cells = load_cells(scenario, overrides, pairs, names)
    from orchestrator.analysis.verdict.power import check_power
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.kernels import describe_kernel
    from orchestrator.report.preview import json_preview, text_preview
    from orchestrator.run.noise import recall_noise

    for cell in cells:
        check_power(cell.scenario)
    describe_once = functools.cache(functools.partial(describe_kernel, cache=Cache()))
    if as_json:
        with Progress().task("plan"):
            document = json_preview(file, cells, describe_once, recall_noise)
        print_json(document)
        return
    with Progress().task("plan"):
        text = text_preview(file, cells, describe_once, recall_noise)
    print(text)


def run(
    scenario: ScenarioPath,
    out: Out = None,
    pairs: Pairs = None,
    overrides: Overrides = None,
    names: CellNames = None,
    keep: Keep = False,
    as_json: AsJson = False,
    github: ForGitHub = False,
    verbose: Verbose = False,
) -> None:
    """Boot both kernels, measure and compare them; print the verdict."""
    set_logging(verbose)
    summary = step_summary(github)
    file, cells = load_cells(scenario, overrides, pairs, names)
    from orchestrator.base.progress import Progress
    from orchestrator.run.ab import measure, run_folder

    judged = measure(file, cells, run_folder(out, file.name), Progress(), keep=keep)
    end_with(judged, as_json, summary)


def ab(
    base: Annotated[
        str,
        typer.Option(metavar="KERNEL", help=f"Kernel to compare with: {KERNELS}, or a commit."),
    ],
    candidate: Annotated[
        str | None,
        typer.Option(metavar="KERNEL", help="The other kernel; also module:PATH on a deb: base."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="PATCHES", help="File, folder, A..B or message-id; repeatable."),
    ] = None,
    config: ConfigOption = None,
    bar: BarOption = None,
    accel: AccelOption = None,
    workload: WorkloadOption = None,
    guest: GuestOption = None,
    pairs: Pairs = None,
    cmdline: Annotated[
        str, typer.Option("--candidate-cmdline", metavar="TEXT", help="Kernel command line.")
    ] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate-param", metavar="MODULE.NAME=VALUE", help="Module parameter; repeatable."
        ),
    ] = None,
    sysfs: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate-sysfs",
            metavar="PATH=VALUE",
            help="File under /sys or /proc/sys; repeatable.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the scenario there, and do nothing else."),
    ] = None,
    keep: Keep = False,
    as_json: AsJson = False,
    github: ForGitHub = False,
    verbose: Verbose = False,
) -> None:
    """Compare a kernel with a changed one. A few options describe both; otherwise like
    `run`."""
    set_logging(verbose)
    summary = step_summary(github)
    from orchestrator.base.progress import Progress
    from orchestrator.run.ab import Options, Pair, describe_ab, run_ab
    from orchestrator.scenario.builder import knobs_of

    knobs = knobs_of(cmdline, parameters or [], sysfs or [])
    pair = Pair(base, candidate, series or [], config or [], knobs)
    progress = Progress()
    with progress.task("ab"):
        question = describe_ab(pair, Options(accel, workload, bar, guest), pairs, overrides or [])
    if write is not None:
        _write(write, question.file.text)
        return
    end_with(run_ab(question, out, progress, keep=keep), as_json, summary)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise ScenarioError(
            f"{path} cannot be written: {exc.strerror}", reason=Reason.PATH
        ) from exc
    print(f"scenario: {path}")


def bisect(
    good: Annotated[
        list[str], typer.Option(metavar="COMMIT", help="Commit known to be good; repeatable.")
    ],
    bad: Annotated[
        str, typer.Option(metavar="COMMIT", help="Commit known to be bad; a later one.")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Search only commits that touch these paths."),
    ] = None,
    tree: Annotated[Path, typer.Option(help="The kernel's git repository.")] = Path(),
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Metric by which good and bad differ.")
    ] = "bar_map_cost",
    on: Annotated[
        str | None,
        typer.Option(
            metavar="deb:NAME@SUITE", help="The commits change modules of this package's kernel."
        ),
    ] = None,
    config: ConfigOption = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            help="Scenario file that says how to measure, instead of the next four options; its"
            " arms are not used."
        ),
    ] = None,
    bar: BarOption = None,
    accel: AccelOption = None,
    workload: WorkloadOption = None,
    guest: GuestOption = None,
    trials: Annotated[
        int | None,
        typer.Option(
            min=1, help="Trials of each commit (default: 1 if the accelerator is exact, else 3)."
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the bisection; an interrupted one there is resumed."),
    ] = None,
    keep: Keep = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Find the first commit that costs more, or less. Uses git's bisection, and measures at each
    step."""
    set_logging(verbose)
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.machine.runner.accel import choose_accel
    from orchestrator.report.text.brief import bisect_brief
    from orchestrator.run.ab import Options, run_folder
    from orchestrator.run.bisect import Question, kernels_of, run_bisection
    from orchestrator.run.commits import commits_of
    from orchestrator.run.trials import runner
    from orchestrator.scenario.builder import bisect_text, metric_named, template_of
    from orchestrator.scenario.loading import load_scenario
    from orchestrator.scenario.machines import NestedHost

    metric = metric_named(metric)
    with Progress().task("bisect") as progress:
        commits = commits_of(tree, good, bad, paths or [])
        kernels = kernels_of(commits, on, config or [], Path.cwd())
        short = {"--bar": bar, "--accel": accel, "--workload": workload, "--guest": guest}
        if scenario is None:
            setting = Options(accel, workload, bar, guest).setting()
            template = bisect_text(setting, metric, kernels(commits.bad), overrides or [])
        elif given := [option for option, value in short.items() if value is not None]:
            raise ScenarioError(
                f"{given[0]} and --scenario exclude one another",
                hint="--set KEY=VALUE overrides what the file says",
                reason=Reason.SCENARIO,
            )
        else:
            loaded, text = load_scenario(scenario, overrides or [])
            # one accelerator for all steps; a metal host has no choice
            nested = loaded.host if isinstance(loaded.host, NestedHost) else None
            emulator = choose_accel(nested.accel)[0] if nested else None
            template = template_of(loaded, text, emulator, metric)
        question = Question(commits, kernels, metric, template, trials)
        folder = run_folder(out, "bisect")
        with runner(Cache(), progress, keep=keep) as here:
            record = run_bisection(question, folder, here)
    if as_json:
        more = {"bisection": str(folder), "exit_code": record.exit_code}
        print_json(record.document() | more)
    else:
        print(bisect_brief(record.bisection(), folder))
    raise typer.Exit(record.exit_code)
