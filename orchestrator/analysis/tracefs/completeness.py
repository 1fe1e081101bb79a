"""The tracer's account of itself: whether its trace and its counts are complete."""

from __future__ import annotations

from orchestrator.analysis.tracefs.trace import lost_events, missed_probes, probe_hits
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.facts import HostFacts
from orchestrator.evidence.layout import TrialDir


def need(trial: TrialDir, name: str) -> str:
    """Return a file of the evidence. Raises EvidenceError if there is none."""
    text = trial.text(name)
    if text is None:
        raise EvidenceError(f"{name} is missing", reason=Reason.MISSING_EVIDENCE)
    return text


def need_facts(trial: TrialDir) -> HostFacts:
    """Return the facts of the trial's host. Raises EvidenceError if there are none."""
    facts = trial.host_facts()
    if facts is None:
        raise EvidenceError("host/facts.json is missing", reason=Reason.MISSING_EVIDENCE)
    return facts


def trace_clock(trial: TrialDir) -> str:
    """Return the timing pass's clock: on an exact host the TSC, which counts instructions
    there."""
    return "x86-tsc" if trial.manifest.accel == "exact" else "mono"


def tracer_complete(trial: TrialDir, label: str, clock: str) -> None:
    """Raise EvidenceError if the tracer lost or missed anything, or did not use `clock`."""
    complete(
        label, stats=need(trial, f"host/stats-{label}.txt"),
        profile=need(trial, f"host/profile-{label}.txt"),
        found_clock=need(trial, f"host/clock-{label}.txt"), clock=clock,
    )  # fmt: skip


def complete(label: str, *, stats: str, profile: str, found_clock: str, clock: str) -> None:
    """Check the texts of these files as `tracer_complete` does. Raises EvidenceError, too."""
    if "overrun:" not in stats or not probe_hits(profile):
        raise EvidenceError(f"the tracer's own account of {label} is empty",
                            reason=Reason.MISSING_EVIDENCE)  # fmt: skip
    lost = lost_events(stats)
    if lost:
        raise EvidenceError(f"the trace of {label} lost {lost} events", reason=Reason.LOST_EVENTS)
    missed = missed_probes(profile)
    if missed:
        raise EvidenceError(
            f"probes missed hits in {label}: {', '.join(f'{n} {c}' for n, c in missed.items())}",
            reason=Reason.MISSED_PROBES,
        )
    if f"[{clock}]" not in found_clock:
        raise EvidenceError(
            f"the trace clock of {label} is not {clock}", reason=Reason.WRONG_CLOCK
        )
