from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import RAM, DmaStep, Phase, Timeline, Zap
from orchestrator.report.text.timeline_text import calls_and_cost, text_timeline
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.stable import has_in_order, numbers_in
from tests.unit.timelines import (
    BAR,
    EXIT,
    FIRMWARE,
    INIT,
    SIZING,
    WINDOW,
    arms,
    booted,
    in_ginsn,
    phases,
    step,
    with_steps,
)

EQUAL = "equally long"


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def line_of(text: str, title: str) -> list[str]:
    [line] = [line for line in text.splitlines() if title in line]
    return cells(line)


def below(text: str, title: str) -> list[str]:
    """Return the numbers of both arms in the line below the one that is `what`."""
    lines = text.splitlines()
    return cells(lines[lines.index(title) + 1])


# one boot --------------------------------------------------------------------------------------


def test_head_says_whose_boot_how_long_and_how_much_is_explained() -> None:
    assert text_timeline(booted()).splitlines()[:2] == [
        "0001-baseline guest-1, host 6.12.107+deb13",
        "boot 62.55 emulated s to the boot mark, 99.9 % of it attributed;"
        " SSH at 68.5; end at 74.5",
    ]
    without = text_timeline(replace(booted(), ssh_seconds=None)).splitlines()[1]
    assert numbers_in(without) == ["62.55", "99.9", "74.5"]


def test_instructions_are_said_to_be_instructions() -> None:
    text = text_timeline(in_ginsn(booted()))
    assert has_in_order(text, "boot", "62.55 Ginsn")
    assert has_in_order(text, "Ginsn:", "10^9")
    assert "emulated s" not in text
    assert line_of(text, FIRMWARE)[1] == "11.5 Ginsn"


def test_phases_are_in_order_with_a_bar_of_their_share() -> None:
    text = text_timeline(booted())
    assert line_of(text, FIRMWARE) == ["0.000", "11.5 s", "18.4 %", FIRMWARE, "#" * 4]
    assert line_of(text, SIZING) == ["11.500", "44 s", "70.3 %", SIZING, "#" * 14]
    assert line_of(text, INIT) == ["55.500", "7 s", "11.2 %", INIT, "##"]
    assert line_of(text, EXIT) == ["72.500", "2 s", "-", EXIT]
    assert text.index(FIRMWARE) < text.index(SIZING) < text.index(INIT)


def test_step_is_below_its_phase_with_cause_and_parts() -> None:
    text = text_timeline(booted())
    firmware = text[text.index(FIRMWARE) : text.index(SIZING)]
    assert has_in_order(
        firmware, "1.000", "8.4 s", "13.4 %", "map", "01:00.0 BAR 2", "32GiB", WINDOW, "32 faults",
        "lookups 75.0 %", "faults 25.0 %",
    )  # fmt: skip
    assert has_in_order(firmware, "unmap", "01:00.0 BAR 2", "32GiB", WINDOW)
    assert has_in_order(firmware, "map", "RAM", "512MiB", "device attached")
    sizing = " ".join(text[text.index(SIZING) : text.index(INIT)].split())
    assert sizing.count("lookups 70.0 %, IOMMU map 20.0 %, other 10.0 %") == 4


def test_steps_under_a_millisecond_are_told_together() -> None:
    text = text_timeline(booted("candidate"))
    summary = cells(next(x for x in text.splitlines() if "4 more" in x))
    assert summary[:2] == ["2 ms", "0.0 %"]
    assert has_in_order(summary[2], "4", "1 ms", "4", BAR)
    small = [step(1, 4e-4), step(2, 4e-4, kind="unmap"), step(3, 4e-4, bar=RAM)]
    text = text_timeline(with_steps(in_ginsn(booted()), small))
    assert "1.2 Minsn" in text
    assert has_in_order(text, "3", "1 Minsn", "1 map", BAR, "1 unmap", BAR, "1 map", "RAM")


