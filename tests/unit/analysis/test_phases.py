from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.analysis.boot.phases import BootEvents, find_phases
from orchestrator.analysis.boot.qemu import ConfigWrite, QemuEvent
from orchestrator.analysis.boot.timeline import Phase
from tests.unit.analysis.boots import MAIN, VCPU, recorded_timeline

EFER, KVM_CLOCK = 0xC0000080, 0x4B564D01
DEVICE, BRIDGE = "01:00.0", "00:01.0"
FIRMWARE = [(2.10, 0x19, 1), (2.20, 0x10, 0xFFFFFFFF), (2.30, 0x18, 0x80000000)]
KERNEL = [(5.11, 0x4, 0x100), (5.12, 0x10, 0xFFFFFFFF), (5.13, 0x10, 0), (5.14, 0x4, 0x103)]
LINES = [
    (4.0, "[    0.000000] Linux version 6.12.107 (debian-kernel@lists.debian.org)"),
    (4.5, "[    0.100000] ACPI: PCI Interrupt Link [LNKA] configured"),
    (5.0, "[    1.000000] PCI host bridge to bus 0000:00"),
    (5.1, "[    1.100000] pci 0000:01:00.0: [1af4:1110] type 00 class 0x050000 endpoint"),
    (5.2, "[    1.200000] pci 0000:01:00.0: BAR 2 [mem 0x3fff80000000-0x3fffbfffffff 64bit pref]"),
    (5.5, "[    1.500000] iommu: Default domain type: Translated"),
    (6.0, "[    2.000000] pci 0000:00:01.0: bridge window [mem 0x80000000-0x801fffff]: assigned"),
    (6.1, "[    2.100000] pci_bus 0000:01: resource 1 [mem 0x80000000-0x801fffff]"),
    (6.5, "[    2.500000] NET: Registered PF_INET protocol family"),
    (7.0, "[    3.000000] Run /init as init process"),
    (8.0, "barometer: boot mark, uptime 4.00"),
]
BOOT = BootEvents(
    exec=0.0,
    qemu=[
        QemuEvent("qemu_anon_ram_alloc", "", MAIN, 0.0, 0.5),
        QemuEvent("vfio_attach_device", "", MAIN, 0.0, 0.6),
        QemuEvent("vm_state_notify", "running 1 reason 9 (running)", MAIN, 0.0, 2.0),
        QemuEvent("qemu_system_shutdown_request", "reason=6", VCPU, 0.0, 9.0),
    ],
    writes=[
        *[ConfigWrite("vfio-pci", DEVICE, offset, value, VCPU, at)
          for at, offset, value in FIRMWARE + KERNEL],
    ],
    ends={2.30: 2.40, 5.14: 5.16}, operation_ends=[1.2, 2.40, 5.16], console=LINES,
    msrs=[(3.0, VCPU, EFER, 0x100), (3.1, VCPU, EFER, 0xD01), (3.2, VCPU, KVM_CLOCK, 1)],
    mark=8.0, ssh=8.5, exit=9.5,
)  # fmt: skip
PHASES = [
    (0.0, "QEMU start"), (0.5, "machine init"), (1.2, "QEMU waits to be started"),
    (2.0, "firmware: entry"), (2.1, "firmware: PCI enumeration"), (2.4, "firmware: hand-over"),
    (3.0, "kernel: entry"), (4.0, "kernel: init"), (5.0, "kernel: PCI enumeration, bus 0000:00"),
    (5.1, "kernel: PCI enumeration, 01:00.0"), (5.11, "kernel: BAR sizing, 01:00.0"),
    (5.16, "kernel: PCI enumeration, 01:00.0"), (5.5, "kernel: init"),
    (6.0, "kernel: PCI resources"), (6.5, "kernel: init"), (7.0, "userspace"),
    (8.0, "userspace: to SSH"), (8.5, "guest is up"), (9.0, "shutdown"),
]  # fmt: skip


def starts(boot: BootEvents) -> list[tuple[float, str]]:
    return [(phase.start, phase.name) for phase in find_phases(boot)]


def names(boot: BootEvents) -> list[str]:
    return [phase.name for phase in find_phases(boot)]


def follow_one_another(phases: list[Phase]) -> bool:
    return all(abs(earlier.end - later.start) < 1e-8 for earlier, later in pairwise(phases))


def test_boot_has_its_phases() -> None:
    assert starts(BOOT) == PHASES


@pytest.mark.parametrize(
    ("device", "end", "hand_over"),
    [
        ("vfio-pci", 2.7, 2.7),  # decoding goes on, and the BAR is mapped
        ("vfio-pci", None, 2.4),  # sets bus mastering, for example, which maps nothing
        ("mch", 2.7, 2.4),  # RAM is shadowed
    ],
)
def test_firmware_enumerates_until_its_last_write_that_maps_or_unmaps_a_bar(
    device: str, end: float | None, hand_over: float
) -> None:
    write = ConfigWrite(device, DEVICE, 0x4, 0x103, VCPU, 2.6)
    writes = sorted([*BOOT.writes, write], key=lambda w: w.time)
    ends = {**BOOT.ends} if end is None else {**BOOT.ends, 2.6: end}
    phase_starts = starts(replace(BOOT, writes=writes, ends=ends))
    assert (hand_over, "firmware: hand-over") in phase_starts
    assert [name for _, name in phase_starts].count("firmware: PCI enumeration") == 1


