"""manifest.json of a trial: under what it was planned, what it was made under, how it ended, and
the hashes of its files."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self, TypedDict

from pydantic import AfterValidator, Field

from orchestrator.evidence.facts import RunnerFacts
from orchestrator.evidence.faults import Attempt, Charge
from orchestrator.evidence.kernel import KernelRecord
from orchestrator.evidence.model import AccelName, Count, Evidence, FileName, Seconds, Size
from orchestrator.scenario.vocabulary import ArmName, Pass, Role


def _check_time(text: str) -> str:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError("a time without its zone")
    try:
        time.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError("a time outside of the calendar") from exc
    return text


Time = Annotated[str, AfterValidator(_check_time)]
"""Time as ISO 8601 with its zone."""
Versions = dict[str, str]
"""Name of a program or package -> its version."""


class Unended(Evidence):
    """The trial is whole, or its collection was cut short (unfinished)."""

    kind: Literal["collected", "unfinished"]


class Ended(Evidence):
    """An error ended the trial early."""

    kind: Literal["failed", "invalid"]
    """failed: the kernel under test may be to blame. invalid: the trial says nothing about it."""
    reason: str
    """Short stable name of the error."""
    stage: str
    """Stage that failed."""
    message: str
    evidence: str
    """End of the console, or of a program's output."""
    by_bench: bool = False
    """True if the trial is made again when the run is resumed. Older runs lack it."""
    charge: Charge | None = None
    """Party that the failure is charged to. Older runs lack it."""
    line: str = ""
    """Report of the host's kernel that decided the charge. Older runs lack it."""

    @property
    def charged_to(self) -> Charge:
        """The party that the failure is charged to. In older runs a failed trial is charged to the
        arm, and an invalid one to the bench."""
        return self.charge or ("arm" if self.kind == "failed" else "bench")


class StageRecord(Evidence):
    """One stage of the trial."""

    name: str
    start: Seconds
    """Seconds of the runner's clock since the trial began."""
    outcome: str
    """ok, running, or the reason of the error that ended it."""
    seconds: Seconds | None = None
    """Length; missing while the stage runs."""


class GuestRecord(Evidence):
    """One guest boot."""

    index: Annotated[int, Field(ge=0, lt=1000)]
    """Number of the folder guest-N."""
    in_pass: Pass = Field(alias="pass")
    memory: Size
    """Bytes of the guest's memory."""


class ProvenSetting(Evidence):
    """A setting of the arm, as it was read back."""

    asked: str | None
    """Value that the arm requests; null if only the other arm sets it."""
    found: str | None
    """Value that was read back; null if it cannot be read."""


class ProvenSettings(Evidence):
    """Settings of both arms, as they were on the host."""

    cmdline: ProvenSetting
    parameters: dict[str, ProvenSetting]
    """Kernel parameters: MODULE.NAME -> setting."""
    sysfs: dict[str, ProvenSetting]
    """Files: path -> setting."""
    unreadable: tuple[str, ...] = ()
    """Parameters of this arm that the kernel does not show."""


class AttemptRecord(Evidence):
    """An earlier attempt at the trial, or an attempt of the other arm beside it."""

    arm: ArmName
    reason: str
    """Reason of the failure; empty if the attempt went well."""
    charge: Charge
    stage: str
    line: str
    """Line of a kernel's report; else the error's own message."""

    @classmethod
    def of(cls, attempt: Attempt) -> Self:
        return cls(
            arm=attempt.arm, reason=str(attempt.reason), charge=attempt.charge,
            stage=attempt.stage, line=attempt.line,
        )  # fmt: skip


class ReportRecord(Evidence):
    """Report of the host's kernel about itself."""

    kind: str
    line: str
    seconds: float | None
    """Time on the kernel's clock."""


class HostKindFacts(TypedDict, total=False):
    """Keys of TrialFacts that only nested hosts have."""

    host_memory: int
    host_viommu: str
    host_viommu_aw_bits: int
    host_packages: Versions


class WorkloadFacts(TypedDict, total=False):
    """Keys of TrialFacts that only one workload has."""

    map_backend: str
    map_thp: str
    guest_cpus: int
    guest_phys_bits: int | None
    guest_firmware: str
    guest_boot: str
    guest_backing: str
    guest_viommu: str
    guest_backend: str


