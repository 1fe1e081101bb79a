"""The agent against folders that look like tracefs. Whatever only the kernel does (creating an
instance's files, refusing a probe) is left to the lanes with real kernels."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator.analysis.tracefs.hist import parse_hist
from orchestrator.analysis.tracefs.trace import count_lost_events, parse_probe_hits
from orchestrator.machine.tracing.probes import FAULT, counts_spec
from tests.unit.agents.loading import agent
from tests.unit.recorded import MEASURED, RUN

HOST = RUN / "trials" / MEASURED / "host"
Said = pytest.CaptureFixture[str]


@pytest.fixture
def tracefs(tmp_path: Path) -> Path:
    (tmp_path / "instances").mkdir()
    for name in ("kprobe_events", "kprobe_profile", "error_log"):
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.fixture
def tracer(tracefs: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = agent("tracer")
    monkeypatch.setattr(module, "TRACEFS", tracefs)
    return module


@pytest.fixture
def armed(tracefs: Path) -> Path:
    """An instance with the counts pass armed, and its counts."""
    instance = tracefs / "instances/barometer"
    for name in ("trace", "clock", "stats"):
        (instance / name).parent.mkdir(parents=True, exist_ok=True)
    (instance / "tracing_on").write_text("1\n")
    (instance / "trace").write_text((HOST / "trace-counts.txt").read_text())
    (instance / "trace_clock").write_text((HOST / "clock-counts.txt").read_text())
    for cpu, lost in (("cpu0", 0), ("cpu1", 3)):
        (instance / "per_cpu" / cpu).mkdir(parents=True)
        (instance / "per_cpu" / cpu / "stats").write_text(f"entries: 0\noverrun: {lost}\n")
    for event in ("lookup", "fault", "pin", "iova_walk"):
        folder = instance / "events/barocount" / event
        folder.mkdir(parents=True)
        (folder / "trigger").write_text("hist:keys=ret:vals=hitcount:sort=hitcount [active]\n")
        (folder / "hist").write_text((HOST / f"hist-{event}.txt").read_text())
    (instance / "events/barocount/enable").write_text("0\n")
    (tracefs / "kprobe_profile").write_text(
        (HOST / "profile-counts.txt").read_text() + "  somebody_elses   7   0\n"
    )
    return instance


def test_collected_files_are_what_the_analysis_reads(tracer: ModuleType, armed: Path) -> None:
    files = tracer.collect("barometer", "barocount")
    assert set(files) == {
        "trace.txt", "clock.txt", "stats.txt", "profile.txt",
        "hist-lookup.txt", "hist-fault.txt", "hist-pin.txt", "hist-iova_walk.txt",
    }  # fmt: skip
    assert parse_hist(files["hist-lookup.txt"]).hits == 2
    assert count_lost_events(files["stats.txt"]) == 3
    assert "cpu0\nentries" in files["stats.txt"]
    assert parse_probe_hits(files["profile.txt"]) == {
        "lookup": 2, "fault": 2, "iova_walk": 524288, "pin": 2,
    }  # fmt: skip
    assert "[mono]" in files["clock.txt"]


def test_tracing_stops_before_it_is_read(tracer: ModuleType, armed: Path) -> None:
    tracer.collect("barometer", "barocount")
    assert (armed / "tracing_on").read_text() == "0\n"


def test_event_without_a_histogram_has_no_histogram_file(tracer: ModuleType, armed: Path) -> None:
    (armed / "events/barocount/iova_walk/trigger").write_text("# Available triggers:\n# hist\n")
    assert "hist-iova_walk.txt" not in tracer.collect("barometer", "barocount")


def test_finish_answers_in_json(
    tracer: ModuleType, armed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    cleared: list[tuple[str, ...]] = []
    monkeypatch.setattr(tracer, "clear", lambda *names: cleared.append(names))
    monkeypatch.setattr(sys, "argv", ["tracer.py", "finish", "barometer", "barocount"])
    tracer.main()
    assert json.loads(capsys.readouterr().out)["files"] == tracer.collect("barometer", "barocount")
    assert cleared == [("barometer", "barocount")]


@pytest.mark.parametrize("error", ["RefusedError", "OSError"])
def test_finish_that_cannot_clear_still_answers_with_the_files(
    tracer: ModuleType, armed: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said, error: str
) -> None:
    kind: type[Exception] = getattr(tracer, error, OSError)

    def refusing(*names: str) -> None:
        raise kind("Device or resource busy")

    monkeypatch.setattr(tracer, "clear", refusing)
    monkeypatch.setattr(sys, "argv", ["tracer.py", "finish", "barometer", "barocount"])
    tracer.main()
    assert json.loads(capsys.readouterr().out) == {  # a single document, or this raises
        "files": tracer.collect("barometer", "barocount"),
        "clear_error": "Device or resource busy",
    }


def test_symbols_are_those_that_the_kernel_has(
    tracer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    asked = ["no_such_function", "vfs_write", "vfs_read", "vfs_read"]
    monkeypatch.setattr(sys, "argv", ["tracer.py", "symbols", *asked])
    tracer.main()
    assert json.loads(capsys.readouterr().out) == ["vfs_read", "vfs_write"]


def test_clear_removes_only_the_probes_of_its_group(tracer: ModuleType, tracefs: Path) -> None:
    before = (
        "p:barotime/ioctl_in vfio_iommu_type1:vfio_iommu_type1_ioctl cmd=$arg2:x32\n"
        "r32:barotime/ioctl_out vfio_iommu_type1:vfio_iommu_type1_ioctl\n"
        "p:barotimer/other do_sys_open\np:kprobes/mine vfs_read\n"
    )
    (tracefs / "kprobe_events").write_text(before)
    tracer.clear("barometer", "barotime")
    assert (tracefs / "kprobe_events").read_text() == (
        before + "-:barotime/ioctl_in\n-:barotime/ioctl_out\n"
    )


def test_clear_with_nothing_armed_changes_nothing(tracer: ModuleType, tracefs: Path) -> None:
    tracer.clear("barometer", "barotime")
    assert (tracefs / "kprobe_events").read_text() == ""
    assert list((tracefs / "instances").iterdir()) == []


def test_command_to_the_kernel_is_one_write_at_the_end(tracer: ModuleType, tracefs: Path) -> None:
    path = tracefs / "kprobe_events"
    path.write_text("p:a/b c\n")
    tracer.append(path, "-:x/y")
    assert path.read_text() == "p:a/b c\n-:x/y\n"
    with pytest.raises(FileNotFoundError):
        tracer.append(tracefs / "none", "x")  # it creates no files: those of tracefs exist


def test_refusal_has_the_kernels_own_reason(tracer: ModuleType, tracefs: Path) -> None:
    (tracefs / "error_log").write_text("[ 1.0] trace_kprobe: error: Invalid probed address\n")
    (tracefs / "instances/barometer").mkdir()
    (tracefs / "instances/barometer/error_log").write_text("hist: error: Couldn't find field\n")
    with pytest.raises(tracer.RefusedError) as caught:
        tracer.put(tracefs / "no/such/event/filter", "x == 1")
    said = str(caught.value)
    assert "'x == 1'" in said
    assert "Invalid probed address" in said
    assert "Couldn't find field" in said


def test_functions_are_looked_up_on_the_running_kernel(tracer: ModuleType) -> None:
    assert tracer.missing(["vfs_read"]) == []
    assert tracer.missing(["vfs_read", "no_such_function", "another_one"]) == [
        "another_one", "no_such_function",
    ]  # fmt: skip


def test_missing_function_is_refused_and_nothing_is_armed(
    tracer: ModuleType, tracefs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    spec = counts_spec([FAULT]) | {"symbols": ["vfs_read", "no_such_function"]}
    monkeypatch.setattr(sys, "argv", ["tracer.py", "arm"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(spec)))
    tracer.main()
    answer = json.loads(capsys.readouterr().out)
    assert answer["armed"] is False
    assert answer["why"].endswith(": no_such_function")
    assert (tracefs / "kprobe_events").read_text() == ""
    assert list((tracefs / "instances").iterdir()) == []


@pytest.mark.parametrize(
    ("definition", "given"),
    [
        ("r:g/lookup vfio:pin ret=$retval:s32", "r:g/lookup vfio:pin ret=$retval:s32"),
        ("r:g/lookup built_in:pin ret=$retval:s32", "r:g/lookup pin ret=$retval:s32"),
        ("p:g/zap built_in:zap", "p:g/zap zap"),
        ("p:g/imap_in iommu_map iova=$arg2:x64", "p:g/imap_in iommu_map iova=$arg2:x64"),
    ],
)
def test_functions_of_a_module_that_is_built_in_are_the_kernels(
    tracer: ModuleType, definition: str, given: str
) -> None:
    assert tracer.of_kernel(definition, {"vfio", "vfio_pci"}) == given
