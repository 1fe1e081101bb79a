"""Measure an A/B, from a scenario file or from a few options, and judge it: `barometer run`, `ab`
and the library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from orchestrator.analysis.verdict.power import check_power
from orchestrator.base import interrupts
from orchestrator.base.cache import Cache
from orchestrator.base.errors import ScenarioError, key_named
from orchestrator.base.folderlock import LOCK, only_writer
from orchestrator.base.installed import missing_extra_explained
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.history.place import find_place
from orchestrator.machine.runner.accel import choose_accel
from orchestrator.run.cells import is_every_cell_made, run_cells
from orchestrator.run.diskspace import no_space_explained
from orchestrator.run.judging.judge import Judged, Run, stop_rule
from orchestrator.run.judging.judgefolder import judge_folder, replace_exit_code
from orchestrator.run.judging.noise import remember_noise
from orchestrator.run.kernels import RunKernels
from orchestrator.run.trial import Visit
from orchestrator.run.trials import Runner, Schedule, ready_runner, run_plan
from orchestrator.scenario.builder import ArmSettings, Setting, build_ab_file, build_arms
from orchestrator.scenario.choices import GUEST_KERNEL, AccelChoice, Workload
from orchestrator.scenario.factors import Cell, ScenarioFile, parse_scenarios
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.kernel_spec import parse_kernel
from orchestrator.scenario.machines import MetalHost
from orchestrator.scenario.plan import make_plan
from orchestrator.scenario.vocabulary import ARMS

_BEGUN = {"plan.json", "matrix.json", "cells", "bisect.json"}
"""Names that identify the folder of a run, a matrix or a bisection."""


@dataclass(frozen=True)
class Pair:
    """Two kernels to compare, as the options of `barometer ab` name them. Relative paths start at
    the current folder."""

    base: str
    candidate: str | None = None
    """None: the base with `series` or `settings`."""
    series: Sequence[str] = ()
    config: Sequence[str] = ()
    settings: ArmSettings = field(default_factory=ArmSettings)


@dataclass(frozen=True)
class AbQuestion:
    """An A/B that is described completely: its scenario file, and its kernels by the options that
    name them."""

    file: ScenarioFile
    kernels: dict[str, Kernel]


@dataclass(frozen=True)
class Options:
    """The measurement, as the options of `barometer ab` and `bisect` describe it. None is the
    default."""

    accel: AccelChoice | None = None
    """None: chosen for this machine."""
    workload: Workload | None = None
    bar: str | None = None
    guest: str | None = None
    """Kernel of the guest."""

    def choose_setting(self) -> Setting:
        """Return the setting. Without an accelerator, choose the one that is most useful here:
        instruction counts tell more than the seconds of an emulation."""
        kernel, why, accel = None, "", self.accel
        if self.workload == "guest-boot":
            kernel = parse_kernel(self.guest or GUEST_KERNEL, "--guest", folder=Path.cwd())
        elif self.guest is not None:
            raise ScenarioError(
                "--guest applies to --workload guest-boot only", reason=Reason.SCENARIO
            )
        if accel is None:
            chosen, why = choose_accel("auto")
            accel = "kvm" if chosen == "kvm" else "exact"
        return Setting(accel, why, self.workload or "map", self.bar or "32GiB", kernel)


def describe_ab(
    pair: Pair, options: Options, pairs: int | None = None, overrides: Sequence[str] = ()
) -> AbQuestion:
    """Return the A/B of two kernels. Raises ScenarioError for what is wrong with the options."""
    here = Path.cwd()
    base = parse_kernel(pair.base, "--base", folder=here)
    candidate = None
    if pair.candidate:
        candidate = parse_kernel(pair.candidate, "--candidate", base=base, folder=here)
    arms = build_arms(base, candidate, pair.series, pair.config, pair.settings, here)
    text = build_ab_file(options.choose_setting(), *arms, pair.settings, pairs)
    file = parse_scenarios(text, "ab", here, overrides)
    names = ("--base", "--series" if pair.series else "--candidate")
    return AbQuestion(file, dict(zip(names, arms, strict=True)))


def run_ab(question: AbQuestion, out: Path | None, progress: Progress, *, keep: bool) -> Judged:
    """Check the kernels, write the scenario, then measure and judge it."""
    folder, kernels = choose_folder(out, question.file.name), RunKernels(Cache())
    with progress.stage("looking at the kernels"):
        for arm, (option, kernel) in zip(ARMS, question.kernels.items(), strict=True):
            with key_named(option):
                kernels.check(kernel)
                progress.note(f"{arm}: {kernels.describe(kernel)}")
    _begin(folder, question.file.text)
    progress.note(f"scenario: {folder / 'scenario.toml'}")
    return measure(question.file, question.file.cells, folder, kernels, progress, keep=keep)


def choose_folder(out: Path | None, name: str) -> Path:
    """Return the requested folder, or one named after the time. Raises ScenarioError if it holds
    something else than a run."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    folder = (out or Path("runs") / f"{name}-{stamp}").absolute()
    if folder.exists() and not folder.is_dir():
        raise ScenarioError(f"--out {folder}: is not a folder", reason=Reason.RUN_EXISTS)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    # these three are all that a run leaves if it ends right after its start
    if names and not names & _BEGUN and not names <= {"scenario.toml", "repo", LOCK}:
        raise ScenarioError(
            f"--out {folder}: is not empty and holds no run", reason=Reason.RUN_EXISTS
        )
    return folder


