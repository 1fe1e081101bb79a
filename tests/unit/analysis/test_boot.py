from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.analysis.boot.boot import (
    build_timeline,
    check_clock,
    read_boot_trace,
    read_timelines,
)
from orchestrator.analysis.boot.boottrace import BootTrace, read_boot
from orchestrator.analysis.boot.marks import parse_marks
from orchestrator.analysis.boot.qemu import QemuEvent
from orchestrator.analysis.boot.timeline import IOVA, RAM, DmaStep, Timeline
from orchestrator.analysis.tracefs.trace import Operation
from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.layout import TrialDir
from tests.unit.analysis.boots import (
    BAR_2,
    RECORDED,
    VCPU,
    recorded_boot,
    recorded_timeline,
)
from tests.unit.examples import share
from tests.unit.recorded import BAR, MEASURED, RUN, TRACE, copied, rewrite, sealed
from tests.unit.stable import numbers_in

TRIAL = TrialDir.open(RUN / "trials" / MEASURED)
MARK = "barometer: boot mark, uptime 9.88"


def timeline(text: str) -> Timeline:
    return build_timeline(TRIAL, 1, read_boot(text))


def refused(text: str, reason: str) -> str:
    with pytest.raises(EvidenceError) as caught:
        timeline(text)
    assert caught.value.reason == reason
    return caught.value.message


def marker(text: str, time: float = 20.5, pid: int = 303) -> str:
    return f"  python3-{pid}  [000] .....  {time:.6f}: tracing_mark_write: {text}\n"


def note_names(traced: Timeline) -> list[str]:
    return [note.name for note in traced.notes]


def test_trace_is_read_once_for_everything() -> None:
    boot = recorded_boot()
    assert (boot.events, boot.pid) == (1815, 307)
    assert list(boot.execs) == [307]
    assert set(boot.marks) == {"ports", "started", "console", "mark", "tables",
                               "ssh", "exit"}  # fmt: skip
    assert len(boot.console) == len(boot.feeds)
    assert boot.console[0][1].startswith("[    0.000000] Linux version 6.12.107+deb13")
    assert boot.console[boot.mark_line or 0][1] == MARK
    assert [register for _, _, register, _ in boot.msrs].count(0xC0000080) == 2
    assert [size for _, size in boot.iommu_maps] == [BAR] * 12
    assert len(boot.zaps) == 7
    assert sum(o.size == BAR for o in boot.operations) == 24
    assert sum(region.size == BAR for region in boot.regions) == 12
    assert boot.cpu_use == sorted(boot.cpu_use)


def test_recorded_boot_is_a_timeline_from_its_exec_on() -> None:
    traced = recorded_timeline()
    assert (traced.trial, traced.guest, traced.unit) == (MEASURED, "guest-1", "emulated s")
    assert traced.release == "7.3.4+deb13-cloud-amd64"
    assert traced.boot_seconds == pytest.approx(26.160649)
    assert traced.ssh_seconds == pytest.approx(32.270814)
    assert traced.end_seconds > 34
    assert traced.notes == ()
    starts = [step.start for step in traced.steps]
    assert starts == sorted(starts)


def test_trace_and_watch_agent_tell_the_same_of_a_boot() -> None:
    traced, marks = recorded_timeline(), parse_marks(TRIAL.text("guest-1/marks.txt") or "")
    assert [line for _, line in traced.console] == [line for _, line in marks.console]
    # the process exists before it executes QEMU
    assert marks.boot_seconds is not None
    assert 0 < marks.boot_seconds - traced.boot_seconds < 0.1


@pytest.mark.parametrize(
    ("accel", "unit"), [("kvm", "s"), ("tcg", "emulated s"), ("exact", "Ginsn")]
)
def test_timeline_has_the_unit_of_its_host(accel: str, unit: str) -> None:
    manifest = TRIAL.manifest.model_copy(update={"accel": accel})
    trial = TrialDir(TRIAL.path, manifest, "")
    assert build_timeline(trial, 1, recorded_boot()).unit == unit


