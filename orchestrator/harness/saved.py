"""Saved runs in place of machines: each test is judged by the run that has what its marks ask for.
Connects to nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from orchestrator.analysis.verdict.across import SavedRun
from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir
from orchestrator.harness.marks import Keys, MarkedKeys
from orchestrator.run.judging.judge import Run, judge_saved_run, read_saved_run
from orchestrator.scenario.loading import parse_toml
from orchestrator.scenario.machines import NestedHost
from orchestrator.scenario.model import Scenario

JUDGING_KEYS = ("expect", "judgement", "history")
"""Keys by which a run is judged, not made: any run can be judged by those of a test."""
_DEPTH = 5
"""Folders between the one that is given and a run: OUT/name/cells/cell."""


class SavedRuns:
    """The runs below a folder. Each is read when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        """Raises EvidenceError if there is no run."""
        self.folder = folder
        self._folders = [*find_runs(folder)]
        self._judged: dict[tuple[Path, str], Run] = {}
        self._saved: dict[Path, SavedRun] = {}
        if not self._folders:
            raise EvidenceError(
                f"{folder} holds no run: no folder in it has a plan.json",
                hint="give the folder of a run, or one that holds runs",
                reason=Reason.MISSING_EVIDENCE,
            )

    def judge(self, marked: MarkedKeys) -> Run:
        """Judge the one run that was made as the marks ask. Raises ScenarioError if there is
        none, or more than one."""
        matching = [
            (folder, scenario) for folder in self._folders
            if (scenario := self._match(folder, marked)) is not None
        ]  # fmt: skip
        if len(matching) != 1:
            names = ", ".join(str(folder) for folder in dict(matching) or self._folders)
            problem = "several runs have" if matching else "no run has"
            raise ScenarioError(
                f"{marked.place}: {problem} what the marks ask for"
                f" ({_format_keys(marked.keys) or 'nothing'}): {names}",
                hint=f"a mark tells runs apart, such as {_MARK_EXAMPLE}",
                reason=Reason.NOT_A_RUN,
            )
        ((folder, scenario),) = matching
        key = folder, scenario.model_dump_json()
        if key not in self._judged:
            saved = replace(self._read(folder), scenario=scenario)
            self._judged[key] = judge_saved_run(saved, folder)
        return self._judged[key]

    def _match(self, folder: Path, marked: MarkedKeys) -> Scenario | None:
        """Return the scenario of a run with the marks' keys for judging; None if the run was made
        in another way than the marks ask. An accelerator that was chosen when the run was made
        counts as if its scenario named it."""
        saved, scenario = self._read(folder), apply_to_run(marked, folder)
        if scenario is None:
            return None
        asked, made = (_without_judging(s, saved.plan.accel) for s in (scenario, saved.scenario))
        return scenario if asked == made else None

    def _read(self, folder: Path) -> SavedRun:
        if folder not in self._saved:
            self._saved[folder] = read_saved_run(RunDir.open(folder))
        return self._saved[folder]


def apply_to_run(marked: MarkedKeys, folder: Path) -> Scenario | None:
    """Return the scenario of a saved run with the keys of marks; None if they do not go together,
    such as a guest's key with maps."""
    base = parse_toml(RunDir.open(folder).scenario(), str(folder)).unwrap()
    try:
        return marked.apply(base, folder)[0]
    except ScenarioError:
        return None


_MARK_EXAMPLE = '@pytest.mark.barometer(name="NAME") for the run of that scenario'


def _without_judging(scenario: Scenario, accel: str) -> Scenario:
    host = scenario.host
    if isinstance(host, NestedHost) and host.accel == "auto":
        host = host.model_copy(update={"accel": accel})
    fields = Scenario.model_fields
    defaults = {key: fields[key].get_default(call_default_factory=True) for key in JUDGING_KEYS}
    return scenario.model_copy(update={"host": host, **defaults})


def _format_keys(keys: Keys, above: str = "") -> str:
    """Format keys as `--set` takes them."""
    return ", ".join(
        _format_keys(value, f"{above}{key}.") if isinstance(value, dict)
        else f"{above}{key}={value}"
        for key, value in keys.items()
    )  # fmt: skip


def find_runs(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of runs below a folder, by name."""
    if (folder / "plan.json").is_file():
        if any(folder.glob("trials/[0-9]*")):  # else nothing was measured, as for a held host
            yield folder
    elif depth and folder.is_dir():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from find_runs(Path(entry.path), depth - 1)