def _begin(folder: Path, text: str) -> None:
    """Write a new run's scenario, so that it can be read before anything is built for it."""
    if (folder / "plan.json").exists():
        return
    with no_space_explained(folder), only_writer(folder):
        (folder / "scenario.toml").write_text(text, "utf-8")


def measure(
    file: ScenarioFile, cells: tuple[Cell, ...], folder: Path, kernels: RunKernels,
    progress: Progress, *, keep: bool, visit: Visit | None = None,
) -> Judged:  # fmt: skip
    """Measure what is not measured yet, and judge everything. A run that is interrupted after its
    last trial is judged, too. The exit code reports the interrupt if something may be left undone:
    a metal host may not be as it was."""
    for cell in cells:
        check_power(cell.scenario)
    _check_histories(cells)
    with progress.task("run"):
        try:
            with (
                no_space_explained(folder),
                ready_runner(kernels, progress, keep=keep, visit=visit) as here,
            ):
                _run(file, cells, folder, here)
            with progress.stage("judging"):
                return judge_folder(folder, judged_run=_remember)
        except KeyboardInterrupt as exc:
            if not _is_made(file, cells, folder):
                raise
            progress.note(
                f"interrupted by {str(exc) or 'Ctrl-C'}: all trials are made, and are judged"
            )
            judging = interrupts.duty(f"judging {folder}", f"barometer report {folder}")
            with judging, progress.stage("judging"):
                judged = judge_folder(folder)
            on_metal = any(isinstance(cell.scenario.host, MetalHost) for cell in cells)
            return replace_exit_code(judged, interrupts.EXIT_CODE) if on_metal else judged


def _check_histories(cells: tuple[Cell, ...]) -> None:
    """Find out before anything boots whether the run can be added to its history, if it has
    one."""
    if any(find_place(cell.scenario.history.store) for cell in cells):
        with missing_extra_explained():
            # only here: it loads the libraries for databases, which are an extra
            from orchestrator.run.nights.remember import check_history  # noqa: PLC0415

        check_history(cell.scenario for cell in cells)


def _remember(run: Run) -> None:
    """Add a judged run to the noise of its machine, and to its history if it has one."""
    remember_noise(run)
    if find_place(run.scenario.history.store):
        from orchestrator.run.nights.remember import record_run  # noqa: PLC0415

        record_run(run)


def _run(file: ScenarioFile, cells: tuple[Cell, ...], folder: Path, here: Runner) -> None:
    if file.has_matrix:
        run_cells(file, cells, folder, here)
    else:
        (cell,) = cells
        run_plan(cell.scenario, cell.text, folder, here, stop_rule(cell.scenario))


def _is_made(file: ScenarioFile, cells: tuple[Cell, ...], folder: Path) -> bool:
    """True if every trial of these cells has been made."""
    if file.has_matrix:
        return is_every_cell_made(cells, folder)
    (cell,) = cells
    schedule = Schedule.of(make_plan(cell.scenario), stop_rule(cell.scenario))
    return schedule.is_all_made(folder)
