from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.stable import has_in_order, numbers_in

_WORDS = st.lists(st.from_regex(r"[a-z]{1,6}", fullmatch=True), min_size=1, max_size=6)


_NUMBERS = st.integers(-999, 10**12).map(str) | st.floats(-99, 99).map("{:.3f}".format)


@given(st.lists(_NUMBERS))
def test_every_number_is_found_whatever_the_words_are(numbers: list[str]) -> None:
    assert numbers_in(" and then ".join(f"{number}, of it" for number in numbers)) == numbers


def test_digits_of_names_and_versions_are_no_numbers() -> None:
    assert numbers_in("QEMU 10.0.2, v6.15, BAR2, 2MiB and x86-64_32") == []
    assert numbers_in("1 of 12: -12 (4096), 0x7f00; 75.0 %.") == [
        "1", "12", "-12", "4096", "0x7f00", "75.0",
    ]  # fmt: skip


@given(_WORDS, st.sampled_from([" ", "\n", " x, "]))
def test_words_are_in_order_however_they_are_wrapped(words: list[str], gap: str) -> None:
    assert has_in_order(gap.join(words), *words)


def test_words_of_another_order_or_paragraph_or_inside_of_others_do_not_count() -> None:
    assert has_in_order("map 1 of\n 12", "map", "1", "12")
    assert not has_in_order("map 1 of 12", "12", "1")
    assert not has_in_order("map 1\n\nof 12", "1", "12")
    assert not has_in_order("unmap 112", "map")
    assert not has_in_order("unmap 112", "12")
    assert not has_in_order("1.12 s", "12 s")
