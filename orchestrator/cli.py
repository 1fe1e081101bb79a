"""One function per verb; exceptions become exit codes here and nowhere else.

0 expectation met   1 not met   2 scenario or command line wrong   3 the bench failed
4 evidence invalid or inconclusive   70 a bug in barometer   130 interrupted
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, cast

import typer
from pydantic import ValidationError

from orchestrator import __version__, interrupts
from orchestrator.analysis.profile import analyse_profile
from orchestrator.analysis.timeline import to_json
from orchestrator.bench.accel import chosen_accel
from orchestrator.bench.metal import recover as recover_host
from orchestrator.bench.state import bench_state
from orchestrator.bench.state import clean as clean_state
from orchestrator.bisect import Question, kernels_of, run_bisection
from orchestrator.cache import NO_SPACE, Cache, disk_full
from orchestrator.command import run as execute
from orchestrator.commits import commits_of
from orchestrator.doctor import diagnose
from orchestrator.errors import (
    UNNAMED,
    BarometerError,
    BenchError,
    EvidenceError,
    ScenarioError,
    key_named,
)
from orchestrator.evidence.layout import RunDir
from orchestrator.factors import (
    Cell,
    ScenarioFile,
    file_schema,
    load_scenarios,
    parse_scenarios,
    toml_text,
)
from orchestrator.folderlock import LOCK, only_writer
from orchestrator.judge import Judged, judge_across, judged, looks_of, traced_boots
from orchestrator.kernels import checked, describe
from orchestrator.matrix import MatrixDir, all_cells_made, judge_cells, run_cells
from orchestrator.plan import make_plan
from orchestrator.profile import QUIET_SECONDS, ProfileRequest, record
from orchestrator.profile import clear as clear_profile
from orchestrator.progress import ErrorConsole, Progress
from orchestrator.report.brief import bisect_brief
from orchestrator.report.doctor import json_diagnosis, text_diagnosis
from orchestrator.report.github import job_summary, workflow_commands
from orchestrator.report.profile import profile_json, text_profile
from orchestrator.report.timeline import text_timeline
from orchestrator.report.wording import said_of
from orchestrator.run import all_made, full_places, no_space_explained, run_plan, runner
from orchestrator.scenario import (
    ARMS,
    Arm,
    ArmName,
    Host,
    Kernel,
    MetalHost,
    NestedHost,
    Scenario,
    format_size,
    load_scenario,
)
from orchestrator.short import (
    GUEST_KERNEL,
    AccelName,
    Setting,
    Workload,
    ab_text,
    arms_of,
    bisect_text,
    knobs_of,
    template_of,
)
from orchestrator.spelled import parse_kernel

# UsageError of the click that typer bundles, which is not always the installed one.
_UsageError = cast(type[typer.BadParameter], typer.BadParameter.__mro__[1])

_BEGUN = {"plan.json", "matrix.json", "cells", "bisect.json"}
"""Names that identify the folder of a run, a matrix or a bisection."""
_OF_A_PATH = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EEXIST,
)  # fmt: skip
"""Errors that mean that a path from the user is wrong, wherever they occur."""
_GIT_SECONDS = 10.0
"""Deadline of git for the tester's name. A report can do without the name."""