class TrialFacts(Evidence):
    """What is known of a trial when it begins. Keys with a default are missing from trials of
    another workload or kind of host, or from older runs."""

    arm: Role
    pair: Count
    """Number of the pair, from 1; 0 for a warm-up."""
    number: Count
    """Position in the order of execution, from 1."""
    barometer: str
    """Version of barometer."""
    workload: Literal["guest-boot", "map"]
    accel: AccelName
    kernel: KernelRecord
    """Planned kernel of the host."""
    guest_kernel: KernelRecord | None
    """Kernel of the guests; null without guests."""
    bar: Size
    """Bytes of the large BAR."""
    device_kind: str
    device_count: Count | None = None
    """Older runs lack it."""
    device_mmap: bool | None = None
    """False: QEMU was told not to map the BAR (x-no-mmap). Older runs lack it: they had no such
    setting."""
    host_kind: Literal["nested", "metal"] | None = None
    """Older runs lack it: all their hosts were nested."""
    host_memory: Count | None = None
    """Bytes. Nested hosts only; older runs lack it, and the next two."""
    host_viommu: str | None = None
    host_viommu_aw_bits: Count | None = None
    """Address width of the IOMMU in bits."""
    host_packages: Versions | None = None
    """Packages of a nested host's image."""
    map_backend: str | None = None
    """Only trials of the workload map have it, and `map_thp`."""
    map_thp: str | None = None
    guest_cpus: Count | None = None
    """Only trials of the workload guest-boot have it and the other settings of the guest."""
    guest_phys_bits: Count | None = None
    guest_firmware: str | None = None
    guest_boot: str | None = None
    guest_backing: str | None = None
    guest_viommu: str | None = None
    guest_backend: str | None = None
    guest_packages: Versions | None = None
    """Packages that the guest's files are from."""
    passes: tuple[Pass, ...]
    """Planned passes."""
    runner: RunnerFacts | None = None
    """Older runs lack it."""
    runner_versions: Versions
    """QEMU and libvirt on the runner."""
    repeated: tuple[AttemptRecord | str, ...] = ()
    """Attempts before the last one. Older runs have only their reasons, all of them failures of
    the emulator."""


class Manifest(TrialFacts):
    """manifest.json. Keys with a default are also missing from trials that ended before they were
    known."""

    schema_: Literal[1] = Field(alias="schema")
    trial: FileName
    """Name of the trial: `0001-baseline`."""
    host_versions: Versions | None = None
    """QEMU and libvirt on the host. Trials without a guest lack it."""
    host_cmdline: str | None = None
    """Kernel command line that the host was booted with."""
    host_boot_seconds: Seconds | None = None
    """Time of the host's boot up to SSH, if no other trial shares the boot."""
    host_session_seconds: Seconds | None = None
    """The same of a boot that trials share."""
    host_left: tuple[str, ...] | None = None
    """What differed on a shared host after the trial, so that it was ended."""
    guest_accel: Literal["kvm", "tcg"] | None = None
    """Accelerator of the guests, known once the devices are bound."""
    guests: tuple[GuestRecord, ...]
    """Guest boots, also one that failed."""
    arm_settings: ProvenSettings | None = None
    """Proven settings of the arm; missing if neither arm has any."""
    token: str | None = None
    """Word on the command line by which the kernel was proven."""
    boot_id: str | None = None
    """/proc/sys/kernel/random/boot_id of the proven kernel."""
    release: str | None = None
    """Release of the kernel that was proven to run; missing if none was."""
    reports_before: Count = 0
    """Number of reports on a shared host's console that are of earlier trials."""
    kernel_reports: tuple[ReportRecord, ...] | None = None
    """Reports of the host's kernel; for people."""
    started: Time
    """Time at which collecting began."""
    seconds: Seconds | None = None
    """Wall-clock seconds on the runner; missing while the trial runs."""
    stages: tuple[StageRecord, ...]
    outcome: Annotated[Unended | Ended, Field(discriminator="kind")]
    files: dict[FileName, str] = Field(default={})
    """File of the evidence -> its sha256; missing while the trial runs."""

    @property
    def is_nested(self) -> bool:
        return self.host_kind != "metal"

    @property
    def kernel_arm(self) -> ArmName:
        """The arm whose kernel the trial boots."""
        return "candidate" if self.arm == "candidate" else "baseline"

    def repeated_attempts(self) -> tuple[Attempt, ...]:
        """Return the attempts before the last one."""
        return tuple(
            Attempt(self.kernel_arm, entry, "bench")
            if isinstance(entry, str)
            else Attempt(entry.arm, entry.reason, entry.charge, entry.stage, entry.line)
            for entry in self.repeated
        )

    def attempts(self) -> tuple[Attempt, ...]:
        """Return every attempt at this trial, and the attempts of the other arm that were repeated
        with it. An attempt whose evidence has not been judged yet counts as a success."""
        last = Attempt(self.kernel_arm)
        if isinstance(ended := self.outcome, Ended):
            last = Attempt(
                self.kernel_arm, ended.reason, ended.charged_to, ended.stage,
                ended.line or ended.message,
            )  # fmt: skip
        return (*self.repeated_attempts(), last)


KEYS = frozenset(field.alias or name for name, field in Manifest.model_fields.items())
"""Every key of a manifest. A writer may add no other."""
