"""The specifications, checked against the grammar of kprobe_events
(Documentation/trace/kprobetrace.rst) and against what the analysis reads."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats import abi
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing import probes
from orchestrator.machine.tracing.armer import ProbeSpec
from orchestrator.machine.tracing.probes import (
    FAULT,
    FAULT_BEFORE,
    MARKER,
    UNTIL_KERNEL,
    armed_tracer,
)
from tests.unit.hosts import Recorded
from tests.unit.manifests import facts_of


def as_object(spec: ProbeSpec) -> dict[str, Any]:
    """Return a specification as a JSON object."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return found


def timing_spec(*arguments: Any, **more: Any) -> dict[str, Any]:
    return as_object(probes.timing_spec(*arguments, **more))


def counts_spec(*arguments: Any, **more: Any) -> dict[str, Any]:
    return as_object(probes.counts_spec(*arguments, **more))


SPECS = {
    "timing-32GiB": timing_spec([32 * GIB]),
    "timing-256MiB": timing_spec([256 * MIB]),
    "boot": timing_spec([32 * GIB], boot=True),
    "boot-kvm": timing_spec([32 * GIB], boot=True, kvm=True),
    "boot-kvm-faults": timing_spec([32 * GIB], boot=True, kvm=True, faults=True),
    "counts": counts_spec([FAULT]),
    "counts-before-huge-fault": counts_spec([FAULT_BEFORE]),
}
DEFINITION = re.compile(
    r"(?P<kind>[pr]):(?P<event>\w+/\w+) (?:(?P<module>\w+):)?(?P<symbol>\w+)(?P<args>( \S+=\S+)*)"
)
ARGUMENT = re.compile(r"(?P<name>\w+)=(\$arg\d|\$retval|\+u?\d+\(\$arg\d\)):([xsu])(8|16|32|64)")
STATIC = {
    "iommu/map": {"iova", "paddr", "size"},
    "iommu/unmap": {"iova", "size", "unmapped_size"},
    "sched/sched_process_exec": {"filename", "pid", "old_pid"},
    "kvm/kvm_pio": {"rw", "port", "size", "count", "val"},
    "kvm/kvm_msr": {"write", "ecx", "data", "exc"},
}


def defined(spec: dict[str, Any]) -> dict[str, re.Match[str]]:
    """Return event -> its parsed definition."""
    matches = [DEFINITION.fullmatch(line) for line in spec["definitions"]]
    assert all(matches)
    return {match["event"]: match for match in matches if match}


def values(match: re.Match[str]) -> set[str]:
    return {argument.split("=")[0] for argument in match["args"].split()}


@pytest.fixture(params=sorted(SPECS))
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SPECS[request.param]


def test_every_definition_is_well_formed_and_named_once(spec: dict[str, Any]) -> None:
    events = defined(spec)
    assert len(events) == len(spec["definitions"])
    for match in events.values():
        assert all(ARGUMENT.fullmatch(argument) for argument in match["args"].split())


def test_every_event_is_in_the_group_that_is_cleared(spec: dict[str, Any]) -> None:
    assert {event.split("/")[0] for event in defined(spec)} == {spec["group"]}


def test_every_enabled_event_is_defined(spec: dict[str, Any]) -> None:
    for event in spec["enable"]:
        assert event in defined(spec) or event in STATIC
    assert len(set(spec["enable"])) == len(spec["enable"])


def test_every_defined_event_is_enabled_or_triggered(spec: dict[str, Any]) -> None:
    assert set(defined(spec)) <= {*spec["enable"], *spec["triggers"]}


def test_every_filter_and_trigger_uses_values_that_the_event_has(spec: dict[str, Any]) -> None:
    for event, text in spec["filters"].items():
        has = STATIC[event] if event in STATIC else values(defined(spec)[event])
        assert set(re.findall(r"(\w+) (?:==|>=|~)", text)) <= has, event
    for event, text in spec["triggers"].items():
        keys = text.removeprefix("hist:keys=").split(",")
        has = values(defined(spec)[event]) | {"common_pid"}
        assert {key.removesuffix(".hex") for key in keys} <= has, event


