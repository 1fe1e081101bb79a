"""bundle.json: what a bundle has, and the numbers that should come out again.

bundle.json                first, with the sha256 of every other file
scenario.toml              the run's, with kernels that are had elsewhere, too
kernels/DIGEST/            vmlinuz, modules/, config of kernels that no mirror has
series/ARM/0001-....patch  the patches of a kernel, as far as they were still there
run/                       the evidence: scenario.toml, plan.json, kernels/, trials/
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.evidence.model import AccelName, BothArms, Evidence, FileName

BUNDLE = "bundle.json"
SCENARIO = "scenario.toml"
RUN = "run"
OF_A_MACHINE = ("address", "ssh_config", "console", "power_cycle")
"""Keys of [host] that belong to one lab: whoever runs the bundle names a machine of their own."""


class BundledKernel(Evidence):
    """A kernel of the run, and how to get it."""

    release: str
    source: str
    """The kernel as the run's scenario spelled it."""
    digest: str
    """Identifies the kernel's content in plan.json of the run."""
    folder: FileName | None = None
    """Folder of the bundle with the kernel. Null: packages of Debian, whose hashes are in
    run/plan.json."""


class BundledMetric(Evidence):
    """The values of a metric, one for each measured trial."""

    name: str
    unit: str
    """s, count or Ginsn."""
    baseline: tuple[float, ...]
    candidate: tuple[float, ...]
    ratio: float | None
    interval: tuple[float, float] | None
    """95 % interval of the ratio; null if there is none."""


class ArmOutcomes(Evidence):
    """What became of an arm's trials."""

    measured: int
    failed: tuple[str, ...]
    """Reasons of the trials that failed or are invalid."""


class BundleRecord(Evidence):
    """bundle.json."""

    schema_: Literal[1] = Field(alias="schema")
    barometer: str
    """Version that made the run."""
    scenario: str
    """Name of the scenario."""
    run: str
    """Name of the run's folder."""
    accel: AccelName
    verdict: str
    kernels: BothArms[BundledKernel]
    guest_kernel: BundledKernel | None
    conditions: BothArms[dict[str, str]]
    """Conditions of each arm's trials; empty if no trial got so far."""
    outcomes: BothArms[ArmOutcomes]
    metrics: tuple[BundledMetric, ...]
    notes: tuple[str, ...]
    """What is missing in the bundle."""
    files: dict[FileName, str]
    """Every other file -> its sha256."""
