"""Make fixtures/recorded/noise.json from runs of one kernel against itself.

    .venv/bin/python ci/bench/noise.py RUN ... > fixtures/recorded/noise.json

For every time that a run measured there is one value for each trial, in the order of the trials.
Both arms have the same kernel, so the values differ by noise alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from orchestrator.analysis.trial import read_result
from orchestrator.evidence.layout import RunDir
from orchestrator.scenario.vocabulary import ARMS, METRICS


def main() -> None:
    runs = []
    for folder in map(Path, sys.argv[1:]):
        run = RunDir.open(folder)
        if len({run.plan().kernels[arm].digest for arm in ARMS}) != 1:
            sys.exit(f"{folder} is not a run of one kernel against itself")
        results = [read_result(trial) for trial in run.trials()]
        for name, kind in METRICS.items():
            values = [
                r.value(name) for r in results if r.kind == "measured" and r.samples.get(name)
            ]
            if kind != "count" and len(values) > 4:
                runs.append({"run": folder.name, "metric": name, "values": values})
    print(json.dumps({"schema": 1, "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