app = typer.Typer(
    name="barometer",
    help="What does this host kernel cost a guest that owns a device with a huge PCI BAR?",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ScenarioPath = Annotated[
    Path, typer.Argument(help="Scenario file (TOML); see `barometer schema`.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. device.bar=1GiB."),
]
Pairs = Annotated[int | None, typer.Option("--pairs", min=1, help="Pairs of trials.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show commands and console lines.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
ForGitHub = Annotated[
    bool,
    typer.Option("--github", help="In GitHub Actions: write a job summary, print annotations."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder of the run; an interrupted run there is taken up again."),
]
Keep = Annotated[
    bool, typer.Option(help="Keep private files and unfinished evidence for debugging.")
]
_KINDS = "deb:NAME@SUITE, dir:PATH, tree:PATH@COMMIT, source:PACKAGE@SUITE"
Bar = Annotated[str | None, typer.Option(metavar="SIZE", help="Of the device; default: 32GiB.")]
AskedAccel = Annotated[
    AccelName | None,
    typer.Option(
        help="How the host runs; default: kvm where a guest really runs under it, else exact."
    ),
]
AskedWorkload = Annotated[
    Workload | None,
    typer.Option(help="map (default): the BAR alone; guest-boot: a guest that owns it."),
]
GuestKernel = Annotated[
    str | None,
    typer.Option(
        "--guest", metavar="KERNEL", help=f"What boots in a guest; default: {GUEST_KERNEL}."
    ),
]
Config = Annotated[
    list[str] | None,
    typer.Option(
        "--config", metavar="FILE|CONFIG_X=y", help="Of kernels that are built; repeatable."
    ),
]
SshConfig = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For ssh -F; default: the user's.")
]
CellNames = Annotated[
    list[str] | None,
    typer.Option("--cell", metavar="NAME", help="Only this cell of a matrix; repeatable."),
]


def _load(
    scenario: Path, overrides: list[str] | None, pairs: int | None, names: list[str] | None
) -> tuple[ScenarioFile, tuple[Cell, ...]]:
    """Load the scenario file, and select the requested cells."""
    more = [] if pairs is None else [f"trials.pairs={pairs}"]
    file = load_scenarios(scenario, [*(overrides or []), *more])
    return file, file.chosen(names or [])


@app.command()
def plan(
    scenario: ScenarioPath, pairs: Pairs = None, overrides: Overrides = None,
    names: CellNames = None, as_json: AsJson = False, verbose: Verbose = False,
) -> None:  # fmt: skip
    """Show what a run would do: trials in order, exact kernel versions. Boots nothing."""
    _logging(verbose)
    file, cells = _load(scenario, overrides, pairs, names)
    cache = Cache()

    @functools.cache
    def described(kernel: Kernel) -> str:
        return describe(kernel, cache)

    if as_json:
        with Progress().task("plan"):
            planned = [_plan_json(cell, described) for cell in cells]
        _print_json({"schema": 1, "scenario": file.name, "cells": planned})
        return
    lines = [f"{file.name}: {len(cells)} cells of {len(file.cells)}"] * file.has_matrix
    with Progress().task("plan"):
        for cell in cells:
            if file.has_matrix:
                settings = (f"{key} = {toml_text(value)}" for key, value in cell.settings.items())
                lines.append(f"\ncell {cell.name}: {', '.join(settings)}")
            lines += _plan_lines(cell.scenario, described)
    print("\n".join(lines))


def _plan_lines(scenario: Scenario, described: Callable[[Kernel], str]) -> Iterator[str]:
    number = f"{scenario.device.count} x " * (scenario.device.count > 1)
    yield (
        f"{scenario.name}: {scenario.workload}, {number}{scenario.device.kind} with a BAR of "
        f"{format_size(scenario.device.bar)}, passes {', '.join(scenario.trace.passes)}"
    )
    for arm in ARMS:
        with key_named(f"arms.{arm}.kernel"):
            yield f"  {arm:<10} {described(scenario.arms[arm].kernel)}"
        for setting in _settings_said(scenario.arms[arm]):
            yield f"  {'':<10} {setting}"
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        with key_named("guest.kernel"):
            kernel = described(scenario.guest.kernel)
        yield f"  {'guest':<10} {kernel}{said_of(scenario.guest)}"
    else:
        points = ", ".join(point.name for point in scenario.points())
        yield f"  {'points':<10} {points}"
    if (until := scenario.trials.until) is not None:
        yield (
            f"  {'pairs':<10} at most {scenario.trials.most_pairs} pairs, until the deciding"
            f" metrics are known to {100 * until.precision:g}%"
        )
    for trial in make_plan(scenario):
        where = f"pair {trial.pair}, " * (trial.pair > 0)
        yield f"  {trial.name}  {where}{', '.join(trial.passes)}"


def _settings_said(arm: Arm) -> Iterator[str]:
    """Yield a line for each setting of an arm."""
    if arm.cmdline:
        yield f"command line {' '.join(arm.cmdline.split())}"
    for name, value in (*arm.parameters.items(), *arm.sysfs.items()):
        yield f"{name} = {value}"


def _plan_json(cell: Cell, described: Callable[[Kernel], str]) -> dict[str, Any]:
    scenario = cell.scenario
    kernels: dict[str, Kernel] = {arm: scenario.arms[arm].kernel for arm in ARMS}
    if scenario.workload == "guest-boot" and scenario.guest is not None:
        kernels["guest"] = scenario.guest.kernel
    return {
        "name": cell.name or None, "settings": cell.settings, "scenario": scenario.name,
        "workload": scenario.workload, "device": scenario.device.model_dump(mode="json"),
        "kernels": {name: described(kernel) for name, kernel in kernels.items()},
        "arm_settings": {arm: scenario.arms[arm].settings for arm in ARMS},
        "points": [point.name for point in scenario.points()],
        "trials": [
            {"name": trial.name, "pair": trial.pair, "arm": trial.arm, "passes": trial.passes}
            for trial in make_plan(scenario)
        ],
    }  # fmt: skip


@app.command()
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
    _logging(verbose)
    step_summary = _step_summary(github)
    file, cells = _load(scenario, overrides, pairs, names)
    found = _measured(file, cells, _out(out, file.name), Progress(), keep=keep)
    _told(found, as_json, step_summary)


def _out(out: Path | None, name: str) -> Path:
    """Return the requested folder, or one named after the time. Raises ScenarioError if it holds
    something else than a run."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = (out or Path("runs") / f"{name}-{stamp}").absolute()
    if folder.exists() and not folder.is_dir():
        raise ScenarioError(f"--out {folder}: is no folder", reason="run-exists")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    # these three are all that a run leaves if it ends right after its start
    if there and not there & _BEGUN and not there <= {"scenario.toml", "repo", LOCK}:
        raise ScenarioError(f"--out {folder}: is not empty and holds no run", reason="run-exists")
    return folder


def _measured(
    file: ScenarioFile, cells: tuple[Cell, ...], folder: Path, progress: Progress, *, keep: bool
) -> Judged:
    """Measure what is not measured yet, and judge everything. A run that is interrupted after its
    last trial is judged, too. The exit code reports the interrupt if something may be left undone:
    a metal host may not be as it was."""
    with progress.task("run"):
        try:
            _ran(file, cells, folder, progress, keep=keep)
            with progress.stage("judging"):
                return _judged(folder)
        except KeyboardInterrupt as exc:
            if not _all_made(file, cells, folder):
                raise
            progress.note(
                f"interrupted by {str(exc) or 'Ctrl-C'}: all trials are made, and are judged"
            )
            judging = interrupts.duty(f"judging {folder}", f"barometer report {folder}")
            with judging, progress.stage("judging"):
                found = _judged(folder)
            on_metal = any(isinstance(cell.scenario.host, MetalHost) for cell in cells)
            return _exiting(found, interrupts.EXIT_CODE) if on_metal else found


def _ran(
    file: ScenarioFile, cells: tuple[Cell, ...], folder: Path, progress: Progress, *, keep: bool
) -> None:
    with no_space_explained(folder), runner(Cache(), progress, keep=keep) as here:
        if file.has_matrix:
            run_cells(file, cells, folder, here)
        else:
            one = cells[0]
            run_plan(one.scenario, one.text, folder, here, looks_of(one.scenario))


def _all_made(file: ScenarioFile, cells: tuple[Cell, ...], folder: Path) -> bool:
    if file.has_matrix:
        return all_cells_made(cells, folder)
    return all_made(cells[0].scenario, folder, looks_of(cells[0].scenario))


@app.command()
def ab(
    base: Annotated[
        str, typer.Option(metavar="KERNEL", help=f"What to measure by: {_KINDS}, or a commit.")
    ],
    candidate: Annotated[
        str | None,
        typer.Option(metavar="KERNEL", help="The other kernel; also module:PATH on a deb: base."),
    ] = None,
    series: Annotated[
        list[str] | None,
        typer.Option(metavar="PATCHES", help="File, folder, A..B or message-id; repeatable."),
    ] = None,
    config: Config = None,
    bar: Bar = None,
    accel: AskedAccel = None,
    workload: AskedWorkload = None,
    guest: GuestKernel = None,
    pairs: Pairs = None,
    cmdline: Annotated[
        str, typer.Option("--candidate-cmdline", metavar="TEXT", help="Kernel command line.")
    ] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Option("--candidate-param", metavar="MODULE.NAME=VALUE", help="Repeatable."),
    ] = None,
    sysfs: Annotated[
        list[str] | None,
        typer.Option("--candidate-sysfs", metavar="PATH=VALUE", help="Repeatable."),
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
) -> None:  # fmt: skip
    """Compare a kernel with a changed one, described by a few options; otherwise like `run`."""
    _logging(verbose)
    step_summary = _step_summary(github)
    here, knobs = Path.cwd(), knobs_of(cmdline, parameters or [], sysfs or [])
    progress = Progress()
    with progress.task("ab"):
        before = parse_kernel(base, "--base", folder=here)
        after = (
            parse_kernel(candidate, "--candidate", base=before, folder=here) if candidate else None
        )
        arms = arms_of(before, after, series or [], config or [], knobs, here)
        text = ab_text(_setting(accel, workload, bar, guest), *arms, knobs, pairs)
        file = parse_scenarios(text, "ab", here, overrides or [])
    if write is not None:
        _write(write, file.text)
        return
    folder, cache = _out(out, file.name), Cache()
    changed = "--series" if series else "--candidate"
    with progress.stage("looking at the kernels"):
        for option, arm, kernel in zip(("--base", changed), ARMS, arms, strict=True):
            with key_named(option):
                checked(kernel, cache)
                progress.note(f"{arm}: {describe(kernel, cache)}")
    _begun(folder, file.text)
    progress.note(f"scenario: {folder / 'scenario.toml'}")
    found = _measured(file, file.cells, folder, progress, keep=keep)
    _told(found, as_json, step_summary)


def _begun(folder: Path, text: str) -> None:
    """Write a new run's scenario, so that it can be read before anything is built for it."""
    if (folder / "plan.json").exists():
        return
    with no_space_explained(folder), only_writer(folder):
        (folder / "scenario.toml").write_text(text, "utf-8")


def _setting(
    accel: AccelName | None, workload: Workload | None, bar: str | None, guest: str | None
) -> Setting:
    """Return what the options describe. Without --accel, choose the accelerator that is most
    useful here: instruction counts tell more than the seconds of an emulation."""
    kernel, why = None, ""
    if workload == "guest-boot":
        kernel = parse_kernel(guest or GUEST_KERNEL, "--guest", folder=Path.cwd())
    elif guest is not None:
        raise ScenarioError("--guest: is of --workload guest-boot", reason="scenario")
    if accel is None:
        found, why = chosen_accel("auto")
        accel = "kvm" if found == "kvm" else "exact"
    return Setting(accel, why, workload or "map", bar or "32GiB", kernel)


def _accel_of(host: Host) -> AccelName | None:
    """Return the accelerator for all steps of a bisection; None for a metal host, which has no
    choice."""
    return chosen_accel(host.accel)[0] if isinstance(host, NestedHost) else None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as exc:
        raise ScenarioError(f"{path} cannot be written: {exc.strerror}", reason="path") from exc
    print(f"scenario: {path}")


@app.command()
def bisect(
    good: Annotated[
        list[str], typer.Option(metavar="COMMIT", help="Known to be good; repeatable.")
    ],
    bad: Annotated[str, typer.Option(metavar="COMMIT", help="Known to be bad; a later one.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH", help="Only commits that touch these."),
    ] = None,
    tree: Annotated[Path, typer.Option(help="The kernel's git repository.")] = Path(),
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="By what they differ.")
    ] = "bar_map_seconds",
    on: Annotated[
        str | None,
        typer.Option(
            metavar="deb:NAME@SUITE", help="The commits change modules of this package's kernel."
        ),
    ] = None,
    config: Config = None,
    scenario: Annotated[
        Path | None,
        typer.Option(help="How to measure, in place of the next four; its arms are not used."),
    ] = None,
    bar: Bar = None,
    accel: AskedAccel = None,
    workload: AskedWorkload = None,
    guest: GuestKernel = None,
    trials: Annotated[
        int | None,
        typer.Option(min=1, help="Of each commit; default: one where exact, else three."),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the bisection; an interrupted one there goes on."),
    ] = None,
    keep: Keep = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Find the first commit that costs more, or less: git's bisection, by measuring."""
    _logging(verbose)
    with Progress().task("bisect") as progress:
        commits = commits_of(tree, good, bad, paths or [])
        kernels = kernels_of(commits, on, config or [], Path.cwd())
        short = {"--bar": bar, "--accel": accel, "--workload": workload, "--guest": guest}
        if scenario is None:
            setting = _setting(accel, workload, bar, guest)
            how = bisect_text(setting, metric, kernels(commits.bad), overrides or [])
        elif given := [option for option, value in short.items() if value is not None]:
            raise ScenarioError(
                f"{given[0]} and --scenario exclude one another",
                hint="--set KEY=VALUE overrides what the file says",
                reason="scenario",
            )
        else:
            one, text = load_scenario(scenario, overrides or [])
            how = template_of(one, text, _accel_of(one.host), metric)
        question = Question(commits, kernels, metric, how, trials)
        folder = _out(out, "bisect")
        with runner(Cache(), progress, keep=keep) as here:
            record = run_bisection(question, folder, here)
    if as_json:
        said = {"bisection": str(folder), "exit_code": record.exit_code}
        _print_json(record.document() | said)
    else:
        print(bisect_brief(record.bisection(), folder))
    raise typer.Exit(record.exit_code)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    tester: Annotated[
        str | None,
        typer.Option(metavar="'NAME <MAIL>'", help="For Tested-by; default: git's user."),
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print all of report.txt, with the table.")
    ] = False,
    as_json: AsJson = False,
    github: ForGitHub = False,
) -> None:
    """Judge the saved evidence of a run again."""
    step_summary = _step_summary(github)
    with Progress().task("report"):
        found = _judged(run.absolute(), tester)
    _told(found, as_json, step_summary, table=table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs; the first is the measure.")],
    arm: Annotated[ArmName, typer.Option(help="Which arm of each.")] = "candidate",
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A condition that may differ, e.g. runner.qemu."),
    ] = None,
    as_json: AsJson = False,
    github: ForGitHub = False,
) -> None:
    """Compare one arm of runs from different days or machines with the same arm of the first
    run."""
    step_summary = _step_summary(github)
    with Progress().task("compare"):
        found = judge_across([run.absolute() for run in runs], arm, allow or [])
    _told(found, as_json, step_summary)


