"""Made-up runs for stores: a night of a kernel, of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from orchestrator.base.hashing import digest_of
from orchestrator.history.rows import (
    EffectRow,
    FailureRow,
    RunRow,
    SampleRow,
    StoredRun,
    TrialRow,
)
from orchestrator.scenario.vocabulary import ARMS, ArmName

FIRST_NIGHT = datetime(2026, 1, 1, 2, tzinfo=UTC)
CONDITIONS: dict[ArmName, dict[str, str]] = {
    arm: {"host.qemu": "10.0.2", "host.kernel.release": arm, "runner.cpu": "A Processor"}
    for arm in ARMS
}


def night_of(
    day: int,
    ratios: Mapping[str, float],
    *,
    machine: str = "gpu1",
    scenario: str = "nightly",
    pairs: int = 2,
    baseline: float = 2.0,
    verdict: str = "equivalent",
    conditions: Mapping[ArmName, Mapping[str, str]] = CONDITIONS,
    folder: str = "",
    commit: str | None = None,
    kernel: str = "",
    failures: Sequence[FailureRow] = (),
) -> StoredRun:
    """Return the run of a night in which each metric has this ratio in every pair."""
    started = (FIRST_NIGHT + timedelta(days=day)).isoformat()
    trials, samples = [], []
    for number in range(1, 2 * pairs + 1):
        arm = ARMS[(number - 1) % 2]
        name = f"{number:04}-{arm}"
        pair = (number + 1) // 2
        trials.append(TrialRow(number, name, arm, pair, "measured", "", "", "", started, 60.0,
                               digest_of({"trial": name, "at": started})))  # fmt: skip
        samples += [
            SampleRow(metric, number, baseline * (ratio if arm == "candidate" else 1))
            for metric, ratio in ratios.items()
        ]
    effects = [
        EffectRow(metric, "s", verdict, metric == next(iter(ratios)), ratio, ratio * 0.99,
                  ratio * 1.01, 0.5, baseline, baseline * ratio, pairs, 0.01)
        for metric, ratio in ratios.items()
    ]  # fmt: skip
    folder = folder or f"/nights/{machine}/{scenario}/{started}"
    key = digest_of({"machine": machine, "scenario": scenario, "started": started})
    run = RunRow(
        key, digest_of({"trials": [trial.digest for trial in trials], "v": verdict}), folder,
        machine, scenario, "none", "guest-boot", started, "0.1.0", verdict, verdict,
        1 if verdict == "regressed" else 0, len(trials), len(trials), 0, 0, "6.12.1", "deb:x@y",
        f"7.{day}", "tree:linux@HEAD", commit, kernel or digest_of({"day": day}),
    )  # fmt: skip
    return StoredRun(
        run, tuple(trials), tuple(failures), tuple(effects), tuple(samples), conditions
    )
