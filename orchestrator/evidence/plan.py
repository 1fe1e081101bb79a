"""plan.json: the order of a run's trials, and exactly what they use."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.model import AccelName, BothArms, Count, Evidence, FileName
from orchestrator.scenario.vocabulary import ARMS, ArmName, Pass, Role


class SettingsRecord(Evidence):
    """Settings of an arm besides its kernel, as the scenario requests them."""

    cmdline: str = ""
    """Words on the kernel's command line."""
    parameters: dict[str, str] = Field(default={})
    """MODULE.NAME -> value of a module's parameter."""
    sysfs: dict[str, str] = Field(default={})
    """Path below /sys or /proc/sys -> value that is written into it."""

    @property
    def is_set(self) -> bool:
        return bool(self.cmdline or self.parameters or self.sysfs)


class TrialRecord(Evidence):
    """One planned trial."""

    name: FileName
    """Name of the trial's folder: `0001-baseline`."""
    pair: Count
    """Number of the pair, from 1; 0 for a warm-up."""
    arm: Role
    passes: tuple[Pass, ...]


class RunnerRecord(Evidence):
    """The machine that barometer ran on."""

    name: str = ""
    """Its name in the network. Older runs lack it."""


class Plan(Evidence):
    """plan.json."""

    schema_: Literal[1] = Field(alias="schema")
    barometer: str
    """Version of barometer that made the plan."""
    scenario: str
    """Name of the scenario."""
    accel: AccelName
    accel_reason: str
    """Why the host has this accelerator, for people."""
    kernels: BothArms[KernelRecord]
    arm_settings: BothArms[SettingsRecord] | None = None
    """Older runs lack it. They had no settings besides the kernel."""
    guest_kernel: KernelRecord | None
    """Kernel of the guests of both arms; null if the workload has no guest."""
    runner: RunnerRecord = RunnerRecord()
    """Older runs may lack it."""
    trials: tuple[TrialRecord, ...]
    """Every trial in the order of execution, up to the largest number of pairs."""

    def named_kernels(self) -> dict[ArmName, dict[str, str]]:
        """Return release and source of each arm's kernel."""
        return {
            arm: {"release": self.kernels[arm].release, "source": self.kernels[arm].source}
            for arm in ARMS
        }