def test_phases_have_no_gaps_from_the_exec_to_the_end() -> None:
    phases = find_phases(BOOT)
    assert follow_one_another(phases)
    assert (phases[0].start, phases[-1].end) == (0.0, 9.5)


def test_recorded_boot_has_its_phases() -> None:
    assert [phase.name for phase in recorded_timeline().phases] == [
        "QEMU start", "machine init", "QEMU waits to be started",
        "firmware: entry", "firmware: PCI enumeration", "firmware: hand-over",
        "kernel: entry", "kernel: init", "kernel: PCI enumeration, bus 0000:00",
        "kernel: PCI enumeration, 00:00.0",
        *[f"kernel: {part}, {device}"
          for device in ("00:01.0", "00:1d.0", "00:1f.0", "00:1f.2", "00:1f.3", "01:00.0")
          for part in ("PCI enumeration", "BAR sizing", "PCI enumeration")],
        "kernel: init", "kernel: PCI resources", "kernel: init",
        "userspace", "userspace: to SSH", "guest is up", "shutdown",
    ]  # fmt: skip


def test_recorded_boot_is_in_phases_altogether() -> None:
    timeline = recorded_timeline()
    assert follow_one_another([*timeline.phases])
    assert timeline.phases[0].start == 0
    assert timeline.phases[-1].end == pytest.approx(timeline.end_seconds)
    assert timeline.attributed_share == pytest.approx(1.0)


def test_every_map_of_the_recorded_boot_is_in_a_phase_that_exists() -> None:
    timeline = recorded_timeline()
    known = {phase.name for phase in timeline.phases}
    assert {step.phase for step in timeline.steps} <= known
    assert {zap.phase for zap in timeline.zaps} <= known
    for step in timeline.steps:
        [phase] = [p for p in timeline.phases if p.start <= step.start < p.end]
        assert phase.name == step.phase


def test_maps_of_the_recorded_kernel_are_where_they_are_made() -> None:
    steps = [s for s in recorded_timeline().steps if s.bar == "01:00.0 BAR 2" and s.kind == "map"]
    assert [s.phase for s in steps] == [
        "firmware: PCI enumeration", *["kernel: BAR sizing, 00:01.0"] * 4,
        *["kernel: BAR sizing, 01:00.0"] * 6, "kernel: PCI resources",
    ]  # fmt: skip


def test_guest_without_kvm_has_no_entry_of_its_kernel() -> None:
    phase_starts = starts(replace(BOOT, msrs=[]))
    assert phase_starts == [start for start in PHASES if start[1] != "kernel: entry"]


def test_clock_of_kvm_is_no_entry() -> None:
    assert "kernel: entry" not in names(replace(BOOT, msrs=[(3.2, VCPU, KVM_CLOCK, 1)]))


def test_other_cpus_do_not_enter_the_kernel() -> None:
    boot = replace(BOOT, msrs=[(2.9, VCPU + 1, EFER, 0x100), *BOOT.msrs])
    assert (3.0, "kernel: entry") in starts(boot)


def test_firmware_may_enter_long_mode_before_it_enumerates() -> None:
    """OVMF does, and its write to EFER is not the kernel's entry."""
    ovmf = [(2.01, VCPU, EFER, 0x500), (2.02, VCPU, EFER, 0x901)]
    assert starts(replace(BOOT, msrs=ovmf + BOOT.msrs)) == PHASES  # type: ignore[operator]
    without = [start for start in PHASES if start[1] != "kernel: entry"]
    assert starts(replace(BOOT, msrs=ovmf)) == without


def test_boot_loader_begins_with_its_first_line() -> None:
    for line in ("GNU GRUB  version 2.12", "  Booting `Debian GNU/Linux'", "Loading Linux 6.12"):
        boot = replace(BOOT, console=[(2.5, "SeaBIOS"), (2.6, line), (2.7, line), *LINES])
        assert starts(boot) == sorted([*PHASES, (2.6, "boot loader")])


def test_lines_of_the_kernel_are_no_boot_loader() -> None:
    lines = [*LINES[:1], (4.1, "[    0.0] Command line: BOOT_IMAGE=GRUB"), *LINES[1:]]
    assert starts(replace(BOOT, console=lines)) == PHASES


