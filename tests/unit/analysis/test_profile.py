"""Profiles of made-up traces, line by line, and of recorded ones."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.boot.timeline import RAM
from orchestrator.analysis.diagnosis.advice import NO_REMEDY, Advice
from orchestrator.analysis.diagnosis.diagnosis import Profile, analyse_profile, find_mappings
from orchestrator.analysis.maps.theory import Mapping
from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.model import parse_evidence
from orchestrator.evidence.surveys.profile_facts import ProfileBar, ProfileFacts
from orchestrator.formats.units import GIB, MIB
from tests.unit.stable import numbers_in

QEMU, VCPU, OTHER = 100, 102, 900
BAR = ProfileBar(device="0000:3b:00.0", number=1, start=0x380000000000, size=32 * GIB)
SMALL = ProfileBar(device="0000:3b:00.0", number=0, start=0xFB000000, size=16 * MIB)
ALIGNED, MISALIGNED = 0x7F0000000000, 0x7F0000200000
FACTS: dict[str, Any] = {
    "schema": 1, "barometer": "0.1.0", "domain": "gpu vm", "uri": "qemu:///system",
    "boot": "start", "until": 20.0, "release": "6.8.0", "qemu": "9.2.0", "libvirt": "11.3.0",
    "settings": {"transparent_hugepage": "[always] madvise never", "clocksource": "tsc"},
    "memory": 8 * GIB, "huge_pages": False, "kvm": True, "parts": True, "huge_fault": True,
    "bars": [SMALL.model_dump(), BAR.model_dump()], "pid": QEMU, "ended": "quiet",
    "definition_changed": False,
}  # fmt: skip
FILES = {
    "stats.txt": "cpu0\noverrun: 0\n", "clock.txt": "local [mono]\n",
    "profile.txt": "  ioctl_in  9  0\n  imap_in  9  7\n",
}  # fmt: skip
NEVER = {"transparent_hugepage": "always madvise [never]", "clocksource": "tsc"}


def vma(address: int, bar: ProfileBar, size: int = 0, inside: int = 0) -> str:
    end, offset = address + (size or bar.size), (bar.number << 40) + inside
    return f"{address:x}-{end:x} rw-s {offset:08x} 00:0e 12 anon_inode:[vfio-device]\n"


class Trace:
    """Lines of tracefs, with the operations of one thread one after the other."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def at(self, time: float, name: str, rest: str, thread: int = VCPU) -> Trace:
        self.lines.append(f" CPU 0/KVM-{thread} [001] ..... {time:.6f}: {name}: {rest}")
        return self

    def exec(self, time: float, pid: int = QEMU) -> Trace:
        return self.at(time, "sched_process_exec", "filename=/q pid=1 old_pid=1", pid)

    def mark(self, time: float, name: str) -> Trace:
        return self.at(time, "tracing_mark_write", f"barometer E 0 {name}", 5000)

    def mapped(
        self, time: float, seconds: float, address: int, size: int, thread: int = VCPU,
        iova: int = 1 << 40, result: int = 0,
    ) -> Trace:  # fmt: skip
        place = f"q8={address:#x} q16={iova:#x} q24={size:#x}"
        self.at(time, "ioctl_in", f"(f) cmd=0x3b71 {place}", thread)
        rest = f"(f) cmd=0x3b71 q8={address:#x} q16={iova:#x} ret={result}"
        return self.at(time + seconds, "ioctl_out", rest, thread)

    def unmapped(self, time: float, seconds: float, size: int, iova: int = 1 << 40) -> Trace:
        self.at(time, "ioctl_in", f"(f) cmd=0x3b72 q8={iova:#x} q16={size:#x} q24=0x0")
        out = f"(f) cmd=0x3b72 q8={iova:#x} q16={size:#x} ret=0"
        return self.at(time + seconds, "ioctl_out", out)

    def zapped(self, time: float) -> Trace:
        return self.at(time, "zap_in", "(f)").at(time + 0.001, "zap_out", "(f)")

    def text(self) -> str:
        key = re.compile(r"\s(\d+\.\d+): ")
        return "\n".join(
            sorted(self.lines, key=lambda line: float(key.search(line)[1]))  # type: ignore[index]
        )