def test_every_probed_symbol_is_looked_for_before(spec: dict[str, Any]) -> None:
    assert {match["symbol"] for match in defined(spec).values()} == set(spec["symbols"])


def test_return_value_is_only_asked_for_at_the_return(spec: dict[str, Any]) -> None:
    for match in defined(spec).values():
        assert match["kind"] == "r" or "$retval" not in match["args"]


def test_entries_and_returns_are_pairs_on_one_function() -> None:
    events = defined(SPECS["timing-32GiB"])
    for event, match in events.items():
        if event.endswith("_in"):
            other = events[event.removesuffix("_in") + "_out"]
            assert (match["kind"], other["kind"]) == ("p", "r")
            assert match["symbol"] == other["symbol"]


def test_timing_has_what_the_analysis_reads() -> None:
    events = {e.split("/")[1]: values(m) for e, m in defined(SPECS["timing-32GiB"]).items()}
    assert {"cmd", "q8", "q16", "q24"} <= events["ioctl_in"]
    assert {"cmd", "ret"} <= events["ioctl_out"]
    assert {"iova", "size"} <= events["unmap_in"]
    assert "ret" in events["pin_out"]
    assert {"imap_in", "imap_out", "iun_in", "iun_out", "unpin_in", "unpin_out"} <= set(events)


def test_counts_have_what_the_analysis_reads() -> None:
    assert {e.split("/")[1] for e in SPECS["counts"]["triggers"]} == {
        "lookup", "fault", "pin", "iova_walk",
    }  # fmt: skip
    assert SPECS["counts"]["enable"] == []


@pytest.mark.parametrize(
    ("present", "handler", "keys"),
    [
        ([FAULT, FAULT_BEFORE], FAULT, "order,ret.hex"),
        ([FAULT], FAULT, "order,ret.hex"),
        ([FAULT_BEFORE], FAULT_BEFORE, "ret.hex"),
        # neither: the kernel's error then names today's handler
        ([], FAULT, "order,ret.hex"),
    ],
)
def test_faults_are_counted_by_the_handler_that_the_kernel_has(
    present: list[str], handler: str, keys: str
) -> None:
    spec = counts_spec(present)
    [line] = [line for line in spec["definitions"] if ":barocount/fault " in line]
    assert f"vfio_pci_core:{handler} " in line
    # only the handler of huge faults has an order as argument
    assert ("order=$arg2:u32" in line) == (handler == FAULT)
    assert spec["triggers"]["barocount/fault"] == f"hist:keys={keys}"
    assert handler in spec["symbols"]
    assert not {FAULT, FAULT_BEFORE} - {handler} & set(spec["symbols"])


@pytest.mark.parametrize("bar", [32 * GIB, GIB, 256 * MIB])
def test_filters_let_the_bar_through_and_keep_pages_out(bar: int) -> None:
    filters = timing_spec([bar])["filters"]
    for side in ("in", "out"):
        assert filters[f"barotime/imap_{side}"] == f"size == {bar:#x}"
        assert filters[f"barotime/iun_{side}"] == f"size == {bar:#x}"
        assert filters[f"barotime/pin_{side}"] == f"npage == {bar // 4096}"
        assert filters[f"barotime/unpin_{side}"] == f"npage == {bar // 4096}"
    assert filters["iommu/map"] == filters["iommu/unmap"] == f"size == {bar:#x}"


def test_filters_take_bars_of_several_sizes() -> None:
    filters = timing_spec([GIB, 32 * GIB])["filters"]
    assert filters["barotime/imap_in"] == f"size == {GIB:#x} || size == {32 * GIB:#x}"
    assert filters["barotime/unpin_out"] == "npage == 262144 || npage == 8388608"
    assert filters["iommu/map"] == filters["barotime/imap_in"]


