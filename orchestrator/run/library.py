"""Barometer as a library: the names that `import orchestrator` offers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from orchestrator.base.errors import ScenarioError
from orchestrator.base.installed import missing_extra_explained
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.run.judging.judge import Run, judge, open_run
from orchestrator.scenario.choices import AccelChoice, Workload


def load(path: str | Path, tester: str | None = None) -> Run:
    """Judge a saved run. Nothing is written until `.save()`. `tester`: `Name <mail>` of whoever
    would give a Tested-by.

    Raises EvidenceError if the folder holds no run, and ScenarioError if it holds a matrix, each
    of whose cells is a run.
    """
    return judge(open_run(Path(path).absolute()), tester)


def compare(
    base: str,
    candidate: str | None = None,
    *,
    series: Sequence[str] = (),
    config: Sequence[str] = (),
    bar: str | None = None,
    accel: AccelChoice | None = None,
    workload: Workload | None = None,
    guest: str | None = None,
    pairs: int | None = None,
    cmdline: str = "",
    parameters: Mapping[str, str | bool] | None = None,
    sysfs: Mapping[str, str | bool] | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    keep: bool = False,
    show_progress: bool = False,
) -> Run:
    """Measure two kernels, as `barometer ab` does: the same names, checks, defaults and folders.
    The run is saved under `out`, or below runs/ in the current folder, and so are its reports.
    `cmdline`, `parameters` and `sysfs` are settings of the candidate. `show_progress`: print the
    stages on standard error.

    Raises the errors of orchestrator.base.errors; their texts name the options of `barometer ab`.
    """
    with missing_extra_explained():
        # imported only here: loading a run needs no bench
        from orchestrator.run import ab  # noqa: PLC0415
        from orchestrator.scenario.builder import ArmSettings  # noqa: PLC0415

    settings = ArmSettings(cmdline, parameters or {}, sysfs or {})
    pair = ab.Pair(base, candidate, series, config, settings)
    options = ab.Options(accel, workload, bar, guest)
    question = ab.describe_ab(pair, options, pairs, overrides)
    if question.file.has_matrix:
        raise ScenarioError(
            "overrides: a [matrix] is several runs",
            hint="barometer ab --set",
            reason=Reason.NOT_A_RUN,
        )
    progress = Progress(None if show_progress else Console(file=io.StringIO()))
    judged = ab.run_ab(question, None if out is None else Path(out), progress, keep=keep)
    return load(str(judged.document["run"]))
