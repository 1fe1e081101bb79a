"""Evidence of machines and profiles with a flaw: it is answered, or refused with its key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.diagnosis.diagnosis import analyse_profile
from orchestrator.analysis.doctor.finding import METAL, NESTED, USES, Needs
from orchestrator.analysis.doctor.findings import judge_machine
from orchestrator.base.errors import BarometerError, EvidenceError
from orchestrator.evidence.model import parse_evidence
from orchestrator.evidence.surveys.profile_facts import ProfileFacts, load_profile
from orchestrator.formats.units import GIB
from orchestrator.machine.host.pci import Survey
from orchestrator.machine.metal.passthrough import find_refusals, list_notes
from orchestrator.report.text.doctor_text import Diagnosis, json_diagnosis, text_diagnosis
from orchestrator.report.text.profile_text import profile_json, text_profile
from tests.unit.analysis.test_profile import ALIGNED, BAR, FACTS, FILES, QEMU, VCPU, booted, vma
from tests.unit.checkups import parse, read
from tests.unit.machines import RECORDED

PROFILES = Path(__file__).parents[2] / "fixtures/recorded/profile"
Place = tuple[str | int, ...]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["agent", "", "9" * 5000, 1 << 64, -1, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)  # fmt: skip
NEEDS = (
    Needs(USES),
    Needs(METAL, bar=128 * GIB, backing="hugetlb-1GiB", guest_bits=36, firmware="ovmf"),
    Needs(NESTED, accel="kvm", builds=True),
)


def places(value: object, above: Place = ()) -> Iterator[Place]:
    """Yield the place of each value below the top of a document."""
    if above:
        yield above
    inner = value.items() if isinstance(value, dict) else ()
    for key, below in enumerate(value) if isinstance(value, list) else inner:
        yield from places(below, (*above, key))


def with_value(value: Any, place: Place, new: object) -> Any:
    if not place:
        return new
    key, *rest = place
    changed = value.copy()
    changed[key] = with_value(value[key], tuple(rest), new)
    return changed


def answer_checkup(document: Any) -> None:
    facts = parse(document)
    for needs in NEEDS:
        diagnosis = Diagnosis("m", facts.release, "", needs, judge_machine(facts, needs))
        text_diagnosis(diagnosis)
        json.dumps(json_diagnosis(diagnosis))


def answer_profile(document: Any) -> None:
    facts = parse_evidence(ProfileFacts, json.dumps(document), "facts.json")
    files = FILES | {"trace.txt": booted().text()}
    profile = analyse_profile(facts, files)
    text_profile(profile)
    json.dumps(profile_json(profile))


def answer_survey(document: Any) -> None:
    survey = Survey.parse(json.dumps(document))
    for function in survey.functions.values():
        find_refusals(survey, function.address)
        list_notes(survey, function)
        str(function)


PROCESS = {
    "pid": QEMU, "threads": [QEMU, VCPU], "page_table_bytes": 1 << 21, "maps": vma(ALIGNED, BAR),
}  # fmt: skip
PROFILE = FACTS | {"process": PROCESS}
CHECKUPS = [
    read("emulated-runner"),
    read("gpu-server"),
    read("gpu-server") | {
        "device": {"why": "none", "evidence": ["x"], "hint": ""},
        "probe": {"address": "0000:3b:00.0", "bytes": 1 << 21, "lookups": "", "faults": ""},
        "leases": [{"token": 7, "resources": ["machine"], "owner": {"user": "ada"}, "left": 4.0,
                    "expired": False}],
    },
]  # fmt: skip
"""The last has those facts that the recorded ones lack."""
SURVEY = json.loads((RECORDED / "gpu-server.json").read_text())


@dataclass(frozen=True)
class Flawed:
    document: Any = field(repr=False)
    place: Place
    value: object


@st.composite
def flawed(draw: st.DrawFn, *documents: Any) -> Flawed:
    document = draw(st.sampled_from(documents))
    top = draw(st.sampled_from(sorted(document)))
    place = draw(st.sampled_from([place for place in places(document) if place[0] == top]))
    value = draw(JSON_VALUES)
    return Flawed(with_value(document, place, value), place, value)


def refusal(answer: Callable[[Any], None], document: Any) -> BarometerError | None:
    try:
        answer(document)
    except BarometerError as exc:
        return exc
    return None


@given(flawed(*CHECKUPS))
def test_a_checkup_with_any_value_is_answered_or_its_key_is_named(flaw: Flawed) -> None:
    if refused := refusal(answer_checkup, flaw.document):
        assert refused.reason == "bad-evidence"
        assert f": {flaw.place[0]}" in refused.message


@given(flawed(PROFILE))
def test_a_profile_with_any_value_is_answered_or_its_key_is_named(flaw: Flawed) -> None:
    refused = refusal(answer_profile, flaw.document)
    if refused and refused.reason not in ("no-exec", "no-maps"):  # a trace of other facts
        assert refused.reason == "bad-evidence"
        keys = (flaw.place[0], "ended")  # `ended` must fit `until`
        assert any(f": {key}" in refused.message for key in keys)


@given(flawed(SURVEY))
def test_a_survey_with_any_value_is_answered_or_its_key_is_named(flaw: Flawed) -> None:
    if refused := refusal(answer_survey, flaw.document):
        assert refused.reason == "survey-unreadable"
        assert f": {flaw.place[0]}" in refused.message


@pytest.mark.parametrize("document", CHECKUPS)
def test_recorded_checkups_are_answered(document: Any) -> None:
    answer_checkup(document)
    answer_checkup(document | {"from a newer version": [1]})


def test_of_a_profile_a_key_that_is_missing_is_named() -> None:
    for key in PROFILE:
        lacking = {name: value for name, value in PROFILE.items() if name != key}
        with pytest.raises(EvidenceError, match=rf"facts\.json: {key}: ") as caught:
            answer_profile(lacking)
        assert caught.value.reason == "bad-evidence"


@pytest.mark.parametrize("name", ["facts.json", "stats.txt", "domain.xml", "trace.txt.gz"])
def test_of_a_saved_profile_a_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    whole = load_profile(PROFILES / "linux-6.12")
    whole.save(tmp_path)
    assert load_profile(tmp_path) == whole
    (tmp_path / name).unlink()
    with pytest.raises(EvidenceError, match=name) as caught:
        load_profile(tmp_path)
    assert caught.value.reason == "missing-evidence"


def test_of_a_saved_profile_a_file_that_cannot_be_unpacked_is_named(tmp_path: Path) -> None:
    load_profile(PROFILES / "linux-6.12").save(tmp_path)
    (tmp_path / "trace.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(EvidenceError, match=r"trace\.txt\.gz") as caught:
        load_profile(tmp_path)
    assert caught.value.reason == "bad-evidence"
