"""One run of the tests and its outcome."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci.lanes import plan
from ci.lanes.budget import find_exceeded
from ci.lanes.groups import Group, Groups
from ci.lanes.processes import Finished, Process, Runner
from ci.lanes.proofs import FILE, Proof, write_proofs
from ci.lanes.results import Case, find_failures, find_summary, read_junit, sort_dearest

FULL = " full"
"""Suffix of the name of a process that runs tests marked `full`."""


@dataclass
class Session:
    groups: Groups
    proofs: dict[str, Proof]
    budget: Mapping[str, int]
    runner: Runner
    is_busy: Callable[[], bool]
    """True if other work than this run's used the CPUs."""
    file: Path = FILE
    """File that the proofs are written to."""
    wrong: list[str] = field(default_factory=list)
    """Reasons why the run fails, a line each."""
    summaries: dict[str, str] = field(default_factory=dict)
    cases: dict[str, tuple[Case, ...]] = field(default_factory=dict)
    """Process -> its tests, only for processes that ended and left nothing behind."""
    spent: dict[str, float] = field(default_factory=dict)
    """Lane of a landing -> seconds."""
    begun: float = field(default_factory=time.monotonic)

    def run(self, processes: Sequence[Process]) -> None:
        for finished in self.runner.run(processes, plan.STREAMS):
            self._take(finished)

    def _take(self, finished: Finished) -> None:
        name = finished.process.name
        log = finished.log.read_text(errors="replace")
        self.summaries[name] = find_summary(log) or f"no summary, exit code {finished.code}"
        self.runner.tell(f"{name}: {self.summaries[name]}")
        try:
            results = read_junit(finished.junit)
        except ValueError as exc:
            self.wrong.append(f"{name}: exit code {finished.code}, {exc}")
            print(find_failures(log, 60), flush=True)
            return
        if not name.endswith(FULL):
            self.spent[name] = results.seconds
        if finished.left:
            self.wrong.append(f"{name}: it left something:\n{finished.left}")
            return
        self.cases[name] = results.cases
        skipped = [case.name for case in results.cases if case.outcome == "skipped"]
        if finished.code:
            self.wrong.append(f"{name}: {self.summaries[name]}")
            self.wrong += [
                f"{case.file}::{case.name}: {case.message[:300]}"
                for case in results.cases
                if case.outcome == "failed"
            ]
            print(find_failures(log), flush=True)
        elif skipped:
            self.wrong.append(f"{name}: skipped, which proves nothing: {', '.join(skipped)}")

    def prove(
        self,
        ran: Iterable[Group],
        content: Mapping[str, str],
        now: Mapping[str, str],
        versions: Mapping[str, str],
    ) -> None:
        """Write the new proofs, and remove those that turned out to be false. `content` is group
        -> digest before the tests, `now` after them. A group whose files were edited meanwhile is
        not proven."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        for group in ran:
            landing, full = (self._select_cases(group, suffix) for suffix in ("", FULL))
            if not all(case.outcome == "passed" for case in (*landing, *full)):
                self.proofs.pop(group.name, None)
            elif not landing or not full or group.name not in versions:
                continue  # interrupted
            elif now[group.name] != content[group.name]:
                self.runner.tell(f"{group.name}: files changed while its tests ran: not proven")
            else:
                seconds = round(sum(case.seconds for case in full))
                self.proofs[group.name] = Proof(
                    content[group.name], versions[group.name], seconds, today
                )
        if self.proofs or self.file.exists():
            write_proofs(self.proofs, self.file)

    def _select_cases(self, group: Group, suffix: str) -> list[Case]:
        """Return the group's own tests of its landing process, or of its full one."""
        cases = self.cases.get(f"{group.process}{suffix}", ())
        return [case for case in cases if case.file in group.tests]

    def end(self) -> int:
        """Print the outcome and return the exit code."""
        elapsed = time.monotonic() - self.begun
        print("\nThe dearest tests:")
        cases = [case for some in self.cases.values() for case in some]
        for case in sort_dearest(cases):
            print(f"  {case.seconds:7.1f} s  {case.file}::{case.name}")
        print("\nSeconds by lane:")
        for name, seconds in self.spent.items():
            print(f"  {seconds:7.1f} s  of {self.budget.get(name, 0)}  {name}")
        if over := find_exceeded(self.spent, self.budget):
            if self.is_busy():
                print(
                    "over budget, on a machine that was busy with other work:", *over, sep="\n  "
                )
            else:
                self.wrong += [f"over budget: {line}" for line in over]
        print()
        for name, summary in self.summaries.items():
            print(f"===== {name}: {summary} =====")
        for line in self.wrong:
            print(f"FAILED {line}")
        outcomes = [case.outcome for case in cases]
        failed = len(outcomes) - outcomes.count("passed")
        print(
            f"{elapsed:.0f} s in all\n{outcomes.count('passed')} passed, {failed} failed",
            flush=True,
        )
        return 1 if self.wrong else 0
