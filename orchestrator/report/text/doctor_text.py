"""The doctor's findings as text for a terminal, and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from orchestrator.analysis.doctor.finding import Finding, Needs, Use
from orchestrator.analysis.doctor.findings import is_usable, select_problems
from orchestrator.base.printable import escape_unprintable
from orchestrator.report.words.columns import wrap_text

_USES: dict[Use, str] = {"nested": "runs nested hosts", "metal": "can be a metal host"}
_STATUS = 9
"""Columns for the first word of a finding, its status."""


@dataclass(frozen=True)
class Diagnosis:
    machine: str
    """Name of the machine: an address, or "this machine"."""
    system: str
    """Release of the machine's kernel, and its architecture; empty if the machine did not
    answer."""
    scenario: str
    """Name of the scenario; empty without one."""
    needs: Needs
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0: nothing is in the way. 3: something is in the way of every use in question. The uses
        in question are the scenario's; without a scenario, being a metal host (for an address), or
        both running nested hosts and being a metal host (for this machine)."""
        return 0 if is_usable(self.findings, self.needs) else 3


def text_diagnosis(diagnosis: Diagnosis) -> str:
    """Return ASCII text of at most 76 columns: what the machine is good for, then every finding,
    problems first. A finding that is not ok has its evidence and its fix."""
    lines = [", ".join(filter(None, (diagnosis.machine, diagnosis.system)))]
    for use in diagnosis.needs.uses:
        bad = select_problems(diagnosis.findings, use)
        names = ", ".join(dict.fromkeys(finding.name for finding in bad))
        title = f"scenario {diagnosis.scenario}" if diagnosis.scenario else _USES[use]
        answer = f"no ({names})" if bad else "yes" + _how(diagnosis.findings, use)
        lines += wrap_text(f"{title}: {answer}", "  ", "    ")
    profiling = next((f for f in diagnosis.findings if f.name == "profiling"), None)
    if profiling is not None:
        can = "yes" if profiling.status == "ok" else f"no ({profiling.what.rpartition(': ')[2]})"
        lines += wrap_text(f"a guest's boot can be profiled: {can}", "  ", "    ")
    lines.append("")
    for finding in diagnosis.findings:
        lines += _finding(finding, diagnosis.needs.uses)
    return "\n".join(lines) + "\n"


def _how(findings: Sequence[Finding], use: Use) -> str:
    without_kvm = any(f.name == "kvm" and f.status != "ok" for f in findings)
    return ", emulated" if use == "nested" and without_kvm else ""


def _finding(finding: Finding, uses: Sequence[Use]) -> list[str]:
    hang = " " * (_STATUS + 2)
    for_one = len(uses) > 1 and len(finding.uses) == 1 and finding.status != "ok"
    name = f"{finding.name} ({finding.uses[0]})" if for_one else finding.name
    lines = wrap_text(
        f"{name}: {escape_unprintable(finding.what)}",
        f"{finding.status:<{_STATUS}}",
        " " * _STATUS,
    )
    if finding.status == "ok":
        return lines
    for line in finding.evidence:
        lines += wrap_text(escape_unprintable(line), f"{hang}| ", f"{hang}|   ")
    if finding.fix:
        lines += wrap_text(finding.fix, f"{hang}-> ", f"{hang}   ")
    return lines


def json_diagnosis(diagnosis: Diagnosis) -> dict[str, object]:
    """Return the diagnosis for programs. `uses`: whether each use in question is possible, and the
    names of the problems."""
    findings = diagnosis.findings
    return {
        "schema": 1, "machine": diagnosis.machine, "system": diagnosis.system,
        "scenario": diagnosis.scenario or None,
        "uses": {
            use: {"possible": not select_problems(findings, use),
                  "in_the_way": [finding.name for finding in select_problems(findings, use)]}
            for use in diagnosis.needs.uses
        },
        "findings": [asdict(finding) for finding in findings], "exit_code": diagnosis.exit_code,
    }  # fmt: skip