def test_lines_have_the_times_of_their_line_feeds_where_the_guest_sent_them() -> None:
    boot, traced = recorded_boot(), recorded_timeline()
    zero = boot.execs[boot.pid]
    assert [at for at, _ in traced.console] == [round(at - zero, 9) for at, _ in boot.feeds]
    assert traced.mark_bound == 0
    assert "kvm:kvm_pio" in traced.mark_source
    late = [line - feed for (line, _), (feed, _) in zip(boot.console, boot.feeds, strict=True)]
    assert min(late) > 0
    assert f"{max(late) * 1000:.1f}" in numbers_in(traced.mark_source)


def test_lines_have_the_agents_times_where_line_feeds_are_missing() -> None:
    traced = timeline(re.sub(r"(?m)^.* kvm_pio: .*\n", "", RECORDED, count=1))
    boot = recorded_boot()
    assert traced.mark_bound is None
    assert traced.mark_source != recorded_timeline().mark_source
    zero = boot.execs[boot.pid]
    assert [at for at, _ in traced.console] == [round(at - zero, 9) for at, _ in boot.console]
    assert 0 < traced.boot_seconds - recorded_timeline().boot_seconds < 0.1


def test_line_feeds_of_every_cpu_of_the_guest_count() -> None:
    boot = recorded_boot()
    (at, first), *others = boot.feeds
    boot.feeds = [(at, 99999), *others]
    trial = TrialDir.open(RUN / "trials" / MEASURED)
    assert build_timeline(trial, 1, boot).mark_bound is None
    boot.threads = {first, 99999}
    assert build_timeline(trial, 1, boot).mark_bound == 0


def test_guest_without_kvm_has_the_agents_times() -> None:
    traced = timeline(re.sub(r"(?m)^.* kvm_(pio|msr): .*\n", "", RECORDED))
    assert traced.mark_bound is None
    assert "kernel: entry" not in {phase.name for phase in traced.phases}
    assert traced.attributed_share == pytest.approx(1.0)


def test_line_feeds_of_another_machine_are_not_the_guests() -> None:
    other = " CPU 0/KVM-999 [001] .....  30.000000: kvm_pio: pio_write at 0x3f8 val 0xa\n"
    lines = RECORDED.splitlines(keepends=True)
    assert timeline("".join([*lines[:500], other, *lines[500:]])) == recorded_timeline()


def drifted(seconds: float, since: float = 35.0) -> str:
    """Set the agent's clock ahead of the trace's by so many seconds."""

    def later(match: re.Match[str]) -> str:
        at = int(match[2])
        return f"{match[1]}{at + int(seconds * 1e9) * (at > since * 1e9)}"

    return re.sub(r"(barometer [CEP] )(\d+)", later, RECORDED)


@pytest.mark.parametrize(
    ("seconds", "since"), [(0.2, 35), (0.2, 50), (3600.0, 35), (-0.2, 28), (-20.0, 28)]
)
def test_clock_that_jumped_within_a_boot_makes_it_invalid(seconds: float, since: float) -> None:
    assert refused(drifted(seconds, since), "clock-jump")


@pytest.mark.parametrize("since", [40, 45])
def test_clock_of_the_trace_may_jump_ahead_late_in_a_boot(since: float) -> None:
    refused(drifted(-20.0, since), "clock-jump")


@pytest.mark.parametrize("seconds", [0.0, 0.02, -0.02])
def test_clocks_that_go_alike_may_be_read_late(seconds: float) -> None:
    check_clock(read_boot(drifted(seconds)))


def test_line_that_is_late_is_no_drift() -> None:
    boot = recorded_boot()
    boot.agent_clock = [
        (trace + 0.5 * (n % 3 > 0), at) for n, (trace, at) in enumerate(boot.agent_clock)
    ]
    check_clock(boot)


def test_clocks_that_are_apart_all_the_time_go_alike() -> None:
    check_clock(read_boot(drifted(1000.0, since=0)))


def test_long_boot_may_drift_by_a_thousandth() -> None:
    check_clock(BootTrace(agent_clock=[(at * 1.0005, float(at)) for at in range(0, 1000, 10)]))
    with pytest.raises(EvidenceError, match="clock"):
        check_clock(BootTrace(agent_clock=[(at * 1.01, float(at)) for at in range(0, 1000, 10)]))


