"""Trials for judging: a small one recorded at 1 GiB, copied and altered. Its traced boot is from
another boot of the same host."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.analysis.verdict.comparison import Comparison
from orchestrator.base.hashing import sha256_file
from orchestrator.evidence.layout import MANIFEST, RunDir, TrialDir
from orchestrator.run.judging.judge import judge
from orchestrator.scenario.model import Scenario

RUN = Path(__file__).parent / "data/run"
MEASURED = "0002-candidate"
FAILED = "0001-baseline"
TRACE = "host/trace-guest-1.txt.gz"
BAR = 1 << 30
PAGES = BAR // 4096


def copied(tmp_path: Path, name: str = MEASURED, under: str = "") -> Path:
    """Copy a recorded trial, so that a test may change it."""
    target = tmp_path / (under or name)
    shutil.copytree(RUN / "trials" / name, target)
    return target


def copied_run(folder: Path) -> Path:
    """Make a run of two trials in `folder`, with a plain and a traced boot each. Its candidate is
    better."""
    folder.mkdir()
    for name in ("scenario.toml", "plan.json"):
        shutil.copy(RUN / name, folder)
    unpatched(folder / "trials")
    copied(folder / "trials")
    return folder


def judge_and_save(run: RunDir, tester: str | None = None) -> tuple[Scenario, Comparison, str]:
    """Judge a run and save the result in it. Return its text report, too."""
    judged = judge(run, tester)
    judged.save()
    return judged.scenario, judged.comparison, judged.report


def sealed(folder: Path, **facts: Any) -> TrialDir:
    """Seal the trial as if its files had been collected in their present state."""
    manifest = json.loads((folder / MANIFEST).read_text()) | facts
    manifest["files"] = {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return TrialDir.open(folder)


def read(path: Path) -> str:
    """Read a text file, compressed or not."""
    return (
        gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    )


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    """Change a text file. Raises AssertionError if nothing changes."""
    before = read(path)
    after = change(before)
    assert after != before, f"{path} is what it was"
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(after.encode(), 1, mtime=0))
    else:
        path.write_text(after)


def unpatched(tmp_path: Path, name: str = "0001-baseline", seconds: float = 0.5) -> TrialDir:
    """Make the recorded trial look as if an unpatched kernel made it: one lookup for each page,
    and maps that take `seconds`."""
    trial = copied(tmp_path, under=name)
    rewrite(trial / "host/hist-lookup.txt", page_by_page)
    snapshots(trial, lookup=page_by_page)
    rewrite(
        trial / "host/profile-counts.txt",
        lambda text: re.sub(r"(lookup +)(\d+)", lambda m: f"{m[1]}{int(m[2]) * PAGES}", text),
    )
    rewrite(trial / TRACE, lambda text: slow_maps(text, seconds))
    return sealed(trial, trial=name, arm="baseline")


def page_by_page(histogram: str) -> str:
    """Turn lookups of a whole BAR into lookups of its pages."""
    whole = histogram.replace(f"ret: {PAGES:>10}", "ret:          1")
    return re.sub(r"(hitcount: +|Hits: )(\d+)", lambda m: f"{m[1]}{int(m[2]) * PAGES}", whole)


def snapshots(trial: Path, **changes: Callable[[str], str]) -> None:
    """Change, by event, the histograms that were read after each sample."""

    def changed(text: str) -> str:
        whole = json.loads(text)
        for taken in samples(whole):
            for event, change in changes.items():
                taken["snapshots"][event] = change(taken["snapshots"][event])
        return json.dumps(whole)

    rewrite(trial / "map.json", changed)


def samples(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the samples of map.json's counts pass; the first is the warm-up's."""
    return [s for point in whole["passes"]["counts"]["points"] for s in point["samples"]]


def slow_maps(trace: str, seconds: float) -> str:
    """Let every map of the BAR return `seconds` after it began."""
    lines = trace.splitlines()
    started: float | None = None
    for number, line in enumerate(lines):
        time = re.search(r"(\d+\.\d+): ioctl_(in|out): .* cmd=0x3b71", line)
        if time is None:
            continue
        if time[2] == "in":
            started = float(time[1]) if f"q24={BAR:#x}" in line else None
        elif started is not None:
            lines[number] = line.replace(time[1], f"{started + seconds:.6f}")
    return "\n".join(lines) + "\n"