def test_refused_map_has_its_own_line_however_short() -> None:
    text = text_timeline(with_steps(booted(), [step(1, 0.0, result=-12, parts={"pin": 0.0})]))
    assert has_in_order(text, "map", BAR, "32GiB", "sizing BAR 2", "FAILED: ENOMEM")
    assert "FAILED: -4095" in text_timeline(with_steps(booted(), [step(1, 0.0, result=-4095)]))


def test_zaps_are_told_by_cause() -> None:
    zaps = (Zap(1, 2e-5, SIZING, "decoding off"), Zap(2, 3e-5, SIZING, "decoding off"),
            Zap(1.5, 1e-5, SIZING, "reset"))  # fmt: skip
    text = text_timeline(replace(booted(), zaps=zaps))
    assert line_of(text, "decoding off") == ["1.000", "50 us", "0.0 %", "2 zaps, decoding off"]
    assert line_of(text, "reset") == ["1.500", "10 us", "0.0 %", "1 zap, reset"]


def test_phase_that_comes_twice_has_its_own_steps_each_time() -> None:
    boot = replace(
        with_steps(booted(), [step(0.5, 0.1, cause="first"), step(2.5, 0.1, cause="second")]),
        phases=phases((SIZING, 1), (INIT, 1), (SIZING, 1)),
    )
    text = text_timeline(boot)
    assert text.index("first") < text.index(INIT) < text.index("second")


def test_what_is_in_no_phase_is_told_last() -> None:
    boot = replace(with_steps(booted(), [step(0.5, 0.1, phase="?")]), phases=phases((INIT, 60)))
    lines = text_timeline(boot).splitlines()
    [at] = [n for n, line in enumerate(lines) if cells(line)[:2] == ["2.55 s", "4.1 %"]]
    assert INIT in lines[at - 1]
    assert has_in_order(lines[at + 1], "map", BAR)
    covered = replace(booted(), phases=phases((SIZING, 62.55)), steps=(), zaps=())
    _, behind = text_timeline(covered).split(SIZING)
    assert not re.search(r"^ +\S+ s +\S+ %", behind, re.MULTILINE)


def test_foot_says_how_good_marks_are_and_what_to_know() -> None:
    assert text_timeline(booted()).splitlines()[-4:] == [
        "marks: a line's time is from the watch agent, every 10 ms; late by 10 ms at most",
        "serial console: 35 characters in 2 lines up to the boot mark; the guest waits for each",
        "systemd-analyze, by the guest's own clock: kernel 4.5 s, userspace 2.25 s",
        "note cpus-kept: the guest's CPUs were kept in place",
    ]
    bare = replace(booted(), mark_source="", console=(), systemd={}, notes=())
    last = text_timeline(bare).rpartition("\n\n")[2]
    assert has_in_order(last, "account", "maps of BARs", "not explained 0.1 %")


def test_characters_of_the_console_are_those_up_to_the_mark() -> None:
    lines = ((0.1, "12345"), (60.0, "1234567"), (booted().boot_seconds + 1, "login:"))
    text = text_timeline(replace(booted(), console=lines))
    assert has_in_order(text, "serial console:", "12", "2")
    assert "serial console:" not in text_timeline(replace(booted(), console=lines[2:]))


def test_parts_that_are_next_to_nothing_are_not_said() -> None:
    parts = {"lookups": 7.9969, "bookkeeping": 0.003, "faults": 0.0}
    text = " ".join(text_timeline(with_steps(booted(), [step(1, 8.0, parts=parts)])).split())
    assert has_in_order(text, "sizing BAR 2", "lookups 100.0 %")
    assert not re.search("bookkeeping|faults [0-9]|other", text)
    parts = {"lookups": 7.99, "bookkeeping": 0.005}
    text = " ".join(text_timeline(with_steps(booted(), [step(1, 8.0, parts=parts)])).split())
    assert has_in_order(text, "lookups 99.9 %", "bookkeeping 0.1 %", "other 0.1 %")


def test_boot_that_does_not_count_begins_with_why() -> None:
    text = text_timeline(replace(booted(), invalid="lost-events: the trace lost 3 events"))
    first, rest = text.split("\n", 1)
    assert has_in_order(first, "INVALID", "lost-events: the trace lost 3 events")
    assert rest == text_timeline(booted())