def test_an_emulator_an_instance_and_a_group_can_be_others() -> None:
    usual = timing_spec([GIB], boot=True)
    spec = timing_spec([GIB], boot=True, emulator="/q", instance="mine", group="ours")
    assert spec["instance"] == "mine"
    assert spec["filters"]["sched/sched_process_exec"] == 'filename ~ "/q"'
    assert [line.replace("ours/", "barotime/") for line in spec["definitions"]] == usual[
        "definitions"
    ]
    assert {event for event in spec["enable"] if event.startswith("baro")} == set()


def test_ioctls_of_every_size_are_recorded() -> None:
    filters = timing_spec([GIB])["filters"]
    assert filters["barotime/ioctl_in"] == "cmd == 0x3b71 || cmd == 0x3b72"
    assert filters["barotime/ioctl_out"] == filters["barotime/ioctl_in"]
    assert not {"barotime/unmap_in", "barotime/unmap_out"} & set(filters)


def test_probes_of_a_map_and_an_unmap_are_these() -> None:
    assert timing_spec([32 * GIB])["definitions"] == [
        "p:barotime/ioctl_in vfio_iommu_type1:vfio_iommu_type1_ioctl cmd=$arg2:x32"
        " q8=+u8($arg3):x64 q16=+u16($arg3):x64 q24=+u24($arg3):x64",
        "r:barotime/ioctl_out vfio_iommu_type1:vfio_iommu_type1_ioctl cmd=$arg2:x32"
        " q8=+u8($arg3):x64 q16=+u16($arg3):x64 ret=$retval:s64",
        "p:barotime/pin_in vfio_iommu_type1:vfio_pin_pages_remote vaddr=$arg2:x64 npage=$arg3:s64",
        "r:barotime/pin_out vfio_iommu_type1:vfio_pin_pages_remote npage=$arg3:s64"
        " ret=$retval:s64",
        "p:barotime/imap_in iommu_map iova=$arg2:x64 paddr=$arg3:x64 size=$arg4:x64",
        "r:barotime/imap_out iommu_map iova=$arg2:x64 size=$arg4:x64 ret=$retval:s32",
        "p:barotime/unmap_in vfio_iommu_type1:vfio_unmap_unpin iova=+24($arg2):x64"
        " size=+40($arg2):x64",
        "r:barotime/unmap_out vfio_iommu_type1:vfio_unmap_unpin ret=$retval:s64",
        "p:barotime/iun_in iommu_unmap_fast iova=$arg2:x64 size=$arg3:x64",
        "r:barotime/iun_out iommu_unmap_fast iova=$arg2:x64 size=$arg3:x64 ret=$retval:x64",
        "p:barotime/unpin_in vfio_iommu_type1:vfio_unpin_pages_remote iova=$arg2:x64"
        " npage=$arg4:s64",
        "r:barotime/unpin_out vfio_iommu_type1:vfio_unpin_pages_remote iova=$arg2:x64"
        " npage=$arg4:s64 ret=$retval:s64",
        "p:barotime/zap_in vfio_pci_core:vfio_pci_zap_and_down_write_memory_lock",
        "r:barotime/zap_out vfio_pci_core:vfio_pci_zap_and_down_write_memory_lock",
    ]


def added(spec: dict[str, Any], to: dict[str, Any]) -> dict[str, Any]:
    """Return what one specification has in addition to another."""
    more: dict[str, Any] = {
        key: [item for item in spec[key] if item not in to[key]]
        for key in ("symbols", "definitions", "enable")
    }
    more["filters"] = dict(spec["filters"].items() - to["filters"].items())
    return more


def test_boot_has_the_exec_of_its_qemu() -> None:
    assert added(timing_spec([GIB], boot=True), timing_spec([GIB])) == {
        "symbols": [], "definitions": [], "enable": ["sched/sched_process_exec"],
        "filters": {"sched/sched_process_exec": 'filename ~ "*qemu-system*"'},
    }  # fmt: skip


def test_boot_under_kvm_has_line_feeds_and_two_registers() -> None:
    assert added(timing_spec([GIB], boot=True, kvm=True), timing_spec([GIB], boot=True)) == {
        "symbols": [], "definitions": [], "enable": ["kvm/kvm_pio", "kvm/kvm_msr"],
        "filters": {
            "kvm/kvm_pio": "port == 0x3f8 && val == 10",
            "kvm/kvm_msr": "write == 1 && (ecx == 0xc0000080 || ecx == 0x4b564d01)",
        },
    }  # fmt: skip