def test_boot_with_hardly_a_line_has_clocks_that_cannot_be_compared() -> None:
    with pytest.raises(EvidenceError) as caught:
        check_clock(BootTrace(agent_clock=[(1.0, 1.0), (2.0, 1.0), (3.0, 2.0)]))
    assert caught.value.reason == "clock-not-checked"


def stepped(seconds: float) -> str:
    """Step the wall clock after the guest's kernel has begun."""
    return re.sub(
        r"(\d+)@(\d+\.\d{6}):",
        lambda m: f"{m[1]}@{float(m[2]) + seconds * (float(m[2]) > 1795397462):.6f}:",
        RECORDED,
    )


def test_wall_clock_that_is_stepped_is_noted_and_changes_nothing() -> None:
    traced = timeline(stepped(-7200.0))
    assert note_names(traced) == ["clock-step"]
    assert numbers_in(traced.notes[0].text)[0] == "7200.0"
    assert replace(traced, notes=()) == recorded_timeline()


def test_wall_clock_that_is_slewed_is_not_noted() -> None:
    assert note_names(timeline(stepped(0.5))) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [("tsc", []), ("kvm-clock", []), ("hpet", ["clock-source"]), ("acpi_pm", ["clock-source"])],
)
def test_clock_source_that_is_slow_to_read_is_noted(
    tmp_path: Path, source: str, names: list[str]
) -> None:
    trial = copied(tmp_path)
    facts = json.loads((trial / "host/facts.json").read_text())
    facts["settings"]["clocksource"] = source
    (trial / "host/facts.json").write_text(json.dumps(facts))
    traced = build_timeline(TrialDir.open(trial), 1, recorded_boot())
    assert note_names(traced) == names
    assert all(source in note.text for note in traced.notes)


def test_notes_of_the_account_come_first(tmp_path: Path) -> None:
    noted = timeline(stepped(9.0)).notes
    traced = build_timeline(TRIAL, 1, read_boot(stepped(9.0)), recorded_timeline().notes + noted)
    assert traced.notes == noted * 2


@pytest.mark.parametrize("length", [880, 700, 50])
def test_line_that_was_cut_short_is_kept_as_far_as_it_goes(length: int) -> None:
    text = json.dumps("[    1.0] " + 'x"y\u00fc\\' * 300)
    cut = read_boot(marker(f"barometer C 20400000000 {text}"[:length]))
    [(at, line)] = cut.console
    assert at == 20.5
    assert line == text[: length - len("barometer C 20400000000 ")].strip('"')
    whole = read_boot(marker(f"barometer C 20400000000 {text}"))
    assert whole.console == [(20.5, json.loads(text))]


def test_marker_of_somebody_else_is_nothing() -> None:
    boot = read_boot(marker("hello") + marker("barometer") + marker("barometer X 5 y"))
    assert boot.events == 3
    assert replace(boot, events=0, agent_clock=[]) == BootTrace()


def test_map_that_never_returned_makes_a_boot_invalid() -> None:
    last = max(m.start() for m in re.finditer(r"(?m)^.* ioctl_out: ", RECORDED))
    refused(RECORDED[:last] + RECORDED[last:].split("\n", 1)[1], "unpaired-trace")


@pytest.mark.parametrize(
    "line", ["sched_process_exec", r"barometer E \d+ started", r"barometer E \d+ mark$"]
)
def test_boot_without_a_beginning_or_a_mark_is_invalid(line: str) -> None:
    text = re.sub(rf"(?m)^.*{line}.*\n", "", RECORDED)
    assert text != RECORDED
    assert "guest-1" in refused(text, "no-mark")


def test_exec_of_another_qemu_is_no_beginning() -> None:
    """libvirt starts every QEMU binary to query its capabilities."""
    other = (
        " qemu-system-x86-300 [001] .....  20.100000: sched_process_exec:"
        " filename=/usr/bin/qemu-system-x86_64 pid=300 old_pid=300\n"
    )
    assert timeline(other + RECORDED) == recorded_timeline()


