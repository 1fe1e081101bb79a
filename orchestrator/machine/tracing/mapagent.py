"""The map agent's protocol (guests/agents/map.py): its request and its answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.base.errors import BenchError, EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.formats.abi import LEAVES
from orchestrator.machine.transport.answers import parsing
from orchestrator.scenario.map_workload import Map
from orchestrator.scenario.vocabulary import Point

REST_SECONDS = 1.0
"""Seconds that the agent sleeps before each ioctl on an exact host. They cost next to no real
time: an exact host skips the time in which it idles."""


def build_point_request(
    spec: Map, points: Sequence[Point], repeats: int, *, exact: bool, **more: Any
) -> dict[str, Any]:
    """Build map.py's request, with one entry for each size and alignment that has all its
    states. `exact`: the agent runs on an exact host."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for point in points:
        entry = entries.setdefault(
            (point.spelled, point.alignment),
            {"name": f"{point.spelled}/{point.alignment}",
             "size": "full" if point.spelled == "full" else point.size,
             "alignment": LEAVES[point.alignment],
             "states": []},
        )  # fmt: skip
        entry["states"].append(point.state)
    return build_request(spec, list(entries.values()), repeats, exact=exact, **more)


def build_request(
    spec: Map, points: Sequence[dict[str, Any]], repeats: int, *, exact: bool, **more: Any
) -> dict[str, Any]:
    """Build map.py's request from points in map.py's form."""
    return {"backend": spec.backend, "thp": spec.thp, "repeats": repeats,
            "points": points, "snapshots": {},
            "rest": REST_SECONDS if exact else 0.0,
            "realtime": exact, **more}  # fmt: skip


def parse_answer(line: str) -> tuple[str, Any]:
    """Parse one line of the agent. Raises EvidenceError if the kernel refused the map."""
    with parsing("the map agent's answer", line):
        ((kind, value),) = json.loads(line).items()
    if kind == "refused":
        # EvidenceError, as for a guest boot: its refused maps are found when the trace is judged
        raise EvidenceError(
            f"the BAR could not be mapped from the host's user space: {value}",
            reason=Reason.MAP_REFUSED,
        )
    return kind, value


def collect_answers(lines: Iterable[str], errors: str = "") -> dict[str, Any]:
    """Parse the map agent's lines into one value: the facts about itself, and its points with
    their samples. Raises EvidenceError if the kernel refused a map, BenchError if the agent's last
    line is missing."""
    answer: dict[str, Any] = {"points": []}
    for line in lines:
        kind, value = parse_answer(line)
        if kind == "agent":
            answer.update(value)
        elif kind == "point":
            answer["points"].append({**value, "samples": []})
        elif kind == "sample":
            answer["points"][-1]["samples"].append(value)
        elif kind == "end":
            return answer
    raise BenchError(
        "the map agent ended without its last word",
        evidence=errors[-1500:],
        reason=Reason.MAP_SILENT,
    )
