"""Write tests/unit/slow.txt, the unit tests that are left out of the inner loop, and print the
total cost of the others.

    HYPOTHESIS_PROFILE=desk .venv/bin/python -m pytest tests/unit --junit-xml=unit.xml
    .venv/bin/python ci/bench/slowest.py unit.xml

A test is slow if it starts a process, takes 0.3 CPU seconds or more, or waits for a second or
more. A test with parameters is slow if one of its cases is. tests/unit/costs.py records the costs.
Measure on an idle machine: on a busy one everything takes more CPU time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

SLOW = Path(__file__).parents[2] / "tests/unit/slow.txt"
CPU_SECONDS = 0.3
WAIT_SECONDS = 1.0


class Cost(NamedTuple):
    test: str
    """The test's id without parameters."""
    cpu: float
    waited: float
    processes: int

    @property
    def is_slow(self) -> bool:
        return self.processes > 0 or self.cpu >= CPU_SECONDS or self.waited >= WAIT_SECONDS


def read_costs(junit: Path) -> Iterator[Cost]:
    for case in ET.parse(junit).iter("testcase"):
        file, name = case.attrib["classname"].replace(".", "/"), case.attrib["name"]
        facts = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        yield Cost(
            f"{file}.py::{name.partition('[')[0]}", float(facts["cpu"]), float(facts["waited"]),
            int(facts["processes"]),
        )  # fmt: skip


def main() -> None:
    costs = [*read_costs(Path(sys.argv[1]))]
    slow = {cost.test for cost in costs if cost.is_slow}
    SLOW.write_text("".join(f"{test}\n" for test in sorted(slow)))
    for name, some in (
        ("slow", [cost for cost in costs if cost.test in slow]),
        ("quick", [cost for cost in costs if cost.test not in slow]),
    ):
        print(f"{len(some)} {name}: {sum(c.cpu for c in some):.1f} CPU s")


if __name__ == "__main__":
    main()