def test_first_of_two_marks_counts() -> None:
    again = marker('barometer C 54000000000 "barometer: boot mark"', 54.0) + marker(
        "barometer E 54000000000 mark", 54.0001
    )
    text = re.sub(r"(?m)^.* kvm_pio: .*\n", "", RECORDED)
    assert timeline(text + again).boot_seconds == timeline(text).boot_seconds


def test_boot_without_a_last_word_ends_with_its_last_line() -> None:
    traced = timeline(re.sub(r"(?m)^.*barometer E \d+ exit\n", "", RECORDED))
    assert traced.end_seconds == traced.console[-1][0]
    assert traced.boot_seconds == recorded_timeline().boot_seconds


def test_trial_without_a_traced_boot_has_no_timeline() -> None:
    changes = {"guests": TRIAL.manifest.guests[:1], "passes": ("plain",)}
    trial = TrialDir(TRIAL.path, TRIAL.manifest.model_copy(update=changes), "")
    with pytest.raises(EvidenceError, match=r"\bplain\b") as caught:
        read_timelines(trial)
    assert caught.value.reason == "no-timeline"


def test_timelines_are_those_of_the_traced_boots() -> None:
    assert read_timelines(TRIAL) == [recorded_timeline()]


def test_trace_that_is_not_there_is_missing_evidence(tmp_path: Path) -> None:
    trial = copied(tmp_path)
    (trial / TRACE).unlink()
    with pytest.raises(EvidenceError, match=r"trace-guest-1\.txt") as caught:
        read_boot_trace(sealed(trial), 1)
    assert caught.value.reason == "missing-evidence"


def test_trace_may_be_compressed_or_not(tmp_path: Path) -> None:
    trial = copied(tmp_path)
    (trial / TRACE).unlink()
    (trial / TRACE).with_suffix("").write_text(RECORDED)
    assert read_timelines(sealed(trial)) == [recorded_timeline()]


def test_parts_of_a_map_are_what_was_probed() -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == BAR_2 and s.kind == "map"]
    assert [sorted(step.parts) for step in steps] == [
        [
            "IOMMU map",
            "bookkeeping",
            "faults",
            "lookups",
        ],  # faults are probed while the firmware runs
        *[["IOMMU map", "bookkeeping", "lookups"]] * 4,
        *[["IOMMU map", "bookkeeping", "lookups and faults"]]
        * 6,  # decoding was off: the page tables are gone
        ["IOMMU map", "bookkeeping", "lookups"],
    ]
    assert [step.faults for step in steps] == [1, *[None] * 11]


def test_parts_of_an_unmap_are_nearly_all_of_it() -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == BAR_2 and s.kind == "unmap"]
    for step in steps:
        around = [] if step.cause == "exit" else ["bookkeeping"]  # the exit is no ioctl
        parts = ["IOMMU unmap", "IOTLB sync", *around, "iova-to-phys walk", "unpin"]
        assert sorted(step.parts) == parts
        assert 0.99 < step.attributed_share <= 1


def test_parts_are_within_their_operation() -> None:
    for step in recorded_timeline().steps:
        assert sum(step.parts.values()) <= step.seconds + 1e-9
        assert all(seconds >= 0 for seconds in step.parts.values())


def test_run_of_memory_as_long_as_a_bar_is_no_part_of_its_own() -> None:
    boot = recorded_boot()
    index = next(i for i, o in enumerate(boot.operations) if (o.kind, o.iova) == ("map", 0))
    boot.operations[index] = replace(boot.operations[index], pin_seconds=1e-5, around_seconds=1.0)
    step = build_timeline(TrialDir.open(RUN / "trials" / MEASURED), 1, boot).steps[index]
    assert step.parts == {"pin and IOMMU map": step.seconds}


def test_memory_is_a_whole() -> None:
    kinds = {(s.kind, *s.parts) for s in recorded_timeline().steps if s.bar == RAM}
    assert kinds == {
        ("map", "pin and IOMMU map"),
        ("unmap", "bookkeeping", "walk, IOMMU unmap and unpin"),
        ("unmap", "walk, IOMMU unmap and unpin"),  # at the exit
    }