@pytest.mark.parametrize(
    ("bound", "late"),
    [(None, "unknown"), (0.0, "clock"), (0.0005, "500 us")],
)
def test_marks_are_as_late_as_is_known(bound: float | None, late: str) -> None:
    text = text_timeline(replace(booted(), mark_bound=bound, mark_source="the agent"))
    [line] = [line for line in text.splitlines() if line.startswith("marks:")]
    assert has_in_order(line, "the agent", late)


def test_boot_without_a_length_is_no_error() -> None:
    assert has_in_order(text_timeline(replace(booted(), boot_seconds=0.0)), "boot", "0 emulated s")


_WORDS = st.text("ab :-0", max_size=150)
_SECONDS = st.floats(0, 9999)


@given(
    st.lists(st.builds(Phase, _WORDS, _SECONDS, _SECONDS), max_size=4),
    st.lists(
        st.builds(
            step, _SECONDS, _SECONDS | st.floats(0, 2e-3), phase=_WORDS, cause=_WORDS, bar=_WORDS,
            parts=st.dictionaries(_WORDS, _SECONDS, max_size=3),
        ),
        max_size=6,
    ),
    st.lists(st.builds(Zap, _SECONDS, _SECONDS, _WORDS, _WORDS), max_size=3),
    st.sampled_from(["s", "Ginsn"]),
)  # fmt: skip
def test_no_line_is_longer_than_100_columns(
    phases: list[Phase], steps: list[DmaStep], zaps: list[Zap], unit: Literal["s", "Ginsn"]
) -> None:
    boot = replace(booted(), phases=tuple(phases), steps=tuple(steps), zaps=tuple(zaps), unit=unit)
    lines = text_timeline(boot).splitlines()
    assert not [line for line in lines if len(line) > 100 or line != line.rstrip()]


# both arms -------------------------------------------------------------------------------------


def test_table_has_calls_one_total_and_share_of_each_arm() -> None:
    lines = calls_and_cost(arms()).splitlines()
    for cell, words in zip(cells(lines[2]), (("baseline", "62.55 s"), ("candidate", "22.05 s")),
                           strict=True):  # fmt: skip
        assert has_in_order(cell, *words)
    assert cells(lines[3]) == ["calls", "one", "total", "share"] * 2
    assert lines[4] == "map 32GiB BAR, kernel: BAR sizing, sizing BARs"
    assert cells(lines[5]) == ["4", "8.4 s", "33.6 s", "53.7%", "4", "500 us", "2 ms", "0.0%"]
    assert lines[6] == f"map 32GiB BAR, {FIRMWARE}, setting the window of a bridge"


def test_totals_are_below_the_rows_and_the_exit_apart() -> None:
    text = calls_and_cost(arms())
    assert below(text, "all maps of 32GiB BARs")[:4] == ["5", "8.4 s", "42 s", "67.1%"]
    assert below(text, "all unmaps of 32GiB BARs")[4:] == ["5", "1.3 s", "6.5 s", "29.5%"]
    assert below(text, "all maps of RAM")[:3] == ["1", "10 ms", "10 ms"]
    after = text[text.index("After the boot mark:") :]
    assert below(after, f"unmap 32GiB BAR, {EXIT}, exit") == [
        "1", "1.1 s", "1.1 s", "1", "1.3 s", "1.3 s",
    ]  # fmt: skip


def test_small_operations_are_one_line() -> None:
    small = [step(1, 0.01, cause=cause) for cause in ("a", "b")]
    text = calls_and_cost({"baseline": [with_steps(booted(), [*small, step(9, 8.0)])]})
    assert below(text, "2 others") == ["2", "10 ms", "20 ms", "0.0%"]


def test_several_boots_are_said_to_be_several() -> None:
    assert has_in_order(
        calls_and_cost(arms(3)), "baseline", "3", "62.55 s", "candidate", "3", "22.05 s"
    )