@app.command()
def timeline(
    trial: Annotated[Path, typer.Argument(help="Folder of a trial, as RUN/trials/0001-baseline.")],
    as_json: AsJson = False,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev, too."),
    ] = None,
) -> None:
    """Show the traced guest boots of a trial: phases, maps and unmaps, and their causes."""
    with Progress().task("timeline"):
        boots = traced_boots(trial.absolute())
        if perfetto is not None:
            # Only here: it loads Perfetto's protobuf.
            from orchestrator.report.perfetto import perfetto_trace  # noqa: PLC0415

            try:
                perfetto.write_bytes(b"".join(map(perfetto_trace, boots)))
            except OSError as exc:
                raise ScenarioError(
                    f"{perfetto} cannot be written: {exc.strerror}", reason="path"
                ) from exc
    if as_json:
        _print_json({"schema": 1, "boots": [to_json(boot) for boot in boots]})
    else:
        print("\n".join(map(text_timeline, boots)), end="")
        if perfetto is not None:
            print(f"perfetto: {perfetto}")
    if any(boot.invalid for boot in boots):
        raise typer.Exit(EvidenceError.exit_code)


@app.command()
def profile(
    domain: Annotated[
        str | None, typer.Argument(help="Name of a libvirt domain with a device passed through.")
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="qemu:///system or qemu+ssh://HOST/system; default: as virsh."
        ),
    ] = None,
    ssh_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="As of ssh -F, for qemu+ssh.")
    ] = None,
    reboot: Annotated[
        bool, typer.Option("--reboot", help="Let the guest of a running domain reboot.")
    ] = False,
    until: Annotated[
        str,
        typer.Option(
            metavar="SECONDS|agent",
            help="The boot is over after so long without a map or a line on a serial port, or when"
            " the guest agent connects.",
        ),
    ] = f"{QUIET_SECONDS:g}",
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the trace and the facts there.")
    ] = None,
    clear: Annotated[
        bool, typer.Option("--clear", help="Remove the probes that a killed profile left.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Boot an existing libvirt domain once, and show where the time goes and what would help."""
    _logging(verbose)
    if clear:
        with Progress().task("profile --clear"):
            clear_profile(connect, ssh_config)
        return
    if domain is None:
        raise ScenarioError("profile: no DOMAIN is given", hint="virsh list --all names them")
    request = ProfileRequest(domain, connect, ssh_config, reboot, _until(until))
    with Progress().task("profile") as progress:
        recorded = record(request, progress)
        if save is not None:
            recorded.save(save)
        found = analyse_profile(recorded.facts, recorded.files)
    if as_json:
        _print_json(profile_json(found))
    else:
        print(text_profile(found), end="")


def _until(text: str) -> float | Literal["agent"]:
    """Parse the value of --until. Raises ScenarioError."""
    if text == "agent":
        return "agent"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ScenarioError(f"--until {text}: neither seconds above 0 nor the word agent")
    return seconds


@app.command()
def schema() -> None:
    """Print the JSON schema of a scenario file, for editors."""
    _print_json(file_schema())


@app.command()
def recover(
    host: Annotated[str, typer.Argument(metavar="HOST", help="As ssh knows it; or a scenario.")],
    ssh_config: SshConfig = None,
    deadline: Annotated[
        int | None,
        typer.Option(min=180, help="Seconds within which it is back after a boot (600)."),
    ] = None,
    wait: Annotated[
        int, typer.Option(min=0, help="Seconds to wait for the lease of a runner that is gone.")
    ] = 120,
    keep_kernel: Annotated[
        bool, typer.Option("--keep-kernel", help="The kernel that runs is its own by now.")
    ] = False,
    power_cycle: Annotated[
        bool,
        typer.Option("--power-cycle", help="Where it does not answer; another may be using it."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Put a metal host back as it was before a run that was killed, on its own kernel."""
    _logging(verbose)
    spec = _metal_host(host, ssh_config, deadline, wait)
    if power_cycle and spec.power_cycle is None:
        raise ScenarioError("--power-cycle: only a scenario's host.power_cycle says how")
    with Progress().task(f"recover {spec.address}") as progress, bench_state() as state:
        found = recover_host(
            spec, state.folder / "metal", progress, keep_kernel=keep_kernel,
            power_cycle=power_cycle,
        )  # fmt: skip
    print(f"{spec.address}: " + ("put back as it was" if found else "nothing to recover"))


def _metal_host(host: str, ssh_config: Path | None, deadline: int | None, wait: int) -> MetalHost:
    """Return the metal host at an SSH address, or of a scenario file with its power and console
    settings."""
    if host.endswith(".toml"):
        if ssh_config is not None:
            raise ScenarioError(f"--ssh-config: {host} says how its host is reached")
        hosts = [cell.scenario.host for cell in load_scenarios(Path(host)).cells]
        machines = {each.address: each for each in hosts if isinstance(each, MetalHost)}
        if not machines:
            raise ScenarioError(
                f'{host}: host.kind is "{hosts[0].kind}", and there is nothing to put back'
            )
        if len(machines) > 1:
            raise ScenarioError(
                f"{host}: its cells have {len(machines)} machines",
                hint="; ".join(f"barometer recover {address}" for address in machines),
            )
        given = {"wait": wait} | ({"deadline": deadline} if deadline is not None else {})
        return next(iter(machines.values())).model_copy(update=given)
    try:
        return MetalHost(
            kind="metal", address=host, ssh_config=ssh_config, deadline=deadline or 600, wait=wait
        )
    except ValidationError as exc:
        raise ScenarioError(
            f"{host}: {exc.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from exc


@app.command()
def doctor(
    host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="A machine, as ssh(1) takes it; default: this one."),
    ] = None,
    ssh_config: SshConfig = None,
    scenario: Annotated[
        Path | None, typer.Option(help="What is asked for; with --cell of a matrix.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Count one small map of a device on vfio-pci.")
    ] = False,
    overrides: Overrides = None,
    names: CellNames = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Report what this machine or HOST can do and what is in the way; changes nothing."""
    _logging(verbose)
    asked = None
    if scenario is not None:
        _, cells = _load(scenario, overrides, None, names)
        if len(cells) > 1:
            raise ScenarioError(
                f"--scenario {scenario}: its matrix has {len(cells)} cells",
                hint=f"name one: --cell {cells[0].name}", reason="scenario",
            )  # fmt: skip
        asked = cells[0].scenario
    with Progress().task("doctor"):
        found = diagnose(asked, host, ssh_config, Cache(), probe=probe)
    if as_json:
        _print_json(json_diagnosis(found))
    else:
        print(text_diagnosis(found), end="")
    raise typer.Exit(found.exit_code)


@app.command()
def clean(as_json: AsJson = False) -> None:
    """End and remove what killed runs left on this machine, and only that."""
    with Progress().task("clean"):
        lines = [*clean_state(), *(f"removed {path}" for path in Cache().sweep())]
    if as_json:
        _print_json({"schema": 1, "done": lines})
        return
    for line in lines or ["nothing to clean"]:
        print(line)


def _step_summary(github: bool) -> Path | None:
    """Return the file of GitHub's job summary, checked before anything boots. Raises
    ScenarioError."""
    if not github:
        return None
    if not (name := os.environ.get("GITHUB_STEP_SUMMARY")):
        raise ScenarioError(
            "--github: GITHUB_STEP_SUMMARY is not set",
            hint="GitHub Actions sets it in each step; leave --github out elsewhere",
            reason="no-step-summary",
        )
    try:
        Path(name).open("a").close()
    except OSError as exc:
        raise ScenarioError(
            f"--github: GITHUB_STEP_SUMMARY, {name}, cannot be written: {exc.strerror}",
            reason="no-step-summary",
        ) from exc
    return Path(name)


def _judged(folder: Path, tester: str | None = None) -> Judged:
    tester = tester or _git_user()
    with no_space_explained(folder):
        found = (
            judge_cells(MatrixDir(folder), tester)
            if MatrixDir.is_at(folder)
            else judged(RunDir.open(folder), tester)
        )
    found.document["run"] = str(folder)
    return _exiting(found, found.exit_code)


def _exiting(found: Judged, code: int) -> Judged:
    return found._replace(exit_code=code, document=found.document | {"exit_code": code})


def _told(
    found: Judged, as_json: bool, step_summary: Path | None, *, table: bool = False
) -> NoReturn:
    if as_json:
        _print_json(found.document)
    else:
        print(f"{found.report}\nrun: {found.document['run']}" if table else found.brief)
    if step_summary is not None:
        with step_summary.open("a", encoding="utf-8") as file:
            file.write(job_summary(found.suites))
        # GitHub reads commands on either stream
        stream = sys.stderr if as_json else sys.stdout
        print(workflow_commands(found.suites), end="", file=stream)
    raise typer.Exit(found.exit_code)


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _git_user() -> str | None:
    """Return `Name <mail>` as git would sign here, or None if git knows no name or no mail."""
    said = []
    for key in ("user.name", "user.email"):
        try:
            found = execute(
                ["git", "config", key], doing="the tester's name", accept=(0, 1),
                timeout=_GIT_SECONDS,
            )  # fmt: skip
        except BenchError:  # no git, or its configuration is broken: that is no reason to fail
            return None
        said.append(found.stdout.strip())
    name, mail = said
    return f"{name} <{mail}>" if name and mail else None


def _version(value: bool) -> None:
    if value:
        print(f"barometer {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def _logging(verbose: bool) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("barometer").setLevel(level)


def _check_folder() -> None:
    """Raise ScenarioError if the current folder was removed: relative paths then lead nowhere."""
    try:
        Path.cwd()
    except FileNotFoundError as exc:
        raise ScenarioError(
            "the current folder was removed", hint="change to one that exists", reason="path"
        ) from exc


def _no_space(exc: OSError) -> BarometerError:
    """Return the error for a full disk: that of the file in `exc`, else that of a folder to which
    every run writes, else that of standard output."""
    if (place := exc.filename or next(iter(full_places()), None)) is not None:
        return disk_full(Path(place))
    _drop_output()
    return BenchError(f"standard output: {exc.strerror}", reason="disk-full")


def _drop_output() -> None:
    """Send the rest of the output to /dev/null. Python would try to write it again at its end."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point of the command."""
    interrupts.install()
    code = _run()
    interrupts.settle()
    sys.exit(code)


def _run() -> int:
    stderr = ErrorConsole()

    def say(text: str, reason: str = "") -> None:
        """Print on standard error. The last line is for scripts."""
        last = f"\nreason: {reason}" if reason else ""
        with contextlib.suppress(OSError):  # nobody reads it: the exit code still tells
            stderr.print(f"barometer: {text}{last}", markup=False, soft_wrap=True)

    def failed(exc: BarometerError) -> int:
        say(f"error: {exc}", exc.reason if exc.reason != UNNAMED else "")
        return exc.exit_code

    def interrupted(by: str = "") -> int:
        say(f"interrupted{by}; what it started was ended, or is named above", "interrupted")
        return interrupts.EXIT_CODE

    def unexpected() -> int:
        """Report a bug. After an interrupt, report the interrupt instead: KeyboardInterrupt within
        a wait can break Python's own code."""
        if interrupts.is_requested():
            logging.getLogger("barometer").debug("%s", traceback.format_exc())
            return interrupted()
        say("this is a bug in barometer:\n" + traceback.format_exc().rstrip(), "bug")
        return 70

    try:
        return _invoke()
    except BarometerError as exc:
        return failed(exc)
    except _UsageError as exc:
        if message := exc.format_message():  # without arguments, the help was printed instead
            say(f"error: {message}", "command-line")
        return ScenarioError.exit_code
    except (KeyboardInterrupt, typer.Abort) as exc:
        return interrupted(f" by {exc}" if str(exc) else "")
    except BrokenPipeError:
        _drop_output()
        return 141
    except OSError as exc:
        if exc.errno in NO_SPACE:
            return failed(_no_space(exc))
        if exc.filename is None or exc.errno not in _OF_A_PATH:
            return unexpected()
        say(f"error: {exc.filename}: {exc.strerror}", "path")
        return ScenarioError.exit_code
    except Exception:  # noqa: BLE001  # the last resort: a bug, reported as one
        return unexpected()


def _invoke() -> int:
    """Run a command to the end of its output and return its exit code. This does not call app(),
    which has exit codes of its own for an interrupt and a closed pipe."""
    command, code = typer.main.get_command(app), 0
    try:
        with command.make_context("barometer", sys.argv[1:]) as context:
            _check_folder()
            command.invoke(context)
    except typer.Exit as exc:
        code = exc.exit_code
    if sys.stdout is not None:  # it is None if it was closed from the beginning
        sys.stdout.flush()
    return code


if __name__ == "__main__":
    main()
