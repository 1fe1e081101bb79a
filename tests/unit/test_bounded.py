from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base import bounded
from orchestrator.base.bounded import Excerpt, Lines, cut_line, quoted
from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason

SAID = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\n\n", b"x" * 40, b"\xff", b"end\n"]))


def chunks_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(pieces=SAID, cuts=st.lists(st.integers(0, 5000)), most=st.integers(0, 100))
def test_excerpt_is_the_same_however_the_stream_is_cut(
    pieces: list[bytes], cuts: list[int], most: int
) -> None:
    data = b"".join(pieces)
    whole, cut = Excerpt(most), Excerpt(most)
    whole.feed(data)
    for chunk in chunks_of(data, cuts):
        cut.feed(chunk)
        assert cut.kept <= most
    assert (cut.content(), cut.size, cut.kept) == (whole.content(), len(data), whole.kept)


@given(pieces=SAID, most=st.integers(2, 100))
def test_excerpt_has_the_first_and_the_last_lines_and_counts_the_rest(
    pieces: list[bytes], most: int
) -> None:
    data = b"".join(pieces)
    excerpt = Excerpt(most)
    excerpt.feed(data)
    if len(data) <= most:
        assert excerpt.content() == data
        return
    head, _, rest = excerpt.content().partition(b"... ")
    count, _, tail = rest.partition(b" lines left out ...\n")
    size, lines = map(int, count.split(b" bytes, "))
    is_whole = len(head) + size + len(tail) == len(data)
    begun = head if is_whole else head.removesuffix(b"\n")
    assert data.startswith(begun)
    assert data.endswith(tail)
    assert len(begun) + size + len(tail) == len(data)
    assert begun.count(b"\n") + lines + tail.count(b"\n") == data.count(b"\n")
    assert len(excerpt.content()) <= most + 100


@given(pieces=SAID, cuts=st.lists(st.integers(0, 5000)), most=st.integers(1, 50))
def test_lines_are_the_same_however_the_stream_is_cut(
    pieces: list[bytes], cuts: list[int], most: int
) -> None:
    data = b"".join(pieces)
    lines = Lines(most)
    ended = [line for chunk in chunks_of(data, cuts) for line in lines.feed(chunk)]
    for line, expected in zip([*ended, lines.begun()], data.split(b"\n"), strict=True):
        if len(expected) <= most:
            assert line == expected
        else:
            assert line == expected[:most] + f" ... {len(expected) - most} bytes left out".encode()


@given(text=st.text(st.sampled_from("a\n"), max_size=300))
def test_short_words_are_quoted_as_they_are(text: str) -> None:
    if text.count("\n") < bounded._QUOTED_LINES:
        assert quoted(text) == text


@given(st.lists(st.integers(1, 2000), max_size=400))
def test_quoted_words_are_few_and_short(lengths: list[int]) -> None:
    text = "\n".join("x" * length for length in lengths)
    lines = quoted(text).splitlines()
    assert len(lines) <= bounded._QUOTED_LINES
    assert all(len(line) <= bounded._QUOTED_CHARACTERS for line in lines)
    assert [*map(cut_line, text.splitlines()[-50:])] == lines[-50:]
    assert quoted(quoted(text)) == quoted(text)


def test_errors_quote_little_of_what_a_machine_says() -> None:
    error = BenchError("m" * 10**6, evidence="z" * 30_000_000, reason=Reason.HOST_START)
    assert len(str(error)) < 25_000
    assert len(error.args[0]) <= 20_000
    assert str(30_000_000 - error.evidence.count("z")) in error.evidence
    again = BenchError(error.message, evidence=error.evidence, reason=Reason.HOST_START)
    assert (again.message, again.evidence) == (error.message, error.evidence)


@pytest.mark.parametrize("chunk", [b"x" * 4096, b"\n" * 64, b"a line of some length\n" * 20])
def test_time_grows_with_the_bytes(chunk: bytes) -> None:
    def seconds(times: int) -> float:
        excerpt, lines = Excerpt(1 << 16), Lines()
        began = time.process_time()
        for _ in range(times):
            excerpt.feed(chunk)
            lines.feed(chunk)
        return time.process_time() - began

    few = min(seconds(500) for _ in range(3))
    many = min(seconds(5000) for _ in range(3))
    assert many < 40 * few + 0.05  # ten times as many; quadratic: 100 times


def test_limits_add_up_to_what_a_trial_may_take_of_the_disk() -> None:
    """The worst case is a machine that prints as much as it may everywhere: the evidence from
    before a guest boot, that of the boot, and the host's, whose console and log are in the private
    folder, too."""
    console, logs = bounded.CONSOLE_BYTES, bounded.LOG_BYTES
    guest = 2 * console + bounded.MARKS_BYTES + logs + 3 * bounded.FACTS_BYTES
    stage = guest + bounded.TRACE_BYTES
    host = 2 * console + logs
    private = 2 * console
    over = 10 << 20  # what QEMU writes before it is noticed
    assert bounded.TRIAL_BYTES + stage + host + private + over < 80 << 20
