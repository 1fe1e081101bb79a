"""The doctor's findings as text for a terminal, and as a document for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.analysis.finding import Finding, Needs, Use
from orchestrator.analysis.findings import in_the_way, usable
from orchestrator.report.layout import wrapped
from orchestrator.report.printable import printable

_USES: dict[Use, str] = {"nested": "runs nested hosts", "metal": "can be a metal host"}
_STATUS = 9
"""Columns of a finding's first word."""


@dataclass(frozen=True)
class Diagnosis:
    machine: str
    """As it was named: an address, or this machine."""
    system: str
    """Its kernel's release, and its architecture; empty where it could not be asked."""
    scenario: str
    """Its name, empty without one."""
    needs: Needs
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """0 nothing is in the way; 3 something is in the way of every use that is asked for: of
        the scenario's, of a metal host's (an address), or, of this machine without a scenario, of
        running nested hosts and of being a metal host both."""
        return 0 if usable(self.findings, self.needs) else 3


def text_diagnosis(diagnosis: Diagnosis) -> str:
    """ASCII, at most 76 columns: what the machine is good for, then every finding, problems
    first, with evidence and fix where it is not ok."""
    lines = [", ".join(filter(None, (diagnosis.machine, diagnosis.system)))]
    for use in diagnosis.needs.uses:
        bad = in_the_way(diagnosis.findings, use)
        names = ", ".join(dict.fromkeys(finding.name for finding in bad))
        what = f"scenario {diagnosis.scenario}" if diagnosis.scenario else _USES[use]
        answer = f"no ({names})" if bad else "yes" + _how(diagnosis.findings, use)
        lines += wrapped(f"{what}: {answer}", "  ", "    ")
    lines.append("")
    for finding in diagnosis.findings:
        lines += _finding(finding, diagnosis.needs.uses)
    return "\n".join(lines) + "\n"


def _how(found: Sequence[Finding], use: Use) -> str:
    without_kvm = any(f.name == "kvm" and f.status != "ok" for f in found)
    return ", emulated" if use == "nested" and without_kvm else ""


def _finding(finding: Finding, uses: Sequence[Use]) -> list[str]:
    hang = " " * (_STATUS + 2)
    one = len(uses) > 1 and len(finding.uses) == 1 and finding.status != "ok"
    name = f"{finding.name} ({finding.uses[0]})" if one else finding.name
    lines = wrapped(
        f"{name}: {printable(finding.what)}", f"{finding.status:<{_STATUS}}", " " * _STATUS
    )
    if finding.status == "ok":
        return lines
    for said in finding.evidence:
        lines += wrapped(printable(said), f"{hang}| ", f"{hang}|   ")
    if finding.fix:
        lines += wrapped(finding.fix, f"{hang}-> ", f"{hang}   ")
    return lines


def json_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    """`uses`: for each that was asked for, whether it is possible, and the problems' names."""
    found = diagnosis.findings
    return {
        "schema": 1, "machine": diagnosis.machine, "system": diagnosis.system,
        "scenario": diagnosis.scenario or None,
        "uses": {
            use: {"possible": not in_the_way(found, use),
                  "in_the_way": [finding.name for finding in in_the_way(found, use)]}
            for use in diagnosis.needs.uses
        },
        "findings": [asdict(finding) for finding in found], "exit_code": diagnosis.exit_code,
    }  # fmt: skip
