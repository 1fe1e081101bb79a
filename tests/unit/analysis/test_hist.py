from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.base.errors import EvidenceError
from orchestrator.base.reasons import Reason
from tests.unit.recorded import MEASURED, PAGES, RUN
from tests.unit.stable import numbers_in

FAULT = (RUN / "trials" / MEASURED / "host/hist-fault.txt").read_text()
ROWS = st.lists(st.tuples(st.integers(0, 2**63), st.integers(1, 2**40)), max_size=8)


def hist(rows: list[tuple[int, int]], dropped: int = 0) -> str:
    lines = [f"{{ ret: {key:>10} }} hitcount: {hits:>10}" for key, hits in rows]
    total = sum(hits for _, hits in rows) + dropped
    return "\n".join([
        "# event histogram", "#", "# trigger info: hist:keys=ret:vals=hitcount [active]", "#", "",
        *lines, "", "Totals:", f"    Hits: {total}", f"    Entries: {len(rows)}",
        f"    Dropped: {dropped}", "",
    ])  # fmt: skip


def test_keys_are_decimal_or_hexadecimal_by_name() -> None:
    table = parse_hist(FAULT, ("ret",))
    assert table.rows == (((18, 0x100), 2),)
    assert parse_hist(FAULT).rows == (((18, 100), 2),)


@given(ROWS, st.integers(0, 100))
def test_histogram_reads_back(rows: list[tuple[int, int]], dropped: int) -> None:
    table = parse_hist(hist(rows, dropped))
    assert [(keys[0], hits) for keys, hits in table.rows] == rows
    assert table.dropped == dropped
    assert table.hits == sum(hits for _, hits in rows) + dropped


@given(ROWS, st.data())
def test_histogram_cut_short_is_an_evidence_error(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    text = hist(rows)
    end = text.index("Dropped: ") + len("Dropped: ")
    with pytest.raises(EvidenceError) as caught:
        parse_hist(text[: data.draw(st.integers(0, end))])
    assert caught.value.reason == Reason.BAD_HISTOGRAM


@given(st.text(max_size=100))
def test_any_text_is_a_histogram_or_an_evidence_error(text: str) -> None:
    for whole in (text, text + hist([(1, 2)]), hist([(1, 2)]).replace("ret:", text, 1)):
        with contextlib.suppress(EvidenceError):
            parse_hist(whole)


def test_missing_row_is_an_evidence_error() -> None:
    text = hist([(1, 5), (512, 7)])
    with pytest.raises(EvidenceError) as caught:
        parse_hist(text.replace("{ ret:        512 }", "? ret:        512 }"))
    assert caught.value.reason == Reason.BAD_HISTOGRAM
    assert numbers_in(caught.value.message) == ["5", "12"]


@pytest.mark.parametrize("keys", ["", "ret: fedc", "ret: -", "comm: bash"])
def test_row_without_numbers_is_an_evidence_error(keys: str) -> None:
    text = hist([(1, 5)]).replace("ret:          1", keys)
    with pytest.raises(EvidenceError) as caught:
        parse_hist(text)
    assert caught.value.reason == "bad-histogram"


def test_recorded_lookups_covered_the_whole_bar() -> None:
    text = (RUN / "trials" / MEASURED / "host/hist-lookup.txt").read_text()
    assert parse_hist(text).rows == (((PAGES,), 2),)