def test_kvm_says_nothing_of_what_is_no_boot() -> None:
    assert timing_spec([GIB], kvm=True) == timing_spec([GIB])


def test_faults_are_probed_where_they_are_asked_for() -> None:
    assert added(timing_spec([GIB], faults=True), timing_spec([GIB])) == {
        "symbols": ["fixup_user_fault", "vfio_pci_mmap_huge_fault"],
        "definitions": [
            "p:barotime/fault_in fixup_user_fault address=$arg2:x64",
            "r:barotime/fault_out fixup_user_fault address=$arg2:x64 ret=$retval:s32",
            "r:barotime/leaf vfio_pci_core:vfio_pci_mmap_huge_fault order=$arg2:u32"
            " addr=+24($arg1):x64 ret=$retval:x32",
        ],
        "enable": ["barotime/fault_in", "barotime/fault_out", "barotime/leaf"],
        "filters": {"barotime/leaf": "order == 18"},
    }  # fmt: skip


def test_every_probe_that_fires_for_each_leaf_can_be_switched_off_again() -> None:
    with_them = set(timing_spec([GIB], faults=True)["enable"])
    folder = "/sys/kernel/tracing/instances/barometer"
    for_leaves = with_them - set(timing_spec([GIB])["enable"])
    assert set(UNTIL_KERNEL) == {f"{folder}/events/{event}/enable" for event in for_leaves}
    assert f"{folder}/trace_marker" == MARKER


def test_ioctls_have_the_numbers_of_the_header() -> None:
    # _IO(';', 100 + 13) and _IO(';', 100 + 14) of include/uapi/linux/vfio.h
    assert [code - (ord(";") << 8) for code in (abi.MAP_DMA, abi.UNMAP_DMA)] == [113, 114]


def test_clock_is_the_one_of_the_watch_agent(spec: dict[str, Any]) -> None:
    assert spec["clock"] == "mono"


def test_clock_of_the_timing_pass_may_be_another() -> None:
    other = timing_spec([GIB], "x86-tsc")
    assert other["clock"] == "x86-tsc"
    assert {**other, "clock": "mono"} == timing_spec([GIB])


