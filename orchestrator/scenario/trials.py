"""The arms of a scenario, its trials, how they are judged and traced."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from orchestrator.scenario.fields import (
    PARAMETER,
    SETTING,
    CommandLine,
    Percent,
    Scalar,
    ScenarioModel,
)
from orchestrator.scenario.kernel_forms import Kernel
from orchestrator.scenario.vocabulary import ArmName, Pass, word_name


class Arm(ScenarioModel):
    """A kernel and its settings."""

    kernel: Kernel
    cmdline: CommandLine = ""
    """Words appended to the host's kernel command line in this arm only: "iommu.strict=1"."""
    parameters: dict[str, Scalar] = Field(default_factory=dict)
    """Parameters of modules, also of built-in ones: "vfio_iommu_type1.disable_hugepages" =
    true."""
    sysfs: dict[str, Scalar] = Field(default_factory=dict)
    """Files under /sys or /proc/sys and the values written to them once the modules are loaded:
    "/sys/kernel/mm/transparent_hugepage/enabled" = "never"."""

    @model_validator(mode="after")
    def _check_names(self) -> Arm:
        for name in self.parameters:
            if not PARAMETER.fullmatch(name):
                raise ValueError(
                    f'parameters."{name}": expected "MODULE.PARAMETER", for example'
                    ' "vfio_iommu_type1.disable_hugepages"'
                )
        for path in self.sysfs:
            if not SETTING.fullmatch(path) or ".." in path.split("/"):
                raise ValueError(
                    f'sysfs."{path}": expected a file under /sys or /proc/sys, for example'
                    ' "/sys/kernel/mm/transparent_hugepage/enabled"'
                )
        return self

    @model_validator(mode="after")
    def _check_set_once(self) -> Arm:
        for word in self.cmdline.split():
            if word == "--" or word_name(word) == "rdinit":
                raise ValueError(f'cmdline: "{word}": barometer itself sets what init gets')
        by_name: dict[str, str] = {}
        for name in self.parameters:
            if (other := by_name.setdefault(word_name(name), name)) != name:
                raise ValueError(f'parameters: "{other}" and "{name}" are the same parameter')
        for word in self.cmdline.split():
            if (name := by_name.get(word_name(word), "")) != "":
                raise ValueError(f'"{name}" is set in parameters and in cmdline: take one out')
        return self

    @property
    def is_set(self) -> bool:
        """True if the arm sets anything besides its kernel."""
        return bool(self.words or self.sysfs)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the kernel, for JSON."""
        return self.model_dump(mode="json", exclude={"kernel"})

    @property
    def words(self) -> tuple[str, ...]:
        """Words that the arm adds to the host's kernel command line. Parameters of modules are
        among them: both kmod and the kernel take them from there (modprobe(8))."""
        parameters = (f"{name}={value}" for name, value in self.parameters.items())
        return (*self.cmdline.split(), *parameters)


class Arms(ScenarioModel):
    baseline: Arm
    """The unpatched kernel."""
    candidate: Arm
    """The patched kernel."""

    def __getitem__(self, name: ArmName) -> Arm:
        return self.baseline if name == "baseline" else self.candidate


class Until(ScenarioModel):
    """Rule that ends a run, in place of a number of pairs."""

    precision: Percent = 0.02
    """Half the width of the 95 % interval of every metric that decides, as a share of the baseline
    (or of the candidate if that costs more). The run is looked at after 10, 14, 18, ... pairs, and
    goes on until every interval is that narrow and every verdict is clear."""
    max_pairs: Annotated[int, Field(ge=2, le=1000, multiple_of=2)] = 30
    """Most pairs of trials. A block is two pairs, so the number is even."""


class Trials(ScenarioModel):
    pairs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Number of pairs. A pair is two trials, one host boot of each arm. Two pairs are a block, and
    the second has the arms in the opposite order. A verdict on a time that changes by less than a
    factor of two needs 10 pairs; with two expected metrics it needs 11, with four 12. In a single
    pair a factor of ten is needed, unless a count proves less."""
    until: Until | None = None
    """Rule that ends the run, in place of `pairs`: as many pairs as needed, an even number."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order. With an even seed the baseline goes first, with an odd one the candidate.
    The arm that starts each later block is drawn."""
    warm_up: bool | Literal["auto"] = "auto"
    """A trial of the baseline's kernel before all others, to fill the machine's caches. Its
    numbers are not used. auto: if there are several pairs and accel is not exact."""
    control: bool | Literal["auto"] = "auto"
    """A trial of the baseline's kernel in each block besides its pairs, to compare the bench with
    itself. A metric that differs between baseline and control has no verdict. auto: from 10 pairs
    on."""

    @model_validator(mode="after")
    def _check_one_of(self) -> Trials:
        if self.until is not None and "pairs" in self.model_fields_set:
            raise ValueError("pairs and until exclude one another: take one of them out")
        return self

    @property
    def most_pairs(self) -> int:
        return self.pairs if self.until is None else self.until.max_pairs


CONDITION_ROOMS = ("accel", "barometer", "device", "guest", "host", "map", "runner", "workload")
"""First parts of condition names."""


_CONDITIONS_ALONE = ("accel", "barometer", "workload")
"""Conditions whose names have no dot."""


def explain_no_condition(names: Iterable[str]) -> str | None:
    """Explain the first name that cannot be a condition's, or return None if all can."""
    for name in names:
        room = name.partition(".")[0]
        if room not in CONDITION_ROOMS:
            rooms = ", ".join(CONDITION_ROOMS)
            return f'"{name}" is not a condition; conditions begin with {rooms}: "runner.qemu"'
        if name == room and room not in _CONDITIONS_ALONE:
            return f'"{name}" is not a condition; "{room}.*" is all that begin with it'
    return None


class History(ScenarioModel):
    """The store of results that a run is added to."""

    store: str = ""
    """Path of a SQLite file, or postgresql://USER@HOST/DATABASE. Without it, that of
    BAROMETER_HISTORY; without either, a run is in no history."""

    @field_validator("store")
    @classmethod
    def _check_no_password(cls, store: str) -> str:
        if re.match(r"\w[\w+]*://[^/@]*:[^/@]*@", store):
            raise ValueError(
                "has a password, and each run keeps a copy of its scenario: libpq reads the"
                " password from ~/.pgpass"
            )
        return store


class Judgement(ScenarioModel):
    margin: Percent = 0.03
    """Margin of `equivalent`: the 95 % interval of the ratio must lie within 1 / (1 + margin) and
    1 + margin."""
    floor: Percent = 0.01
    """Smallest change of a time that is called improved or regressed."""
    allow: tuple[str, ...] = ()
    """Conditions that may differ between the arms besides the kernel, by their names in the
    report: "runner.qemu", or "runner.*"."""

    @field_validator("allow")
    @classmethod
    def _check_allow(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := explain_no_condition(names):
            raise ValueError(wrong)
        return names

    @model_validator(mode="after")
    def _check_floor(self) -> Judgement:
        if self.floor > self.margin:
            raise ValueError(
                f"floor is {self.floor:.2%}, more than margin, {self.margin:.2%}: a change"
                " below the floor must count as equivalent"
            )
        return self


class Trace(ScenarioModel):
    passes: Annotated[tuple[Pass, ...], Field(min_length=1)] = ("plain", "timing", "counts")
    """plain: untraced. timing: a few records per map. counts: exact page counts. profile (map
    workload, accel exact): instructions by kernel function."""

    @model_validator(mode="after")
    def _check_no_repeats(self) -> Trace:
        if len(set(self.passes)) != len(self.passes):
            raise ValueError("each pass is named once")
        return self