def test_arm_without_calls_has_dashes() -> None:
    boots = arms()
    boots["candidate"] = [with_steps(booted("candidate"), [])]
    assert calls_and_cost(boots).splitlines()[5].split()[-4:] == ["-"] * 4


def explanation(boots: dict[ArmName, list[Timeline]]) -> str:
    """Return the paragraph below the table: how much longer a boot is, and by what."""
    return " ".join(calls_and_cost(boots).strip().rpartition("\n\n")[2].split())


def test_difference_is_explained_by_changes_with_their_signs() -> None:
    text = " ".join(calls_and_cost(arms()).split())
    assert text.endswith(
        "The candidate's boot is 40.50 emulated s shorter (62.55 -> 22.05): maps of"
        " 32GiB BARs -42.00 s; unmaps of 32GiB BARs +1.00 s; all else +0.50 s:"
        f" +0.50 in {INIT}."
    )


def test_explanation_has_the_largest_first_and_leaves_out_what_rounds_to_nothing() -> None:
    def boot(arm: ArmName, unmap: float, small: float, large: float) -> Timeline:
        steps = [
            step(1, large), step(8, small, bar="01:00.0 BAR 0", size=4096),
            step(9, unmap, kind="unmap"), step(9, 0.25, bar=RAM),
        ]  # fmt: skip
        length = 10 + unmap + small + large
        made = phases((SIZING, length))
        return replace(with_steps(booted(arm), steps), boot_seconds=length, phases=made)

    boots: dict[ArmName, list[Timeline]] = {
        "baseline": [boot("baseline", 1.0, 0.003, 1.5)],
        "candidate": [boot("candidate", 3.5, 0.001, 0.5)],
    }  # fmt: skip
    assert has_in_order(
        explanation(boots), "1.50 emulated s longer", "12.50 -> 14.00", "unmaps of 32GiB BARs",
        "2.50 s", "maps of 32GiB BARs", "-1.00 s", "0.00 s",
    )  # fmt: skip
    assert len(numbers_in(explanation(boots))) == 6  # the map of 4 KiB is left out


def test_longer_boot_without_maps_is_explained_by_its_phases() -> None:
    def boot(arm: ArmName, length: float) -> Timeline:
        return replace(
            booted(arm), steps=(), boot_seconds=length, phases=phases((INIT, length))
        )  # fmt: skip

    boots: dict[ArmName, list[Timeline]] = {
        "baseline": [boot("baseline", 2.0)], "candidate": [boot("candidate", 3.0)],
    }  # fmt: skip
    assert has_in_order(
        explanation(boots), "1.000 emulated s longer", "2.000 -> 3.000", "1.000 s", "1.000", INIT
    )


def test_longer_boot_is_explained_the_other_way_round() -> None:
    boots = arms()
    swapped: dict[ArmName, list[Timeline]] = {
        "baseline": boots["candidate"], "candidate": boots["baseline"],
    }  # fmt: skip
    assert has_in_order(
        explanation({arm: [in_ginsn(b) for b in swapped[arm]] for arm in swapped}),
        "40.50 Ginsn longer", "22.05 -> 62.55", "maps of 32GiB BARs", "42.00 Ginsn",
        "unmaps of 32GiB BARs", "-1.00 Ginsn", "-0.50 Ginsn",
    )  # fmt: skip


def test_many_phases_are_cut_short() -> None:
    def boot(arm: ArmName, length: float) -> Timeline:
        made = phases(*((f"phase {n}", length) for n in range(6)))
        return replace(booted(arm), steps=(), boot_seconds=6 * length, phases=made)

    boots: dict[ArmName, list[Timeline]] = {
        "baseline": [boot("baseline", 2.0)], "candidate": [boot("candidate", 1.0)],
    }  # fmt: skip
    text = explanation(boots)
    assert has_in_order(text, "6.00 s", "1.00", "phase 0", "1.00", "phase 3", "2.00")
    assert "phase 4" not in text


_LENGTHS = st.floats(0.001, 90)