class FakeArmer:
    """An armer whose kernel has every function, and its trace."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.specs: list[dict[str, Any]] = []
        self.refusal: BenchError | None = None
        self.unread: BenchError | None = None

    @contextlib.contextmanager
    def armed(self, shell: object, spec: ProbeSpec) -> Iterator[FakeArmer]:
        assert shell == "its shell"
        if self.refusal:
            raise self.refusal
        self.specs.append(as_object(spec))
        self.log.append(f"arm {spec.instance} {spec.group}")
        try:
            yield self
        finally:
            self.log.append("clear")

    def files(self) -> dict[str, str]:
        if self.unread:
            raise self.unread
        self.log.append("files")
        names = ("trace.txt", "clock.txt", "stats.txt", "profile.txt", "hist-pin.txt")
        return {name: name[0] for name in names}


@pytest.fixture
def armer(monkeypatch: pytest.MonkeyPatch) -> FakeArmer:
    made = FakeArmer([])
    monkeypatch.setattr(probes, "armed_probes", made.armed)
    monkeypatch.setattr(probes, "find_functions", lambda _shell, names: [*names])
    return made


def host_of(armer: FakeArmer, accel: str, kvm: bool = False) -> Host:
    return cast(Host, SimpleNamespace(
        shell="its shell", accel=accel, kvm=kvm, release="7.3", change=Recorded(armer.log),
    ))  # fmt: skip


@pytest.fixture
def trial(tmp_path: Path) -> TrialWriter:
    return TrialWriter(tmp_path / "0001-baseline", facts_of())


@pytest.mark.parametrize(
    ("accel", "clock"), [("exact", "x86-tsc"), ("tcg", "mono"), ("kvm", "mono")]
)
def test_exact_host_is_timed_by_the_clock_that_counts_instructions(
    trial: TrialWriter, armer: FakeArmer, accel: str, clock: str
) -> None:
    with armed_tracer(host_of(armer, accel), "timing", "map", GIB, trial) as hists:
        assert hists == {}
    assert armer.specs == [timing_spec([GIB], clock)]
    assert armer.log == [
        "change: tracing barometer barotime", "arm barometer barotime", "files", "clear",
    ]  # fmt: skip


@pytest.mark.parametrize("kvm", [False, True])
@pytest.mark.parametrize("faults", [False, True])
def test_boot_is_traced_as_its_host_can(
    trial: TrialWriter, armer: FakeArmer, kvm: bool, faults: bool
) -> None:
    host = host_of(armer, "tcg", kvm)
    with armed_tracer(host, "timing", "guest-1", GIB, trial, boot=True, faults=faults):
        pass
    assert armer.specs == [timing_spec([GIB], boot=True, kvm=kvm, faults=faults)]
    assert trial.text("host/trace-guest-1.txt") == "t"


def test_same_trace_is_the_same_bytes(trial: TrialWriter, armer: FakeArmer) -> None:
    files = []
    for label in ("a", "b"):
        with armed_tracer(host_of(armer, "tcg"), "timing", label, GIB, trial):
            pass
        files.append((trial.host / f"trace-{label}.txt.gz").read_bytes())
    assert files[0] == files[1]


def test_histograms_are_readable_while_they_count_and_saved_afterwards(
    trial: TrialWriter, armer: FakeArmer
) -> None:
    with armed_tracer(host_of(armer, "exact"), "counts", "counts", GIB, trial) as hists:
        assert hists["iova_walk"] == (
            "/sys/kernel/tracing/instances/barometer/events/barocount/iova_walk/hist"
        )
        assert not list(trial.host.iterdir())
    assert armer.specs == [counts_spec([FAULT, FAULT_BEFORE])]
    assert gzip.decompress((trial.host / "trace-counts.txt.gz").read_bytes()) == b"t"
    assert {path.name for path in trial.host.iterdir()} == {
        "trace-counts.txt.gz", "clock-counts.txt", "stats-counts.txt", "profile-counts.txt",
        "hist-pin.txt",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "saved"),
    [(BenchError("no", reason=Reason.TIMEOUT), True), (KeyboardInterrupt(), False)],
)
def test_tracer_is_cleared_when_the_block_raises(
    trial: TrialWriter, armer: FakeArmer, error: BaseException, saved: bool
) -> None:
    with (
        pytest.raises(type(error)),
        armed_tracer(host_of(armer, "tcg"), "timing", "map", GIB, trial),
    ):
        raise error
    assert armer.log[-1] == "clear"
    assert (trial.host / "trace-map.txt.gz").exists() == saved


def test_refused_probe_ends_the_pass(trial: TrialWriter, armer: FakeArmer) -> None:
    armer.refusal = BenchError("no", evidence="Invalid", reason=Reason.TRACER_REFUSED)
    with (
        pytest.raises(BenchError) as caught,
        armed_tracer(host_of(armer, "tcg"), "timing", "map", GIB, trial),
    ):
        pytest.fail("it is not armed")
    assert caught.value is armer.refusal


def raise_if(error: BenchError | None) -> None:
    if error:
        raise error


@pytest.mark.parametrize("first", [None, BenchError("first", reason=Reason.TIMEOUT)])
def test_lost_trace_is_an_error_and_does_not_hide_what_happened_before(
    trial: TrialWriter, armer: FakeArmer, first: BenchError | None
) -> None:
    armer.unread = BenchError("lost", reason=Reason.TRACER_LOST)
    with (
        pytest.raises(BenchError) as caught,
        armed_tracer(host_of(armer, "tcg"), "timing", "map", GIB, trial),
        contextlib.ExitStack() as block,
    ):
        block.callback(raise_if, first)
    assert caught.value is (first or armer.unread)
    assert armer.log[-1] == "clear"
