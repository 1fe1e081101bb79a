"""Verbs for who compares kernels: init, plan, run, ab, bisect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.base.errors import ScenarioError, key_named
from orchestrator.base.reasons import Reason
from orchestrator.cli.completions import complete_metric
from orchestrator.cli.folders import check_new_folder
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
    ScenarioOrBundle,
    ScenarioPath,
    Verbose,
    WorkloadOption,
)
from orchestrator.cli.output import end_with, find_step_summary, print_json, set_logging
from orchestrator.scenario.choices import Hold
from orchestrator.scenario.metrics import WORDS

if TYPE_CHECKING:
    from orchestrator.scenario.factors import Cell, ScenarioFile

Kind = Literal["ab", "nightly", "profile"]
"""Kinds of scenarios to begin with."""


def load_cells(
    scenario: Path, overrides: list[str] | None, pairs: int | None, names: list[str] | None
) -> tuple[ScenarioFile, tuple[Cell, ...]]:
    """Load the scenario file, and select the requested cells."""
    from orchestrator.scenario.factors import load_scenarios

    if scenario.is_dir():
        files = ", ".join(path.name for path in sorted(scenario.glob("*.toml")))
        raise ScenarioError(
            f"{scenario} is a folder", reason=Reason.SCENARIO,
            hint=f"name one of its scenarios: {files}" if files else "it has no scenario (*.toml)",
        )  # fmt: skip
    more = [] if pairs is None else [f"trials.pairs={pairs}"]
    file = load_scenarios(scenario, [*(overrides or []), *more])
    return file, file.select_cells(names or [])


def plan(
    scenario: ScenarioPath, pairs: Pairs = None, overrides: Overrides = None,
    names: CellNames = None, as_json: AsJson = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Show what a run would do. Prints the trials and the exact kernels; boots nothing."""
    set_logging(verbose)
    file, cells = load_cells(scenario, overrides, pairs, names)
    _show_plan(file, cells, as_json)


def _show_plan(file: ScenarioFile, cells: tuple[Cell, ...], as_json: bool) -> None:
    """Check what can be checked without a boot, and print what a run would do."""
    from orchestrator.analysis.verdict.power import check_power
    from orchestrator.base.cache import Cache
    from orchestrator.base.progress import Progress
    from orchestrator.report.preview import json_preview, text_preview
    from orchestrator.run.judging.noise import recall_noise
    from orchestrator.run.kernels import RunKernels
    from orchestrator.scenario.vocabulary import ARMS

    for cell in cells:
        check_power(cell.scenario)
    kernels = RunKernels(Cache())
    with Progress().task("plan") as progress:
        with progress.stage("looking at the kernels"):
            for cell in cells:
                for arm in ARMS:
                    with key_named(f"arms.{arm}.kernel"):
                        kernels.check(cell.scenario.arms[arm].kernel)
        preview = json_preview if as_json else text_preview
        shown = preview(file, cells, kernels.describe, recall_noise)
    if isinstance(shown, str):
        print(shown)
    else:
        print_json(shown)


def init(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="KIND",
            help="ab: two kernels. nightly: a bare-metal machine. profile: a VM like a slow one.",
        ),
    ] = "ab",
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="File to write (default: KIND.toml; -: print it)."),
    ] = None,
) -> None:
    """Write a commented scenario to begin with."""
    from orchestrator.base.installed import packaged

    text = (packaged("fixtures") / f"scenarios/templates/{kind}.toml").read_text("utf-8")
    target = file or Path(f"{kind}.toml")
    if str(target) == "-":
        print(text, end="")
        return
    try:
        with target.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError as exc:
        raise ScenarioError(
            f"{target} exists", hint="name another file", reason=Reason.PATH
        ) from exc
    except OSError as exc:
        raise ScenarioError(
            f"{target} cannot be written: {exc.strerror}", reason=Reason.PATH
        ) from exc
    print(f"scenario: {target}")


def run_scenario(
    scenario: ScenarioOrBundle,
    out: Out = None,
    pairs: Pairs = None,
    overrides: Overrides = None,
    names: CellNames = None,
    keep: Keep = False,
    hold: Annotated[
        Hold | None,
        typer.Option(help="Give you a shell on the host of each trial that failed, or always."),
    ] = None,
    as_json: AsJson = False,
    github: ForGitHub = False,
    verbose: Verbose = False,
) -> None:
    """Boot both kernels, measure and compare them; print the verdict. A bundle is run as the run
    that it was made of, and compared with it."""
    set_logging(verbose)
    summary = find_step_summary(github)
    from orchestrator.base.cache import Cache
    from orchestrator.run.bundles.unpacking import is_bundle, open_bundle

    bundle = open_bundle(scenario, Cache()) if is_bundle(scenario) else None
    path = scenario if bundle is None else bundle.scenario
    file, cells = load_cells(path, overrides, pairs, names)
    if out is not None:
        check_new_folder(out)
    from orchestrator.base.progress import Progress
    from orchestrator.run.ab import choose_folder, measure
    from orchestrator.run.kernels import RunKernels

    progress, visit = Progress(), None
    if hold is not None:
        from orchestrator.run.visiting import hold_for_visit

        visit = hold_for_visit(hold, progress)
    folder, kernels = choose_folder(out, file.name), RunKernels(Cache())
    judged = measure(file, cells, folder, kernels, progress, keep=keep, visit=visit)
    if bundle is not None:
        from orchestrator.run.bundles.again import add_comparison

        judged = add_comparison(bundle.record, judged)
    end_with(judged, as_json, summary)


