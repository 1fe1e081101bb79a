"""What made a night red: the kernel or the machine, and since which commit.

    NIGHT/candidate.json   the commit that the candidate was made from, if it was made from one
    NIGHT/red.txt          the answer
    NIGHT/red/red.json     what was asked, and how far the answer is
    NIGHT/red/again/       the last good candidate against tonight's, on this machine, in turns
    NIGHT/red/bisect/      a bisection between the two, if both are commits of one repository

Both candidates run again, side by side: if they differ, it is the kernel; if they do not,
something else has changed since that night. Each verb is a process of its own, as in the night.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import tomlkit

from orchestrator.base import interrupts
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.plainfile import read_plain_text, replace_file
from orchestrator.base.reasons import Reason
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.kernels.series.git import commit_id, find_repository, locate
from orchestrator.report.words.quantities import ratio_text
from orchestrator.run.bundles.packing import find_cached_kernel, pin_package
from orchestrator.run.judging.judge import Run, judge, open_run
from orchestrator.scenario.kernel_forms import DebKernel, Kernel, ModuleKernel, TreeKernel
from orchestrator.scenario.loading import parse_toml, set_key

ANSWER = "red.txt"
_COMMIT, _RED = "candidate.json", "red"
_STATE = "red.json"
Culprit = Literal["kernel", "machine", "not known"]
Execute = Callable[..., int]
"""Runs a verb of barometer to its end, or to the end of the budget; returns its exit code."""
_OVER = interrupts.EXIT_CODE
"""Exit code of a verb that the end of the budget, or a signal, has ended."""


@dataclass(frozen=True)
class KernelCommit:
    """A commit that a kernel, or its changed modules, is made from."""

    repository: Path
    """As the scenario names it."""
    sha: str

    @classmethod
    def of(cls, kernel: Kernel) -> KernelCommit | None:
        """Return the commit that a kernel's `ref` names now. None for a kernel of another kind,
        and for one with patches on top, which are no commits. Raises ScenarioError if there is no
        such commit."""
        if isinstance(kernel, TreeKernel):
            place: Path | None = kernel.tree
        elif isinstance(kernel, ModuleKernel):
            place = kernel.module
        else:
            return None
        if kernel.series or place is None or (repository := find_repository(place)) is None:
            return None
        return cls(place, commit_id(locate(repository), kernel.ref or "HEAD", place))

    @classmethod
    def read(cls, night: Path) -> KernelCommit | None:
        """Return the commit of a night's candidate, if it was recorded."""
        found = _read_record(night / _COMMIT)
        repository, sha = found.get("repository"), found.get("commit")
        return cls(Path(repository), sha) if repository and sha else None

    def write(self, night: Path) -> None:
        record = {"repository": str(self.repository), "commit": self.sha}
        replace_file(night / _COMMIT, json.dumps(record) + "\n")


@dataclass(frozen=True)
class RedNight:
    """A night whose candidate regressed since an earlier one."""

    run: Path
    """Folder of the night's run, or of a cell of it."""
    before: Path
    """The same of the earlier night."""
    good: KernelCommit | None
    bad: KernelCommit | None

    @property
    def folder(self) -> Path:
        return self.run / _RED

    @classmethod
    def of(cls, run: Path, before: Path, nights: Path) -> RedNight:
        """Return the red night of a run; `nights` is the folder of all nights."""
        good, bad = (
            KernelCommit.read(nights / each.relative_to(nights).parts[0]) for each in (before, run)
        )
        return cls(run, before, good, bad)

    @classmethod
    def find_unfinished(cls, nights: Path) -> RedNight | None:
        """Return the latest of the nights whose bisection was not done within its budget."""
        places = (nights.glob(f"{run}/{_RED}/{_STATE}") for run in ("2*Z", "2*Z/cells/*"))
        for path in sorted(chain.from_iterable(places), reverse=True):
            state = _read_record(path)
            before = nights / str(state.get("before"))
            if state.get("state") == "unfinished" and before.is_dir():
                return cls.of(path.parents[1], before, nights)
        return None

    def explain(self, execute: Execute, folder: Path) -> Culprit:
        """Find out what can be found out within the budget, and write it down. A later call goes
        on where this one stopped. `folder`: where the night's scenario file is."""
        self.folder.mkdir(exist_ok=True)
        culprit: Culprit = "not known"
        is_done, answer = True, ""
        try:
            again, is_done = self._measure_again(execute, folder)
            culprit = _blame(again)
            answer = _describe(again, culprit)
            if culprit == "kernel" and is_done:
                is_done, found = self._bisect(again, execute)
                answer += "\n" + found
        except BarometerError as exc:
            answer = f"Kernel or machine is not known: {exc.message}\n"
        reports = "".join(
            f"  {path}\n"
            for path in (self.run / "compare.txt", self.run / "report.html",
                         self.folder / "again/report.html", self.folder / "bisect/bisect.txt")
            if path.is_file()
        )  # fmt: skip
        text = f"{answer}\nThe last good night: {self.before}\nReports:\n{reports}"
        replace_file(self.run / ANSWER, text)
        state = {"before": str(self.before), "culprit": culprit,
                 "state": "done" if is_done else "unfinished"}  # fmt: skip
        replace_file(self.folder / _STATE, json.dumps(state) + "\n")
        return culprit

    def _measure_again(self, execute: Execute, folder: Path) -> tuple[Run, bool]:
        """Measure both candidates in one run. Return it, and whether it came to its end. Raises
        ScenarioError if a kernel is gone, and BenchError if the run does not begin."""
        scenario, out = self.folder / "again.toml", self.folder / "again"
        if not scenario.is_file():
            replace_file(scenario, build_again(self.before, self.run, folder, Cache()))
        code = execute("run", str(scenario), "--out", str(out))
        if not (out / "plan.json").is_file():
            raise BenchError(
                f"the last good candidate did not run again (exit code {code}):"
                f" barometer run {scenario} --out {out}",
                reason=Reason.NOT_MEASURED,
            )
        return judge(open_run(out)), code != _OVER

    def _bisect(self, again: Run, execute: Execute) -> tuple[bool, str]:
        """Bisect between the candidates' commits. Return whether it is done, and what it says."""
        regressed = [m for m in again.comparison.metrics if m.verdict == "regressed"]
        if self.good is None or self.bad is None or self.good.repository != self.bad.repository:
            return True, "The candidates are no commits of one repository: nothing is bisected.\n"
        if self.good == self.bad or not regressed:
            return True, "There is nothing to bisect: no commit or no metric differs.\n"
        deciding = [m for m in regressed if m.name in again.comparison.deciding]
        metric = max(deciding or regressed, key=lambda m: m.ratio or 0.0).name
        candidate = judge(open_run(self.run)).scenario.arms["candidate"].kernel
        out = self.folder / "bisect"
        arguments = [
            "bisect", "--tree", str(self.bad.repository), "--good", self.good.sha,
            "--bad", self.bad.sha, "--metric", metric, "--scenario",
            str(self.folder / "again.toml"), *_list_build_options(candidate), "--out", str(out),
        ]  # fmt: skip
        code = execute(*arguments)
        found = _read_record(out / "bisect.json")
        if found.get("first_bad") or found.get("one_of"):
            return True, read_plain_text(out / "bisect.txt")
        command = shlex.join(["barometer", *arguments])
        if code in (_OVER, BenchError.exit_code):
            return False, (
                f"The first bad commit is not known yet. The next night goes on, or:\n{command}\n"
            )
        return True, f"The bisection ended with exit code {code}:\n{command}\n"


