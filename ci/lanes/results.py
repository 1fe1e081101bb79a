"""Read the results of pytest's processes: the outcome of each test and how long it took."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SUMMARY = re.compile(r"^(?:=+ )?((?:\d+ \w+,? ?)+in [\d.]+s.*?|no tests ran in .*?)(?: =+)?$")


@dataclass(frozen=True)
class Case:
    file: str
    """Path of the test file from the repository's top folder."""
    name: str
    outcome: str
    """passed, failed or skipped; an error while setting up or tearing down counts as failed."""
    seconds: float
    message: str = ""
    """First line of the error of a failed test."""


@dataclass(frozen=True)
class Results:
    cases: tuple[Case, ...]
    seconds: float
    """Wall-clock seconds of the whole process, as pytest reports them."""


def read_junit(path: Path) -> Results:
    """Read a junit file. Raises ValueError if it is missing or cut off: the process was killed."""
    try:
        suite = ET.parse(path).getroot().find("testsuite")
    except (OSError, ET.ParseError) as exc:
        raise ValueError(f"{path.name}: {exc}") from exc
    if suite is None:
        raise ValueError(f"{path.name}: no testsuite")
    cases = []
    for case in suite.iter("testcase"):
        children = {child.tag: child.get("message", "") for child in case}
        errors = [children[tag] for tag in ("error", "failure") if tag in children]
        outcome = "failed" if errors else "skipped" if "skipped" in children else "passed"
        # classname is tests.lab.test_x or tests.lab.test_x.TestClass
        module = re.sub(r"\.[A-Z].*", "", case.attrib["classname"])
        file = module.replace(".", "/") + ".py"
        message = "".join(errors).partition("\n")[0]
        cases.append(Case(file, case.attrib["name"], outcome, float(case.attrib["time"]), message))
    return Results(tuple(cases), float(suite.attrib["time"]))


def find_summary(log: str) -> str:
    """Return pytest's own last line, without its frame; empty if there is none."""
    summaries = [match[1] for line in log.splitlines() if (match := _SUMMARY.match(line))]
    return summaries[-1] if summaries else ""


def find_failures(log: str, lines: int = 300) -> str:
    """Return the part of pytest's output that reports failures, at most the last `lines` lines."""
    start = re.search(r"(?m)^=+ (ERRORS|FAILURES) =+$", log)
    return "\n".join(log[start.start() if start else 0 :].splitlines()[-lines:])


def sort_dearest(cases: Sequence[Case], count: int = 10) -> list[Case]:
    return sorted(cases, key=lambda case: -case.seconds)[:count]