def mapped(
    *placements: tuple[float, str],
    iova: int,
    size: int = BAR,
    at: float = 30.0,
    by_qemu: bool = True,
    **more: Any,
) -> DmaStep:
    """Return what is mapped at `iova`, with BARs placed as QEMU `said`. `by_qemu`: it is a region
    that QEMU has VFIO map."""
    boot = recorded_boot()
    boot.qemu = [
        QemuEvent("pci_update_mappings_add", text, VCPU, time, time) for time, text in placements
    ]
    if by_qemu:
        added = f"region_add [ram] {iova:#x} - {iova + size - 1:#x} [0x7f0000000000]"
        boot.qemu.append(QemuEvent("vfio_listener_region_add_ram", added, VCPU, at, at))
    boot.operations = [Operation("map", at, 0.1, iova, size, 0, pid=VCPU, **more)]
    [step] = build_timeline(TRIAL, 1, boot).steps
    return step


def placed(*placements: tuple[float, str], iova: int, size: int = BAR, at: float = 30.0) -> str:
    """Return the name of what QEMU has mapped at `iova`."""
    return mapped(*placements, iova=iova, size=size, at=at).bar


def test_what_is_mapped_has_the_name_of_the_bar_that_is_there() -> None:
    first = "vfio-pci 01:00.0 2,0x4000000000+0x40000000"
    two = "vfio-pci 02:00.0 2,0x4040000000+0x40000000"
    assert placed((29, first), (29, two), iova=0x4000000000) == "01:00.0 BAR 2"
    assert placed((29, first), (29, two), iova=0x4040000000) == "02:00.0 BAR 2"
    assert placed((29, first), (29, two), iova=0x4080000000) == RAM
    assert placed((29, first), (29, two), iova=0x0, size=4096) == RAM


def test_bar_has_its_name_where_it_was_put_last() -> None:
    low = "vfio-pci 01:00.0 2,0x80000000+0x40000000"
    high = "vfio-pci 01:00.0 2,0x4000000000+0x40000000"
    placements = ((25, low), (29, high), (35, low))
    assert placed(*placements, iova=0x4000000000) == "01:00.0 BAR 2"
    assert placed(*placements, iova=0x80000000) == RAM
    assert placed(*placements, iova=0x80000000, at=36.0) == "01:00.0 BAR 2"


def test_bar_that_is_smaller_than_a_page_is_mapped_by_a_page() -> None:
    placements = (29.0, "vfio-pci 01:00.0 0,0xfe800000+0x100")
    assert placed(placements, iova=0xFE800000, size=4096) == "01:00.0 BAR 0"


def test_bars_of_devices_that_are_not_passed_through_are_not_mapped() -> None:
    assert placed((29, "ich9-ahci 00:1f.2 5,0xfea02000+0x1000"), iova=0xFEA02000) == RAM


def test_bars_that_change_places_change_names() -> None:
    first, second = "0x4000000000+0x40000000", "0x4040000000+0x40000000"
    placements = (
        (25.0, f"vfio-pci 01:00.0 2,{first}"), (25.1, f"vfio-pci 02:00.0 2,{second}"),
        (29.0, f"vfio-pci 02:00.0 2,{first}"),
    )  # fmt: skip
    assert placed(*placements, iova=0x4000000000) == "02:00.0 BAR 2"


ONE_BAR = (29.0, "vfio-pci 01:00.0 2,0x4000000000+0x40000000")


