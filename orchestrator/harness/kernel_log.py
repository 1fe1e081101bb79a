"""What a host's kernel reported about itself, of a saved run or of a live host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import RunDir
from orchestrator.formats.kernelreports import BROKEN, STALLS, KernelReport, Kind, reports_in
from orchestrator.run.judging.judge import Run
from orchestrator.scenario.vocabulary import ArmName


@dataclass(frozen=True)
class KernelLog:
    """The consoles of one arm's hosts."""

    text: str

    @property
    def reports(self) -> tuple[KernelReport, ...]:
        """Panics, oopses, stalls, lost interrupts and the like, in order."""
        return reports_in(self.text)

    def of_kind(self, *kinds: Kind) -> tuple[KernelReport, ...]:
        """Return the reports of these kinds, such as "soft-lockup"."""
        return tuple(report for report in self.reports if report.kind in kinds)

    def require_none(self, kinds: Iterable[Kind] = (*BROKEN, *STALLS)) -> None:
        """Claim that the kernel reported nothing of these kinds."""
        __tracebackhide__ = True
        reports = self.of_kind(*kinds)
        assert not reports, "the kernel reported:\n" + "\n".join(r.line for r in reports)


def read_consoles(run: Run, arm: ArmName) -> KernelLog:
    """Read the consoles of an arm's trials. Raises EvidenceError if none is saved: silence is no
    evidence that nothing was reported."""
    consoles = [
        text for trial in RunDir(run.path).trials()
        if trial.manifest.arm == arm and (text := trial.text("host/console.log"))
    ]  # fmt: skip
    if not consoles:
        raise EvidenceError(
            f"{run.path}: no console of the {arm} is saved", reason=Reason.MISSING_EVIDENCE
        )
    return KernelLog("\n".join(consoles))