def build_again(before: Path, tonight: Path, folder: Path, cache: Cache) -> str:
    """Return the scenario of a run of the earlier night's candidate (baseline) against tonight's
    (candidate): tonight's scenario, with the settings of its candidate in both arms. Its relative
    paths start at `folder`. Raises ScenarioError if one of the kernels is gone."""
    old, new = judge(open_run(before)), judge(open_run(tonight))
    document = parse_toml(open_run(tonight).scenario(), str(tonight))
    settings = {k: v for k, v in document["arms"]["candidate"].items() if k != "kernel"}
    for arm, run in (("baseline", old), ("candidate", new)):
        kernel = run.scenario.arms["candidate"].kernel
        document["arms"].pop(arm, None)
        table = _spell(kernel, run.plan.kernels["candidate"], cache)
        set_key(document, ("arms", arm, "kernel"), table)
        for key, value in settings.items():
            set_key(document, ("arms", arm, key), value)
    if new.scenario.guest is not None and new.plan.guest_kernel is not None:
        table = _spell(new.scenario.guest.kernel, new.plan.guest_kernel, cache)
        set_key(document, ("guest", "kernel"), table)
    if ssh_config := document.get("host", {}).get("ssh_config"):
        document["host"]["ssh_config"] = str((folder / ssh_config).absolute())
    document["name"] = f"again-{new.scenario.name}"
    for key in ("history", "matrix"):
        document.pop(key, None)
    if "expect" in document:  # its bounds are about the scenario's own baseline
        document["expect"] = dict.fromkeys(document["expect"], "not-regressed")
    return tomlkit.dumps(document)


def _spell(kernel: Kernel, record: KernelRecord, cache: Cache) -> Any:
    """Return a kernel that a run had, as a scenario names it: from the cache, or the package of
    exactly that version."""
    table = tomlkit.inline_table()
    if (place := find_cached_kernel(cache, record)) is not None:
        table["dir"] = str(place)
    elif isinstance(kernel, DebKernel) and not isinstance(kernel, ModuleKernel):
        table.update(pin_package(kernel, record).model_dump(exclude_none=True))
    else:
        raise ScenarioError(
            f"the kernel {record.release} ({record.source}) is not in the cache {cache.root} now",
            reason=Reason.NO_SUCH_KERNEL,
        )
    return table


def _blame(again: Run) -> Culprit:
    """Return what both candidates, measured side by side, say."""
    blamed: Mapping[str, Culprit] = {
        "regressed": "kernel", "equivalent": "machine", "improved": "machine",
    }  # fmt: skip
    return blamed.get(again.comparison.verdict, "not known")


def _describe(again: Run, culprit: Culprit) -> str:
    heads = {
        "kernel": "It is the kernel: measured again beside the last good candidate, tonight's"
        " regressed.",
        "machine": "It is not the kernel: measured again beside the last good candidate, tonight's"
        " did not\nregress. The machine, or what runs on it, has changed since.",
        "not known": "Kernel or machine is not known: measured again beside the last good"
        f" candidate, tonight's\nis {again.comparison.verdict}.",
    }
    ratios = "".join(
        f"  {metric.name}: {ratio_text(metric.ratio)} {metric.verdict}\n"
        for metric in again.comparison.metrics
    )
    return f"{heads[culprit]}\nTonight's / last good, measured again:\n{ratios}"


def _list_build_options(kernel: Kernel) -> list[str]:
    """Return the options of a bisection that make its kernels as this one was made."""
    if isinstance(kernel, ModuleKernel):
        return ["--on", str(kernel.package)]
    options = kernel.config if isinstance(kernel, TreeKernel) else ()
    return [word for option in options for word in ("--config", option)]


def _read_record(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is none."""
    try:
        found = json.loads(read_plain_text(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