def ab(
    base: Annotated[
        str,
        typer.Option(metavar="KERNEL", help=f"Kernel to compare with: {KERNELS}, or a commit."),
    ],
    candidate: Annotated[
        str | None,
        typer.Option(metavar="KERNEL", help="Kernel to compare; module:PATH needs a deb: base."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATCHES", help="Patches: file, folder, A..B or message-id; repeatable."
        ),
    ] = None,
    config: ConfigOption = None,
    bar: BarOption = None,
    accel: AccelOption = None,
    workload: WorkloadOption = None,
    guest: GuestOption = None,
    pairs: Pairs = None,
    cmdline: Annotated[
        str,
        typer.Option(
            "--candidate-cmdline", metavar="TEXT", help="Words for the candidate's command line."
        ),
    ] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate-param",
            metavar="MODULE.NAME=VALUE",
            help="Module parameter of the candidate; repeatable.",
        ),
    ] = None,
    sysfs: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate-sysfs",
            metavar="PATH=VALUE",
            help="The candidate's file under /sys or /proc/sys; repeatable.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Out = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Only write the scenario to this file."),
    ] = None,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Only show what it would do, as `plan` does.")
    ] = False,
    keep: Keep = False,
    as_json: AsJson = False,
    github: ForGitHub = False,
    verbose: Verbose = False,
) -> None:
    """Compare a kernel with a changed one. A few options describe both; otherwise like
    `run`."""
    set_logging(verbose)
    summary = find_step_summary(github)
    from orchestrator.base.progress import Progress
    from orchestrator.run.ab import Options, Pair, describe_ab, run_ab
    from orchestrator.scenario.builder import parse_settings

    settings = parse_settings(cmdline, parameters or [], sysfs or [])
    pair = Pair(base, candidate, series or [], config or [], settings)
    progress = Progress()
    with progress.task("ab"):
        question = describe_ab(pair, Options(accel, workload, bar, guest), pairs, overrides or [])
    if write is not None:
        _write(write, question.file.text)
    if only_plan:
        _show_plan(question.file, question.file.cells, as_json)
    if write is not None or only_plan:
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
        str,
        typer.Option(metavar="COMMIT", help="Commit known to be bad, later than the good ones."),
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Search only commits that touch these paths."),
    ] = None,
    tree: Annotated[Path, typer.Option(help="The kernel's git repository.")] = Path(),
    metric: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_metric,
            help=f"Metric by which good and bad differ: {', '.join(WORDS)}, or one of them at"
            " @SIZE/ALIGNMENT/STATE. `barometer explain` tells what they are.",
        ),
    ] = "bar_map_cost",
    on: Annotated[
        str | None,
        typer.Option(metavar="deb:NAME@SUITE", help="Package whose modules the commits change."),
    ] = None,
    config: ConfigOption = None,
    scenario: Annotated[
        Path | None,
        typer.Option(
            help="Scenario file with the way to measure, instead of the next four options. Its"
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
    from orchestrator.run.ab import Options, choose_folder
    from orchestrator.run.bisect import Question, parse_commit_kernels, run_bisection
    from orchestrator.run.commits import find_commits
    from orchestrator.run.kernels import RunKernels
    from orchestrator.run.trials import ready_runner
    from orchestrator.scenario.builder import build_bisect_file, build_template, parse_metric
    from orchestrator.scenario.loading import load_scenario
    from orchestrator.scenario.machines import NestedHost

    metric = parse_metric(metric)
    with Progress().task("bisect") as progress:
        commits = find_commits(tree, good, bad, paths or [])
        kernels = parse_commit_kernels(commits, on, config or [], Path.cwd())
        short = {"--bar": bar, "--accel": accel, "--workload": workload, "--guest": guest}
        if scenario is None:
            setting = Options(accel, workload, bar, guest).choose_setting()
            template = build_bisect_file(setting, metric, kernels(commits.bad), overrides or [])
        elif excluded := [option for option, value in short.items() if value is not None]:
            raise ScenarioError(
                f"{excluded[0]} and --scenario exclude one another",
                hint="--set KEY=VALUE overrides what the file says",
                reason=Reason.SCENARIO,
            )
        else:
            loaded, text = load_scenario(scenario, overrides or [])
            # one accelerator for all steps; a metal host has no choice
            nested = loaded.host if isinstance(loaded.host, NestedHost) else None
            emulator = choose_accel(nested.accel)[0] if nested else None
            template = build_template(loaded, text, emulator, metric)
        question = Question(commits, kernels, metric, template, trials)
        if out is not None:
            check_new_folder(out)
        folder = choose_folder(out, "bisect")
        with ready_runner(RunKernels(Cache()), progress, keep=keep) as here:
            record = run_bisection(question, folder, here)
    if as_json:
        more = {"bisection": str(folder), "exit_code": record.exit_code}
        print_json(record.document() | more)
    else:
        print(bisect_brief(record.bisection(), folder))
    raise typer.Exit(record.exit_code)
