"""Run the tests of a landing, or all of them, as `python -m ci.lanes`; see ci/test.sh."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ci.lanes import budget, plan
from ci.lanes.content import files_in
from ci.lanes.groups import ROOT, Group, read_groups
from ci.lanes.processes import Process, Runner, in_background
from ci.lanes.proofs import read_proofs
from ci.lanes.session import FULL, Session
from ci.lanes.versions import digest_versions
from orchestrator.base.cache import Cache
from orchestrator.base.errors import BarometerError

RESULTS = ROOT / ".results"
Mode = Literal["landing", "full", "prove"]
_FIRST = {
    "system packages": ("ci/setup.sh", "--late"),
    "the first images": (sys.executable, "-m", "ci.lanes.warm", "host", "machine"),
}
"""Commands for what the longest lanes need first. Other images are made while these lanes run."""
_WORKERS = str(len(os.sched_getaffinity(0)) + 1)
"""Workers of the unit tests: a third of the time they wait, for disks and for processes."""


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def run_tests(session: Session, mode: Mode, chosen: Sequence[Group]) -> int:
    """Run the unit tests, then the chosen groups on machines, and return the exit code. `prove`
    leaves out the unit tests."""
    content = plan.digest_contents(session.groups, files_in(ROOT))
    candidates = [
        group for group in plan.find_groups_with_full_tests(session.groups) if group in chosen
    ]
    processes = session.groups.processes(chosen)

    def fits(full: int) -> bool:
        return plan.sum_landing_seconds(session.budget, [*processes], full) <= plan.LIMIT

    work = plan.Work(tuple(candidates))
    if mode == "landing":
        changed = plan.find_changed_groups(candidates, content, session.proofs)
        if first := plan.choose_first_to_prove(changed, session.proofs, fits):
            names = " ".join(group.name for group in first)
            tell("what changed is more than one landing can prove. Run this first, and commit")
            tell(f"ci/proofs.toml: ci/test.sh --prove {names}")
            return 1
        work = plan.Work(changed, plan.draw(candidates, changed, _read_commit()))
    for why, groups in (("not proven", work.changed), ("drawn", work.drawn)):
        tell(f"full tests, {why}: {', '.join(group.name for group in groups) or 'none'}")
    results = session.runner.results
    with in_background(_FIRST, results / "first.log") as wait_for_first:
        if mode != "prove":
            unit = ("-q", "-n", _WORKERS, "tests/unit")
            session.run([Process("unit", unit, session.budget.get("unit", 0), on_tmpfs=True)])
            if session.wrong:
                return session.end()
        _tell_trouble(wait_for_first())
    landing = [
        _make_process(name, members, session.budget.get(name, 0))
        for name, members in processes.items()
    ]
    versions: dict[str, str] = {}
    try:
        # a test that needs an image or a kernel that is not ready waits at the cache's locks
        with in_background(_warm_command(mode), results / "images.log") as wait_for_images:
            session.run(_sort_longest_first(landing))
            _tell_trouble(wait_for_images())
        versions = _digest_versions(candidates)
        if mode == "landing":
            work = _add_moved(session, work, versions, candidates, fits)
        full = [
            _make_process(name, members, plan.sum_seconds(members, session.proofs), full=True)
            for name, members in session.groups.processes(work.groups).items()
        ]
        session.run(_sort_longest_first(full))
    finally:
        now = plan.digest_contents(session.groups, files_in(ROOT))
        session.prove(work.groups, content, now, versions)
    return session.end()


def _warm_command(mode: Mode) -> Mapping[str, Sequence[str]]:
    """Return the command that fetches and builds all that tests with machines need, as far as it
    is not cached."""
    full = [] if mode == "landing" else ["--full"]
    return {"images and kernels": (sys.executable, "-m", "ci.lanes.warm", *full)}


def _tell_trouble(output: str) -> None:
    if output:
        tell(f"packages or images were not fetched; tests that need them will fail\n{output}")


def _add_moved(
    session: Session,
    work: plan.Work,
    versions: Mapping[str, str],
    candidates: Sequence[Group],
    fits: plan.Fits,
) -> plan.Work:
    """Add to the work the groups whose packages have changed since they were proven."""
    known = [group for group in candidates if {group.name} <= versions.keys() & session.proofs]
    moved, unproven = plan.find_moved_groups(known, versions, session.proofs, work.groups, fits)
    for group in moved:
        tell(f"{group.name}: its packages have moved on since it was proven: full tests run")
    for group in unproven:
        tell(f"{group.name}: NOT PROVEN with today's packages, and no time for it in a landing;")
        tell(f"    ci/test.sh --prove {group.name}")
    return replace(work, moved=moved)


def _make_process(
    name: str, groups: Sequence[Group], seconds: float, *, full: bool = False
) -> Process:
    files = [test for group in groups for test in group.tests]
    workers = min(group.workers for group in groups)
    words = ["-v", *(["-n", str(workers)] if workers > 1 else [])]
    return Process(
        f"{name}{FULL}" if full else name,
        (*words, "-m", "full" if full else "not full", *files), seconds,
        boots=any(group.boots for group in groups),
    )  # fmt: skip


def _sort_longest_first(processes: Sequence[Process]) -> list[Process]:
    return sorted(processes, key=lambda process: -process.expected)


def _read_commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def _digest_versions(groups: Sequence[Group]) -> dict[str, str]:
    """Return group -> digest of its packages. A group whose packages are unknown is missing."""
    digests, cache = {}, Cache()
    for group in groups:
        try:
            digests[group.name] = digest_versions(group.versions, cache)
        except BarometerError as exc:
            tell(f"{group.name}: the packages of its machines are not known: {exc.message}")
    return digests


def run_quickly() -> int:
    """Run the pure tests alone and return the exit code."""
    words = ["-q", "-n", _WORKERS, "-m", "not slow and not linters", "tests/unit"]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "desk"}
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="ci/test.sh", description="The tests of a landing: unit tests, and each capability"
        " once on real machines; all tests of what changed since it was proven.",
    )  # fmt: skip
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="pure tests, half a minute")
    modes.add_argument("--full", action="store_true", help="every test there is")
    modes.add_argument("--prove", nargs="+", metavar="GROUP", help="all tests of these groups")
    options = parser.parse_args()
    if options.quick:
        return run_quickly()
    mode: Mode = "full" if options.full else "prove" if options.prove else "landing"
    if mode == "full":
        os.environ["HYPOTHESIS_PROFILE"] = "full"
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        groups = read_groups()
        chosen = [groups.find(name) for name in options.prove or ()] or groups.all
        runner = Runner(RESULTS, tell)
        with budget.OtherWork(runner.prefix) as others:
            session = Session(groups, read_proofs(), budget.read_budget(), runner, others.is_busy)
            return run_tests(session, mode, chosen)
    except ValueError as exc:
        print(f"ci/test.sh: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ci/test.sh: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