def booted(maps: int = 4, seconds: float = 3.0) -> Trace:
    """A GPU with a 32 GiB BAR: a map of the guest's memory, a map of the BAR by the firmware, the
    others by the kernel, which starts at 10 s."""
    trace = Trace().exec(1.0).mark(3.0, "run")
    trace.mapped(2.0, 0.5, 0x550000000000, 2 * GIB, QEMU, iova=0)
    trace.mapped(5.0, seconds, ALIGNED, BAR.size)
    trace.at(10.0, "kvm_msr", "msr_write c0000080 = 0x501")
    at = 12.0
    for _ in range(maps - 1):
        trace.zapped(at - 0.5).unmapped(at, 0.5, BAR.size)
        trace.mapped(at + 1, seconds, ALIGNED, BAR.size)
        at += seconds + 2
    return trace


def profile_facts(**changes: Any) -> ProfileFacts:
    return parse_evidence(ProfileFacts, json.dumps({**FACTS, **changes}), "facts.json")


def profiled(trace: Trace, maps: str | None = None, xml: str = "", **facts: Any) -> Profile:
    if maps is None:
        maps = vma(ALIGNED, BAR) + vma(MISALIGNED - SMALL.size, SMALL)
    process = {"pid": QEMU, "threads": [QEMU, VCPU], "page_table_bytes": 2 * MIB, "maps": maps}
    files = FILES | {"trace.txt": trace.text()}
    return analyse_profile(profile_facts(**{"process": process, **facts}), files, xml)


def phases(profile: Profile) -> list[tuple[str, float]]:
    return [(p.name, round(p.start, 3)) for p in profile.timeline.phases]


def reasons(profile: Profile) -> list[str]:
    return [reason.name for level in profile.levels for reason in level.reasons]


def test_phases_are_told_by_who_maps_and_the_kernels_register() -> None:
    profile = profiled(booted())
    assert phases(profile) == [
        ("QEMU: to its first map", 0.0), ("QEMU: first map to last", 1.0),
        ("QEMU: after its last map", 1.5), ("firmware: to its first map", 2.0),
        ("firmware: first map to last", 4.0), ("firmware: after its last map", 7.0),
        ("kernel: to its first map", 9.0), ("kernel: first map to last", 10.5),
    ]  # fmt: skip
    assert profile.ended_by == "map"
    assert profile.timeline.boot_seconds == 25.0
    assert profile.timeline.attributed_share == pytest.approx(1.0)


def test_without_kvm_there_is_one_guest() -> None:
    trace = booted()
    trace.lines = [line for line in trace.lines if "kvm_msr" not in line]
    names = [name for name, _ in phases(profiled(trace))]
    assert names[3:] == ["guest: to its first map", "guest: first map to last"]


def test_a_firmwares_long_mode_is_no_kernel() -> None:
    early = booted().at(4.0, "kvm_msr", "msr_write c0000080 = 0x500")
    assert phases(profiled(early)) == phases(profiled(booted()))


def test_the_agent_or_the_last_line_ends_the_boot() -> None:
    by_line = profiled(booted().at(40.0, "kvm_pio", "pio_write at 0x3f8 size 1 count 1 val 0xa"))
    assert (by_line.ended_by, by_line.timeline.boot_seconds) == ("line", 39.0)
    by_agent = profiled(booted().mark(30.0, "agent"))
    assert (by_agent.ended_by, by_agent.timeline.boot_seconds) == ("agent", 29.0)
    assert phases(by_agent)[-1] == ("kernel: after its last map", 25.0)