@pytest.mark.parametrize(
    ("iova", "size", "name"),
    [
        (0x4000000000, BAR, BAR_2),
        (0x4020000000, BAR // 2, BAR_2),  # the rest of it beside a page that is emulated
        (0x4020000000, BAR, RAM),
        (0x4000000000, BAR + 4096, RAM),
    ],
)
def test_bar_is_named_by_the_whole_range_that_is_mapped(iova: int, size: int, name: str) -> None:
    assert placed(ONE_BAR, iova=iova, size=size) == name


def test_what_qemu_has_not_added_is_mapped_for_the_guests_iommu() -> None:
    for size in (BAR, 4096):
        step = mapped(ONE_BAR, iova=0x4000000000, size=size, by_qemu=False, pin_seconds=0.05)
        assert (step.bar, step.cause) == (IOVA, "the guest's IOMMU")
        assert step.parts == {"pin and IOMMU map": step.seconds}
    own = mapped(ONE_BAR, iova=0x4000000000)
    assert (own.bar, own.cause) == (BAR_2, "not known")


def test_bar_of_another_size_than_the_large_ones_is_a_whole() -> None:
    probed: Any = {"pin_seconds": 0.05, "iommu_seconds": 0.01, "around_seconds": 0.04}
    small = mapped(ONE_BAR, iova=0x4000000000, size=BAR // 2, **probed)
    assert small.parts == {"pin and IOMMU map": small.seconds}
    large = mapped(ONE_BAR, iova=0x4000000000, **probed)
    assert sorted(large.parts) == ["IOMMU map", "bookkeeping", "lookups and faults"]


GARBAGE = [
    "barometer P 29000000000", "barometer P 29000000000 much", "barometer E 29000000000 started",
    "barometer E 29000000000 started {}", "barometer E 29000000000 started []",
    'barometer E 29000000000 started {"pid": 3',
]  # fmt: skip
IN_EXCERPT = slice(280, 420)
"""Recorded lines of the firmware, the kernel's entry, and the console's first lines."""


@pytest.mark.parametrize("text", GARBAGE)
def test_line_of_the_agent_that_is_no_line_of_it_is_an_evidence_error(text: str) -> None:
    with pytest.raises(EvidenceError):
        read_boot(marker(text))


@pytest.mark.parametrize("text", ["", "barometer", "barometer C 5", "barometer E 5", "307@1.5:"])
def test_line_that_says_nothing_is_nothing(text: str) -> None:
    assert read_boot(marker(text)).events == 1


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Cut, double, omit, swap or garble some of the recorded lines."""
    lines = [*RECORDED.splitlines()[12:40], *RECORDED.splitlines()[IN_EXCERPT]]
    for _ in range(draw(st.integers(1, 6))):
        number = draw(st.integers(0, len(lines) - 1))
        line = lines[number]
        at = draw(st.integers(0, len(line)))
        change: Any = draw(st.sampled_from(["cut", "twice", "out", "other", "swap"]))
        if change == "cut":
            lines[number] = line[:at]
        elif change == "twice":
            lines.insert(number, line)
        elif change == "out" and len(lines) > 1:
            del lines[number]
        elif change == "other":
            text = draw(st.text("0123456789abcdefx =-{}\"'.@:<>ERCP", max_size=12))
            lines[number] = line[:at] + text + line[at + len(text) :]
        else:
            other = draw(st.integers(0, len(lines) - 1))
            lines[number], lines[other] = lines[other], line
    return "\n".join(lines) + "\n"


@share(2)
@given(mutated())
@example(marker("barometer P 29000000000"))
@example(marker(f"barometer C 29000000000 {'[' * 100_000}"))
def test_garbled_lines_are_read_or_are_an_evidence_error(text: str) -> None:
    with contextlib.suppress(EvidenceError):
        build_timeline(TRIAL, 1, read_boot(text))


@share(0.6)
@given(st.integers(0, len(RECORDED)))
def test_trace_that_is_cut_between_lines_is_a_timeline_or_an_evidence_error(cut: int) -> None:
    whole = RECORDED[: RECORDED.rfind("\n", 0, cut) + 1]
    with contextlib.suppress(EvidenceError):
        traced = timeline(whole)
        assert traced.boot_seconds == pytest.approx(recorded_timeline().boot_seconds, abs=0.1)
        assert traced.attributed_share == pytest.approx(1.0)


def test_trial_whose_agent_was_cut_short_is_invalid_not_a_bug(tmp_path: Path) -> None:
    trial = copied(tmp_path)
    rewrite(trial / TRACE, lambda text: re.sub(r"(?m)^.*barometer E \d+ mark$", "#", text))
    with pytest.raises(EvidenceError):
        read_timelines(sealed(trial))
