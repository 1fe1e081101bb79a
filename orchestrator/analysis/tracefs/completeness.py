"""The tracer's account of itself: whether its trace and its counts are complete."""

from __future__ import annotations

from orchestrator.analysis.tracefs.trace import (
    count_lost_events,
    parse_missed_probes,
    parse_probe_hits,
)
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.facts import HostFacts
from orchestrator.evidence.layout import TrialDir


def read_needed(trial: TrialDir, name: str) -> str:
    """Return a file of the evidence. Raises EvidenceError if there is none."""
    text = trial.text(name)
    if text is None:
        raise EvidenceError(f"{name} is missing", reason=Reason.MISSING_EVIDENCE)
    return text


def read_needed_facts(trial: TrialDir) -> HostFacts:
    """Return the facts of the trial's host. Raises EvidenceError if there are none."""
    facts = trial.host_facts()
    if facts is None:
        raise EvidenceError("host/facts.json is missing", reason=Reason.MISSING_EVIDENCE)
    return facts


def read_trace_clock(trial: TrialDir) -> str:
    """Return the timing pass's clock: on an exact host the TSC, which counts instructions
    there."""
    return "x86-tsc" if trial.manifest.accel == "exact" else "mono"


def check_tracer_complete(trial: TrialDir, label: str, clock: str) -> None:
    """Raise EvidenceError if the tracer lost or missed anything, or did not use `clock`."""
    check_complete(
        label, stats=read_needed(trial, f"host/stats-{label}.txt"),
        profile=read_needed(trial, f"host/profile-{label}.txt"),
        found_clock=read_needed(trial, f"host/clock-{label}.txt"), clock=clock,
    )  # fmt: skip


def check_complete(label: str, *, stats: str, profile: str, found_clock: str, clock: str) -> None:
    """Check the texts of these files as `check_tracer_complete` does; raise EvidenceError, too."""
    if "overrun:" not in stats or not parse_probe_hits(profile):
        raise EvidenceError(f"the tracer's own account of {label} is empty",
                            reason=Reason.MISSING_EVIDENCE)  # fmt: skip
    lost = count_lost_events(stats)
    if lost:
        raise EvidenceError(f"the trace of {label} lost {lost} events", reason=Reason.LOST_EVENTS)
    missed = parse_missed_probes(profile)
    if missed:
        raise EvidenceError(
            f"probes missed hits in {label}: {', '.join(f'{n} {c}' for n, c in missed.items())}",
            reason=Reason.MISSED_PROBES,
        )
    if f"[{clock}]" not in found_clock:
        raise EvidenceError(
            f"the trace clock of {label} is not {clock}", reason=Reason.WRONG_CLOCK
        )
