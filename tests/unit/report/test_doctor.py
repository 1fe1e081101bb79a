from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.doctor.finding import METAL, NESTED, STATUSES, USES, Finding, Needs
from orchestrator.analysis.doctor.findings import judge_machine
from orchestrator.report.text.doctor_text import Diagnosis, json_diagnosis, text_diagnosis
from orchestrator.report.words.columns import WIDTH
from tests.unit.checkups import recorded, server
from tests.unit.stable import has_in_order


def diagnosis(name: str, needs: Needs, scenario: str = "") -> Diagnosis:
    facts = recorded(name)
    return Diagnosis("this machine", f"Linux {facts.release}", scenario, needs,
                     judge_machine(facts, needs))  # fmt: skip


def test_text_names_what_is_in_the_way_first() -> None:
    text = text_diagnosis(diagnosis("emulated-runner", Needs(USES)))
    assert text.startswith(
        "this machine, Linux 6.18.44\n"
        "  runs nested hosts: yes, emulated\n"
        "  can be a metal host: no (libvirt, boot, iommu, large-bar)\n"
        "  a guest's boot can be profiled: no (the kernel takes no probes)\n\n"
        "problem  libvirt (metal): there is no libvirt daemon to start guests with\n"
        "           | virtqemud, libvirtd: not found\n"
        "           -> apt-get install libvirt-daemon-system, or the distribution's\n"
    )
    assert has_in_order(text, "ok", "python", "3.11.7")
    assert all(len(line) <= WIDTH for line in text.splitlines())


def test_text_of_a_machine_with_nothing_in_the_way() -> None:
    text = text_diagnosis(Diagnosis("gpu1.lab", "Linux", "", Needs(METAL),
                                    judge_machine(server(), Needs(METAL))))  # fmt: skip
    head, rest = text.split("\n\n", 1)
    assert has_in_order(head, "gpu1.lab", "metal", "yes", "profiled", "yes")
    assert rest.startswith("ok ")
    assert "|" not in text
    assert "->" not in text


def test_scenario_is_named() -> None:
    text = text_diagnosis(diagnosis("emulated-runner", Needs(NESTED), "small"))
    assert has_in_order(text, "scenario small", "yes", "emulated")
    assert "(nested)" not in text


def test_exit_code_is_3_where_every_use_has_something_in_its_way() -> None:
    assert diagnosis("emulated-runner", Needs(USES)).exit_code == 0
    assert diagnosis("emulated-runner", Needs(NESTED)).exit_code == 0
    assert diagnosis("emulated-runner", Needs(METAL)).exit_code == 3
    assert diagnosis("gpu-server", Needs(METAL)).exit_code == 0


def test_document_has_everything() -> None:
    document = json.loads(json.dumps(json_diagnosis(diagnosis("emulated-runner", Needs(USES)))))
    assert document["schema"] == 1
    assert document["scenario"] is None
    assert document["uses"]["nested"] == {"possible": True, "in_the_way": []}
    assert document["uses"]["metal"]["in_the_way"][0] == "libvirt"
    assert document["exit_code"] == 0
    for finding in document["findings"]:
        assert {*finding} == {"name", "status", "what", "evidence", "fix", "uses"}
        assert finding["status"] in STATUSES


@given(st.text(), st.lists(st.text(), max_size=3), st.text())
def test_evidence_from_outside_stays_in_its_lines(
    title: str, evidence: list[str], fix: str
) -> None:
    finding = Finding("x", "problem", title, tuple(evidence), fix)
    text = text_diagnosis(Diagnosis("m", "s", "", Needs(METAL), (finding,)))
    assert text.isascii()
    assert all(line.isprintable() and len(line) <= WIDTH for line in text.split("\n"))
