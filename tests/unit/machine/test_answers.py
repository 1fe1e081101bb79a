from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.host.pci import Survey
from orchestrator.machine.tracing.mapagent import parse_answer
from orchestrator.machine.transport.answers import parsing

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
)
KEYS = st.dictionaries(st.sampled_from(["functions", "refused", "end", "groups"]), ANYTHING)
WORDS = st.text(max_size=20) | (ANYTHING | KEYS).map(json.dumps) | st.just("[" * 100_000)


EXPECTED = {"answer-garbled", "survey-unreadable", "map-refused"}


@pytest.mark.parametrize("parse", [Survey.parse, parse_answer])
@given(words=WORDS)
def test_answer_of_any_form_is_no_bug_of_barometers(
    parse: Callable[[str], object], words: str
) -> None:
    reasons = set[str]()
    try:
        with parsing("the answer", words):
            parse(words)
    except BarometerError as exc:
        reasons.add(exc.reason)
    assert reasons <= EXPECTED


def test_an_error_of_the_blocks_own_is_left_as_it_is() -> None:
    with pytest.raises(BenchError) as caught, parsing("the answer", ""):
        raise BenchError("no", reason=Reason.TIMEOUT)
    assert caught.value.reason == "timeout"