@given(st.lists(st.tuples(_LENGTHS, _LENGTHS), min_size=3, max_size=9), _LENGTHS, _LENGTHS)
def test_what_is_shown_of_a_difference_adds_up_but_for_its_rounding(
    lengths: list[tuple[float, float]], first: float, second: float
) -> None:
    """Each number is rounded by itself, or left out where it rounds to nothing."""

    def boot(arm: ArmName, which: int, seconds: float) -> Timeline:
        made = phases(*((f"phase {n}", both[which]) for n, both in enumerate(lengths)), ("m", 99))
        steps = [step(0, seconds, phase="m"), step(1, 0.004, kind="unmap", phase="m")]
        whole = sum(phase.seconds for phase in made)
        return replace(with_steps(booted(arm), steps), boot_seconds=whole, phases=made)

    text = " ".join(
        calls_and_cost(
            {"baseline": [boot("baseline", 0, first)], "candidate": [boot("candidate", 1, second)]}
        ).split()
    )
    if EQUAL in text:
        return
    number = r"[+-]?\d+\.\d+"
    whole = re.search(rf"boot is ({number}) emulated s (longer|shorter) ", text)
    explained = re.search(rf"\): (.*)all else ({number}) s(?:: (.*))?\.$", text)
    assert whole is not None
    assert explained is not None
    operations = [float(n) for n in re.findall(rf"({number}) s;", explained[1])]
    parts = [float(n) for n in re.findall(rf"({number}) in ", explained[3] or "")]
    last = 10 ** -len(whole[1].partition(".")[2])
    change = float(whole[1]) * (-1 if whole[2] == "shorter" else 1)
    rounding = last / 2 * 1.01
    # two kinds of operations, what is left, and the whole; at most five phases
    assert sum(operations) + float(explained[2]) == pytest.approx(change, abs=4 * rounding)
    assert sum(parts) == pytest.approx(float(explained[2]), abs=6 * rounding)


def test_equal_boots_are_said_to_be_equal() -> None:
    boots: dict[ArmName, list[Timeline]] = {"baseline": [booted()], "candidate": [booted()]}
    assert numbers_in(explanation(boots)) == ["62.55", "62.55"]
    assert EQUAL in explanation(boots)


def test_one_arm_alone_is_a_table_without_an_explanation() -> None:
    text = calls_and_cost({"candidate": [booted("candidate")]})
    assert "baseline" not in text
    assert " -> " not in text
    assert calls_and_cost({"baseline": []}) == ""


@given(
    st.lists(
        st.builds(
            step, _SECONDS, _SECONDS, phase=_WORDS, cause=_WORDS, size=st.integers(1, 2**50),
            kind=st.sampled_from(["map", "unmap"]),
        ),
        max_size=6,
    ),
    st.sampled_from(["s", "emulated s", "Ginsn"]),
    st.sampled_from([1, 12]),
)  # fmt: skip
def test_table_is_plain_text_for_mail(
    steps: list[DmaStep], unit: Literal["s", "emulated s", "Ginsn"], several: int
) -> None:
    boot = replace(with_steps(booted(), steps), unit=unit)
    text = calls_and_cost({"baseline": [boot] * several, "candidate": [replace(boot, steps=())]})
    assert text.isascii()
    assert not [line for line in text.splitlines() if len(line) > 76 or line != line.rstrip()]


def test_numbers_that_are_long_are_nearer_to_one_another() -> None:
    text = calls_and_cost({arm: [in_ginsn(b) for b in of] for arm, of in arms().items()})
    assert "\n      4  8.4 Ginsn  33.6 Ginsn  53.7%   " in text
    small: dict[ArmName, list[Timeline]] = {
        "baseline": [with_steps(in_ginsn(booted()), [step(1, 8.437, cause="a")])]
    }
    small["candidate"] = [with_steps(in_ginsn(booted()), [step(1, 8.438e-4, cause="a")])]
    text = calls_and_cost(small)
    assert (
        "\n      1 8.437 Ginsn 8.437 Ginsn 13.5%       1 843.8 kinsn 843.8 kinsn  0.0%\n" in text
    )