def test_boot_without_a_line_of_the_kernel_goes_from_hand_over_to_userspace() -> None:
    firmware = [w for w in BOOT.writes if w.time < 3]
    boot = replace(BOOT, console=LINES[-1:], writes=firmware)
    assert names(boot) == [
        "QEMU start", "machine init", "QEMU waits to be started", "firmware: entry",
        "firmware: PCI enumeration", "firmware: hand-over", "kernel: entry", "userspace: to SSH",
        "guest is up", "shutdown",
    ]  # fmt: skip
    assert follow_one_another(find_phases(boot))


def test_quiet_kernel_sizes_no_bars_in_the_firmwares_name() -> None:
    boot = replace(BOOT, console=LINES[-1:])
    assert (3.0, "kernel: entry") in starts(boot)
    [firmware] = [p for p in find_phases(boot) if p.name == "firmware: PCI enumeration"]
    assert firmware.end < 3.0


def test_lines_without_times_have_no_phases_of_pci() -> None:
    plain = [(at, line.partition("] ")[2] or line) for at, line in LINES]
    assert names(replace(BOOT, console=plain))[6:9] == [
        "kernel: entry", "kernel: init", "userspace: to SSH",
    ]  # fmt: skip


def test_device_that_is_not_written_to_is_enumerated_only() -> None:
    assert "kernel: BAR sizing, 01:00.0" not in names(replace(BOOT, writes=BOOT.writes[:3]))


def test_command_register_alone_is_no_sizing() -> None:
    writes = [w for w in BOOT.writes if w.time < 5 or w.offset == 4]
    assert "kernel: BAR sizing, 01:00.0" not in names(replace(BOOT, writes=writes))


def test_sizing_is_that_of_the_device_whose_line_came_last() -> None:
    """If a kernel still sizes after the next device's line, the time belongs to that next
    device."""
    late = ConfigWrite("vfio-pci", DEVICE, 0x30, 0xFFFFF800, VCPU, 5.7)
    assert starts(replace(BOOT, writes=[*BOOT.writes, late])) == PHASES


def test_boot_whose_ssh_server_never_spoke_has_no_end_of_its_boot() -> None:
    boot = replace(BOOT, ssh=None)
    assert starts(boot) == [start for start in PHASES if start[1] != "guest is up"]
    assert follow_one_another(find_phases(boot))


def test_boot_that_was_never_started_has_no_firmware() -> None:
    events = [e for e in BOOT.qemu if e.name != "vm_state_notify"]
    assert not [name for name in names(replace(BOOT, qemu=events)) if "firmware" in name]


def test_boot_without_events_of_qemu_still_has_its_kernel() -> None:
    assert starts(replace(BOOT, qemu=[], writes=[], msrs=[]))[:3] == [
        (0.0, "QEMU start"), (4.0, "kernel: init"), (5.0, "kernel: PCI enumeration, bus 0000:00"),
    ]  # fmt: skip


TIMES = st.floats(0.0, 9.0).map(lambda at: round(at, 6))


@st.composite
def boots(draw: st.DrawFn) -> BootEvents:
    """Generate any events in any order."""
    events = st.builds(
        QemuEvent, st.sampled_from([e.name for e in BOOT.qemu]), st.just(""), st.just(MAIN),
        st.just(0.0), TIMES,
    )  # fmt: skip
    writes = st.builds(
        ConfigWrite, st.sampled_from(["vfio-pci", "mch"]), st.sampled_from([DEVICE, BRIDGE]),
        st.sampled_from([0x4, 0x10, 0x19, 0x30, 0x90]), st.just(0), st.just(VCPU), TIMES,
    )  # fmt: skip
    lines = st.tuples(TIMES, st.sampled_from([line for _, line in LINES]))
    drawn = sorted(draw(st.lists(writes, max_size=12)), key=lambda w: w.time)
    console = sorted(draw(st.lists(lines, max_size=12)), key=lambda line: line[0])
    for number, (at, line) in enumerate(console):
        if line == LINES[0][1]:  # the kernel enumerates something
            console[number + 1 : number + 1] = [(at, line) for _, line in LINES[2:4]]
            break
    return BootEvents(
        exec=0.0, qemu=sorted(draw(st.lists(events, max_size=6)), key=lambda e: e.time),
        writes=drawn,
        ends={w.time: round(w.time + draw(st.floats(0, 0.5)), 6) for w in drawn},
        operation_ends=draw(st.lists(TIMES, max_size=4)),
        console=console,
        msrs=draw(st.lists(st.tuples(TIMES, st.just(VCPU), st.just(EFER), st.just(0)))),
        mark=draw(TIMES), ssh=draw(st.none() | TIMES), exit=draw(TIMES),
    )  # fmt: skip


@settings(deadline=None)
@given(boots())
def test_phases_of_any_boot_follow_one_another(boot: BootEvents) -> None:
    phases = find_phases(boot)
    assert follow_one_another(phases)
    assert all(phase.seconds > 0 and phase.name for phase in phases)
    if phases:
        assert phases[0].start == 0.0
        assert phases[-1].end >= boot.exit - 1e-8