def test_other_guests_are_left_out() -> None:
    trace = booted().exec(0.5, OTHER).mapped(6.0, 90.0, ALIGNED, BAR.size, OTHER)
    trace.at(0.7, "kvm_msr", "msr_write c0000080 = 0x501", OTHER)
    trace.at(9.0, "ioctl_in", "(f) cmd=0x3b71 q8=0x1 q16=0x2 q24=0x3", OTHER)  # has not returned
    assert profiled(trace).timeline == profiled(booted()).timeline


def test_a_map_belongs_to_what_is_at_its_address() -> None:
    ram_of_that_size = booted().mapped(9.0, 0.1, 0x560000000000, BAR.size, iova=7)
    steps = profiled(ram_of_that_size).timeline.steps
    assert [s.bar for s in steps if s.kind == "map"] == [
        RAM, BAR.name, RAM, BAR.name, BAR.name, BAR.name
    ]  # fmt: skip
    assert {s.bar for s in steps if s.kind == "unmap"} == {BAR.name}


def test_of_a_domain_that_has_ended_sizes_tell() -> None:
    facts = profile_facts(process=None, ended="domain-ended")
    profile = analyse_profile(facts, FILES | {"trace.txt": booted().text()})
    assert {s.bar for s in profile.timeline.steps} == {RAM, BAR.name}
    assert profile.levels == ()
    assert profile.timeline.boot_seconds == 25.0


def test_a_reboot_begins_with_the_first_zap_of_its_reset() -> None:
    trace = Trace().exec(1.0).zapped(50.0).zapped(98.0).unmapped(98.5, 0.5, BAR.size, iova=3)
    trace.mark(99.0, "reset").mapped(101.0, 1.0, ALIGNED, BAR.size)
    profile = profiled(trace, boot="reboot")
    assert profile.timeline.boot_seconds == pytest.approx(4.0)
    assert profile.timeline.steps[0].bar == BAR.name  # mapped before the trace: named by size
    assert phases(profile)[0][1] == 0.0


# why, and what would help -----------------------------------------------------------------------


def names(profile: Profile) -> list[str]:
    return [advice.name for advice in profile.advice]


def find(profile: Profile, name: str) -> Advice:
    return next(advice for advice in profile.advice if advice.name == name)


def remedies(profile: Profile) -> set[str]:
    return {remedy.name for advice in profile.advice for remedy in advice.remedies}


def test_large_leaves_that_are_looked_up_page_by_page() -> None:
    profile = profiled(booted())
    (level,) = profile.levels
    assert (level.place, level.leaf, level.stride) == (BAR.name, "1GiB", "4KiB")
    assert reasons(profile)[-1] == "no-series"
    assert "358" in numbers_in(level.reasons[0].text)
    series, unmaps = find(profile, "no-series"), find(profile, "unmaps")
    assert names(profile)[0] == "no-series"
    assert series.seconds == pytest.approx(12.0)
    leaf, many = series.remedies
    assert "v6.15" in leaf.text
    assert leaf.seconds == pytest.approx(12.0)
    assert many.seconds == pytest.approx(10.5 * 2 / 3)
    assert "3" in numbers_in(many.text)
    assert unmaps.seconds == pytest.approx(1.5)


def test_a_parameter_that_forbids_large_steps_is_no_missing_series() -> None:
    disabled = FACTS["settings"] | {"vfio_disable_hugepages": "Y"}
    found = profiled(booted(), settings=disabled)
    assert names(found)[0] == "disable-hugepages"
    assert "no-series" not in reasons(found)
    assert "disable_hugepages out of" in found.advice[0].help
    fast = profiled(booted(seconds=0.0005), settings=disabled)
    assert reasons(fast) == []


def test_causes_that_one_bar_has_need_each_others_remedy() -> None:
    off = 0x7F0000001000
    trace = booted()
    trace.lines = [line.replace(f"{ALIGNED:#x}", f"{off:#x}") for line in trace.lines]
    found = profiled(trace, vma(off, BAR), qemu="8.2.2", huge_fault=False)
    first = found.advice[0].remedies[0]
    assert first.name == "no-huge-pfnmap+qemu-unaligned"
    assert first.text.startswith("both are needed: ")
    assert first.seconds == pytest.approx(12.0)


def test_maps_of_a_qemu_that_has_ended_are_slow_by_their_pages() -> None:
    facts = profile_facts(process=None, ended="domain-ended")
    found = analyse_profile(facts, FILES | {"trace.txt": booted().text()})
    assert found.levels == ()
    assert found.advice[0].name == "no-series"
    assert "358 ns for each page" in found.advice[0].problem
    quick = analyse_profile(facts, FILES | {"trace.txt": booted(seconds=0.0005).text()})
    assert "no-series" not in names(quick)


def test_a_policy_that_forbids_huge_pages_is_why_maps_are_slow() -> None:
    profile = profiled(booted(), settings=NEVER)
    assert "thp-sysfs" in names(profile)
    assert "no-series" not in names(profile)
    assert profile.levels[-1].leaf == "4KiB"


def test_a_policy_that_a_kernel_does_not_apply_is_no_reason() -> None:
    profile = profiled(booted(seconds=0.0005), settings=NEVER)
    assert profile.levels[-1].best
    assert "thp-sysfs" not in names(profile)


def test_qemu_that_does_not_align_is_named() -> None:
    off = 0x7F0000001000
    trace = booted()
    trace.lines = [line.replace(f"{ALIGNED:#x}", f"{off:#x}") for line in trace.lines]
    profile = profiled(trace, vma(off, BAR), qemu="8.2.2")
    assert reasons(profile) == ["misaligned", "qemu-unaligned"]
    assert profile.levels[0].leaf == "4KiB"
    assert profile.advice[0].name == "qemu-unaligned"
    assert "QEMU 8.2.2 " in profile.advice[0].problem
    assert profile.advice[0].seconds == pytest.approx(12.0)


def test_a_kernel_before_huge_pfnmaps_is_named() -> None:
    profile = profiled(booted(), huge_fault=False)
    assert profile.levels[-1].leaf == "4KiB"
    assert profile.advice[0].name == "no-huge-pfnmap"


def test_every_second_of_a_boot_has_a_name() -> None:
    quick = booted(maps=2, seconds=0.0005)
    quick.lines = [line for line in quick.lines if "0x3b72" not in line and "0x55" not in line]
    for trace in (quick, booted(), booted(maps=40, seconds=4.4)):
        found = profiled(trace)
        costs = [advice.seconds for advice in found.advice if not advice.is_wrong]
        assert costs == sorted(costs, reverse=True)
        assert sum(costs) + found.unexplained == pytest.approx(found.whole_seconds)
        assert found.unexplained <= 0.05 * found.whole_seconds


@pytest.mark.parametrize(
    ("result", "name", "helps"),
    [
        (-28, "dma-entry-limit", "dma_entry_limit"),
        (-12, "memlock", "hard_limit"),
        (-22, "address-bits", "maxphysaddr"),
        (-5, "map-refused", NO_REMEDY),
    ],
)
def test_refused_maps_come_first(result: int, name: str, helps: str) -> None:
    refused = booted().mapped(30.0, 0.01, ALIGNED, BAR.size, result=result)
    first = profiled(refused, xml="<domain><cpu mode='host-passthrough'/></domain>").advice[0]
    assert first.name == name
    assert helps in first.help


def test_bars_that_are_never_mapped_are_said() -> None:
    only_ram = Trace().exec(1.0).mapped(2.0, 0.5, 0x550000000000, 2 * GIB, QEMU)
    profile = profiled(only_ram, "")
    assert profile.advice[0].name == "not-mapped"
    assert BAR.name in profile.advice[0].problem


@pytest.mark.parametrize(
    ("policy", "hugetlb", "is_told"),
    [
        ("always madvise [never]", False, True),
        ("always madvise [never]", True, False),
        ("always [madvise] never", False, False),  # QEMU advises it
        ("[always] madvise never", False, False),
        ("", False, False),
    ],
)
def test_guest_memory_is_in_small_pages_only_where_the_policy_is_never(
    policy: str, hugetlb: bool, is_told: bool
) -> None:
    settings = FACTS["settings"] | {"transparent_hugepage": policy}
    profile = profiled(booted(), huge_pages=hugetlb, settings=settings)
    assert ("guest-memory" in remedies(profile)) == is_told
    assert "ram-pinning" in names(profile)


def test_a_good_clock_needs_no_advice() -> None:
    assert "clock-source" not in names(profiled(booted()))
    slow = profiled(booted(), settings=FACTS["settings"] | {"clocksource": "hpet"})
    assert slow.advice[0].name == "clock-source"


# evidence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("trace.txt", Trace().mapped(2.0, 1.0, ALIGNED, GIB).text(), "no-exec"),
        ("trace.txt", Trace().exec(1.0).text(), "no-maps"),
        ("trace.txt", "nonsense", "bad-trace"),
        ("stats.txt", "cpu0\noverrun: 3\n", "lost-events"),
        ("profile.txt", "ioctl_out 9 1\n", "missed-probes"),
        ("clock.txt", "[local] mono\n", "wrong-clock"),
    ],
)
def test_a_trace_that_is_not_whole_is_refused(file: str, text: str, reason: str) -> None:
    process = {"pid": QEMU, "threads": [QEMU, VCPU], "page_table_bytes": None, "maps": ""}
    files = FILES | {"trace.txt": booted().text(), file: text}
    with pytest.raises(EvidenceError) as caught:
        analyse_profile(profile_facts(process=process), files)
    assert caught.value.reason == reason


# /proc/PID/maps ---------------------------------------------------------------------------------


def test_the_largest_mapping_of_a_bar_counts() -> None:
    split = vma(0x1000, BAR, 4096) + vma(ALIGNED, BAR, GIB, inside=GIB) + vma(0, SMALL)
    assert find_mappings(split, [SMALL, BAR]) == {
        SMALL: Mapping(0, SMALL.start, SMALL.size),
        BAR: Mapping(ALIGNED, BAR.start + GIB, GIB),
    }


def test_devices_that_are_alike_have_a_mapping_each() -> None:
    twin = BAR.model_copy(update={"device": "0000:5e:00.0", "start": 0x390000000000})
    mappings = find_mappings(vma(ALIGNED, BAR) + vma(MISALIGNED, BAR), [BAR, twin])
    assert {bar.device: m.address for bar, m in mappings.items()} == {
        BAR.device: ALIGNED, twin.device: MISALIGNED
    }  # fmt: skip


def test_older_kernels_show_the_physical_address() -> None:
    twin = BAR.model_copy(update={"device": "0000:5e:00.0", "start": 0x390000000000})
    maps = f"{ALIGNED:x}-{ALIGNED + twin.size:x} rw-s {twin.start:x} 00:0e 1 [vfio-device]\n"
    assert find_mappings(maps, [SMALL, BAR, twin]) == {
        twin: Mapping(ALIGNED, twin.start, twin.size)
    }


def test_other_regions_of_a_device_are_no_bars() -> None:
    config = vma(0x1000, BAR, 4096).replace(f"{BAR.number << 40:08x}", f"{7 << 40:08x}")
    assert find_mappings(config, [SMALL, BAR]) == {}


@given(st.text())
def test_no_text_of_a_process_breaks_it(text: str) -> None:
    for bar, mapping in find_mappings(text + vma(ALIGNED, BAR) + text, [SMALL, BAR]).items():
        assert 0 < mapping.size <= bar.size
