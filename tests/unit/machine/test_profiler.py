"""The arming script under real shells, on a tree of files that stands in for tracefs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.evidence.surveys.profile_facts import QemuProcess
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.tracing import armer
from orchestrator.machine.tracing.armer import (
    ArmedProbes,
    ProbeSpec,
    armed_probes,
    arming_script,
    clear_probes,
    clearing_script,
    find_functions,
)
from orchestrator.machine.tracing.probes import FAULT, counts_spec
from orchestrator.machine.tracing.profiler import (
    GROUP,
    INSTANCE,
    can_take_return_arguments,
    leave_out_parts,
    make_profile_spec,
)
from orchestrator.machine.transport.local import LocalShell

SPEC = make_profile_spec([16 * MIB, 32 * GIB], "/usr/bin/qemu-system-x86_64", kvm=True)
COUNTS = counts_spec([FAULT])
SHELLS = [
    [path, *more]
    for name, *more in (["dash"], ["bash", "--posix"])
    if (path := shutil.which(name))
]


class Machine:
    """Trees like tracefs and /proc, and the programs that change tracefs as the kernel would."""

    def __init__(self, folder: Path) -> None:
        self.tracefs, self.proc, self.bin = folder / "tra cefs", folder / "proc", folder / "bin"
        self.instance = self.tracefs / "instances" / INSTANCE
        for path in (self.instance.parent, self.proc, self.bin):
            path.mkdir(parents=True)
        (self.tracefs / "kprobe_events").write_text("p:other/one do_exit\n")
        (self.tracefs / "error_log").write_text("")
        (self.proc / "modules").write_text("vfio_pci_core 94208 1 vfio_pci, Live 0x0\n")
        (self.proc / "kallsyms").write_text(
            "".join(
                f"0000000000000000 t {name}\t[module]\n"
                for name in (*SPEC.symbols, *COUNTS.symbols)
            )
        )
        events = " ".join({*SPEC.filters, *SPEC.enable, *COUNTS.triggers})
        self.program("modprobe", f'echo "$@" >> "{folder}/modprobe"')
        self.program(
            "mkdir",
            f'/bin/mkdir "$@" || exit; cd "$1" && for e in {events} ""; do'
            ' /bin/mkdir -p "events/$e"; : > "events/$e/enable"; done',
        )
        self.program("rmdir", '/bin/rm -r "$1"')

    def program(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, shell: list[str], script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*shell, "-c", script], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"},
        )  # fmt: skip

    def arm(self, shell: list[str], spec: ProbeSpec = SPEC) -> subprocess.Popen[str]:
        return self.start(shell, arming_script(spec, str(self.tracefs), str(self.proc)))

    def clear(self, shell: list[str], proc: str) -> subprocess.Popen[str]:
        return self.start(shell, clearing_script(INSTANCE, GROUP, str(self.tracefs), proc))

    @property
    def probes(self) -> list[str]:
        return (self.tracefs / "kprobe_events").read_text().splitlines()

    def read(self, name: str) -> str:
        return (self.instance / name).read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture(params=SHELLS, ids=lambda shell: Path(shell[0]).name)
def sh(request: pytest.FixtureRequest) -> list[str]:
    shell: list[str] = request.param
    return shell


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return said(process)


def test_there_is_a_small_shell_to_try() -> None:
    assert Path("/bin/sh").resolve().name in {Path(shell[0]).name for shell in SHELLS}


@pytest.mark.parametrize(
    "script",
    [arming_script(SPEC, "/t", "/p"), arming_script(COUNTS, "/t", "/p"),
     clearing_script(INSTANCE, GROUP, "/t", "/p"),
     (GUESTS / "agents/keeper/tracing.sh").read_text()],
)  # fmt: skip
def test_shellcheck_finds_nothing(script: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(script)
    # $arg2 is the kernel's
    tool = [str(Path(sys.executable).parent / "shellcheck"), "-s", "sh", "-e", "SC2016"]
    done = subprocess.run(
        [*tool, tmp_path / "script"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_probes_without_an_instance_are_taken_away_first(machine: Machine, sh: list[str]) -> None:
    (machine.tracefs / "kprobe_events").write_text(f"r8:{GROUP}/old do_exit\n")
    with machine.arm(sh) as process:
        assert said(process) == "armed"
        assert machine.probes[1] == f"-:{GROUP}/old"


def test_all_of_the_specification_is_armed_then_undone(machine: Machine, sh: list[str]) -> None:
    with machine.arm(sh) as process:
        assert said(process) == "armed"
        # a loadable module is named, built-in code is not
        defined = [line.replace(" vfio_iommu_type1:", " ") for line in SPEC.definitions]
        assert machine.probes == ["p:other/one do_exit", *defined]
        assert any("vfio_pci_core:" in line for line in defined)
        for event, text in SPEC.filters.items():
            assert machine.read(f"events/{event}/filter") == text
        for event in SPEC.enable:
            assert machine.read(f"events/{event}/enable") == "1"
        assert machine.read("tracing_on") == "1"
        assert (machine.read("trace_clock"), machine.read("buffer_size_kb")) == ("mono", "1024")
        assert tell(process, "E 0 run") == "marked"
        assert machine.read("trace_marker") == "barometer E 0 run"
    assert not machine.instance.exists()
    ours = {line.split()[0].split(":")[1] for line in SPEC.definitions}
    removed = [line for line in machine.probes if line.startswith("-:")]
    assert {line[2:] for line in removed} == ours
    assert len(ours) == len(removed)


def test_histograms_are_armed_and_let_go_of_their_events(machine: Machine, sh: list[str]) -> None:
    """The kernel removes no event that a histogram counts."""
    machine.instance = machine.tracefs / "instances" / COUNTS.instance
    with machine.arm(sh, COUNTS) as process:
        assert said(process) == "armed"
        for event, text in COUNTS.triggers.items():
            assert machine.read(f"events/{event}/trigger") == text
            assert machine.read(f"events/{event}/enable") == ""
            # as the kernel shows it
            shown = f"# a comment\n{text}:vals=hitcount:sort=hitcount:size=2048 [active]\n"
            (machine.instance / f"events/{event}/trigger").write_text(shown)
        machine.program("rmdir", f'/bin/mv "$1" "{machine.tracefs}/removed"')
        assert not any(line.startswith("-:") for line in machine.probes)
    for event, text in COUNTS.triggers.items():
        left = (machine.tracefs / f"removed/events/{event}/trigger").read_text().splitlines()
        assert left[2:] == [f"!{text}:vals=hitcount:sort=hitcount:size=2048"]
        assert f"-:{event}" in machine.probes


def test_functions_of_the_kernel_are_found_by_their_whole_names(
    machine: Machine, here: LocalShell
) -> None:
    names = ["iommu_map", "iommu", "no_such_function", FAULT]
    assert find_functions(here, names) == ["iommu_map", FAULT]
    assert find_functions(here, ["no_such_function"]) == []
    symbols = machine.proc / "kallsyms"
    symbols.write_text(symbols.read_text().replace("iommu_map\t", "iommu_map.isra.0\t"))
    assert find_functions(here, ["iommu_map"]) == []


def test_functions_that_cannot_be_looked_up_are_an_error(
    machine: Machine, here: LocalShell
) -> None:
    (machine.proc / "kallsyms").unlink()
    with pytest.raises(BenchError):
        find_functions(here, [FAULT])


def test_counts_are_read_with_the_trace(machine: Machine, here: LocalShell) -> None:
    machine.instance = machine.tracefs / "instances" / COUNTS.instance
    (machine.tracefs / "kprobe_profile").write_text("  lookup 2 0\n  pin 2 0\n  other 7 0\n")
    with armed_probes(here, COUNTS) as tracer:
        (machine.instance / "per_cpu/cpu0").mkdir(parents=True)
        (machine.instance / "per_cpu/cpu0/stats").write_text("entries: 0\n")
        (machine.instance / "trace").write_text("# tracer: nop\n")
        for event in COUNTS.triggers:
            (machine.instance / f"events/{event}/hist").write_text(f"of {event}\n")
        files = tracer.files()
    assert files["hist-fault.txt"] == "of barocount/fault\n"
    assert {name for name in files if name.startswith("hist-")} == {
        "hist-lookup.txt", "hist-pin.txt", "hist-fault.txt", "hist-iova_walk.txt",
    }  # fmt: skip
    assert files["profile.txt"] == "  lookup 2 0\n  pin 2 0\n"
    assert not machine.instance.exists()


OPTIONS = {
    "context-info": "0",
    "irq-info": "0",
    "record-cmd": "1",
    "record-tgid": "1",
    "latency-format": "1",
    "hex": "1",
    "raw": "0",
    "overwrite": "0",
    "annotate": "1",
}


def with_options(machine: Machine, more: str = "") -> None:
    """Give tracefs options, which a new instance takes over, as the kernel does."""
    folder = machine.tracefs / "options"
    folder.mkdir()
    for name, value in OPTIONS.items():
        (folder / name).write_text(f"{value}\n")
    made = (machine.bin / "mkdir").read_text().removeprefix("#!/bin/sh\n")
    machine.program("mkdir", f'{made.rstrip()}; cp -r "{folder}" . {more}')


def test_options_of_the_machines_own_trace_are_not_the_instances(
    machine: Machine, sh: list[str]
) -> None:
    with_options(machine)
    with machine.arm(sh) as process:
        assert said(process) == "armed"
        seen = {name: machine.read(f"options/{name}") for name in OPTIONS}
        machine.program("rmdir", f'/bin/mv "$1" "{machine.tracefs}/removed"')
    assert seen == {
        "context-info": "1", "irq-info": "1", "record-cmd": "1", "record-tgid": "0",
        "latency-format": "0", "hex": "0", "raw": "0", "overwrite": "0", "annotate": "1",
    }  # fmt: skip
    own = {name: (machine.tracefs / f"options/{name}").read_text().strip() for name in OPTIONS}
    assert own == OPTIONS
    # what is switched for all instances together is as the machine's own trace has it
    left = machine.tracefs / "removed/options"
    assert (left / "record-tgid").read_text().strip() == "1"


def test_an_option_that_stays_is_a_refusal(machine: Machine, sh: list[str]) -> None:
    with_options(machine, more="&& rm options/hex && ln -s /dev/null options/hex")
    with machine.arm(sh) as process:
        out, _ = process.communicate()
    assert out.startswith(f"refused {machine.instance}/options/hex")
    assert not machine.instance.exists()


@pytest.mark.parametrize("end", ["terminate", "hang-up"])
def test_a_signal_undoes_it_too(machine: Machine, sh: list[str], end: str) -> None:
    process = machine.arm(sh)
    assert said(process) == "armed"
    process.send_signal(15 if end == "terminate" else 1)
    process.wait(20)
    process.communicate()
    assert not machine.instance.exists()


def test_what_the_kernel_refuses_is_said_and_undone(machine: Machine, sh: list[str]) -> None:
    refused = next(iter(SPEC.filters))
    machine.program("mkdir", f'/bin/mkdir -p "$1/events/{refused}/filter"')
    with machine.arm(sh) as process:
        out, _ = process.communicate()
    assert out.startswith(f"refused {machine.instance}/events/{refused}/filter: ")
    assert not machine.instance.exists()
    assert sum(line.startswith("-:") for line in machine.probes) == len(SPEC.definitions)


def test_a_function_that_is_missing_is_named(machine: Machine, sh: list[str]) -> None:
    symbols = (machine.proc / "kallsyms").read_text()
    (machine.proc / "kallsyms").write_text(
        symbols.replace("iommu_map\t", "iommu_map.isra.0\t") + "0 t xiommu_map\n0 t iommu_mapx\n"
    )
    with machine.arm(sh) as process:
        out, _ = process.communicate()
    assert out == "refused this kernel has no function iommu_map\n"
    assert machine.probes == ["p:other/one do_exit"]
    assert not machine.instance.exists()


def test_anothers_profile_is_left_alone(machine: Machine, sh: list[str]) -> None:
    machine.instance.mkdir()
    with machine.arm(sh) as process:
        assert process.communicate()[0] == "busy\n"
    assert machine.instance.is_dir()
    assert machine.probes == ["p:other/one do_exit"]


def test_a_machine_without_tracefs_is_said(machine: Machine, sh: list[str]) -> None:
    shutil.rmtree(machine.tracefs)
    with machine.arm(sh) as process:
        assert process.communicate()[0].startswith("refused ")


def test_what_a_killed_profile_left_is_cleared(machine: Machine, sh: list[str]) -> None:
    process = machine.arm(sh)
    assert said(process) == "armed"
    process.kill()
    process.communicate()
    assert machine.instance.is_dir()
    with machine.clear(sh, str(machine.proc)) as clearing:
        assert clearing.wait(20) == 0
    assert not machine.instance.exists()
    assert f"-:{GROUP}/ioctl_in" in machine.probes


def test_a_profile_that_is_alive_is_not_cleared(machine: Machine, sh: list[str]) -> None:
    process = machine.arm(sh)
    assert said(process) == "armed"
    with machine.clear(sh, "/proc") as clearing:
        assert clearing.communicate()[0] == f"{process.pid}\n"
    assert machine.instance.is_dir()
    assert f"-:{GROUP}/ioctl_in" not in machine.probes
    process.communicate()
    assert not machine.instance.exists()


# its client, on this machine's shell --------------------------------------------------


@pytest.fixture
def here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", f"{machine.bin}:{os.environ['PATH']}")
    # tracefs never has a space in its path
    plain = machine.tracefs.rename(machine.tracefs.with_name("tracefs"))
    machine.tracefs, machine.instance = plain, plain / "instances" / INSTANCE
    monkeypatch.setattr(armer, "TRACEFS", str(plain))
    monkeypatch.setattr(armer, "PROC", str(machine.proc))
    return LocalShell()


def test_a_block_is_traced_and_its_files_are_read(machine: Machine, here: LocalShell) -> None:
    (machine.proc / "7/task/7").mkdir(parents=True)
    (machine.proc / "7/task/9").mkdir()
    (machine.proc / "7/status").write_text("VmPeak:\t 9 kB\nVmPTE:\t    12 kB\n")
    vma = "7f00-7f80 rw-s 20000000000 00:0e 1 anon_inode:[vfio-device]\n"
    (machine.proc / "7/maps").write_text(f"5500-5600 r-xp 0 08:01 3 /usr/bin/qemu\n{vma}")
    (machine.tracefs / "kprobe_profile").write_text(
        "  ioctl_in      12     0\n  pin_in        99      0\n  zap_in         3      0\n"
        "  mine           7     0\n"
    )
    with armed_probes(here, SPEC) as tracer:
        tracer.mark("threads", [7, 9])
        assert machine.read("trace_marker") == "barometer E 0 threads [7, 9]"
        for cpu, entries in enumerate((11, 4)):
            (machine.instance / f"per_cpu/cpu{cpu}").mkdir(parents=True)
            stats = f"entries: {entries}\noverrun: 0\n"
            (machine.instance / f"per_cpu/cpu{cpu}/stats").write_text(stats)
        (machine.instance / "options").mkdir()
        tracer.focus(7)
        assert machine.read("options/event-fork") == "1"
        assert machine.read("set_event_pid").split() == ["7", "9"]
        assert tracer.records(7) == 15
        assert tracer.records(8) is None
        process = tracer.process(7)
        assert process == QemuProcess(pid=7, threads=(7, 9), page_table_bytes=12288, maps=vma)
        assert tracer.process(8) is None
        (machine.instance / "trace").write_text("# tracer: nop\n")
        files = tracer.files()
        assert machine.read("tracing_on") == "0"
    assert files["trace.txt"] == "# tracer: nop\n"
    assert files["stats.txt"] == "cpu0\nentries: 11\noverrun: 0\ncpu1\nentries: 4\noverrun: 0\n"
    assert files["clock.txt"] == "mono\n"
    assert [line.split()[0] for line in files["profile.txt"].splitlines()] == [
        "ioctl_in", "pin_in", "zap_in",
    ]  # fmt: skip
    assert not machine.instance.exists()


def test_a_return_probe_is_tried_and_removed(machine: Machine, here: LocalShell) -> None:
    assert can_take_return_arguments(here)
    tried = "baroprofile/tried"
    assert machine.probes[1:] == [f"r:{tried} iommu_map size=$arg4:x64", f"-:{tried}"]
    (machine.tracefs / "kprobe_events").unlink()
    (machine.tracefs / "kprobe_events").mkdir()
    assert not can_take_return_arguments(here)


def test_older_kernels_get_nothing_that_needs_arguments_on_return() -> None:
    spec = leave_out_parts(SPEC)
    returns = [line for line in spec.definitions if line.startswith("r:")]
    assert not any("$arg" in line for line in returns)
    events = {line.split()[0].split(":")[1] for line in spec.definitions}
    assert events == {
        f"{GROUP}/{base}_{side}" for base in ("ioctl", "unmap", "zap") for side in ("in", "out")
    }
    assert events <= {*spec.enable} < {*SPEC.enable}
    # filtered events have the values that their filters use
    assert {*spec.filters} - {f"{GROUP}/ioctl_in"} == {
        event for event in SPEC.filters if not event.startswith(GROUP)
    }
    assert {*SPEC.symbols} - {*spec.symbols} == {
        "vfio_pin_pages_remote", "iommu_map", "iommu_unmap_fast", "vfio_unpin_pages_remote"
    }  # fmt: skip


def test_a_profile_that_is_at_work_is_named_with_the_way_out(
    machine: Machine, here: LocalShell
) -> None:
    with armed_probes(here, SPEC):
        with (
            pytest.raises(BenchError, match="at work already") as caught,
            armed_probes(here, SPEC),
        ):
            pass
        assert "--clear" in caught.value.hint
        assert machine.instance.is_dir()
        alive = machine.proc / "4711/fd"
        alive.mkdir(parents=True)
        (alive / "9").symlink_to(machine.instance / "trace_marker")
        with pytest.raises(BenchError, match="a tracer is at work: its shell is process 4711"):
            clear_probes(here, INSTANCE, GROUP)
        (alive / "9").unlink()
    clear_probes(here, INSTANCE, GROUP)


def test_a_kernel_that_refuses_is_quoted(machine: Machine, here: LocalShell) -> None:
    (machine.proc / "kallsyms").write_text("")
    with pytest.raises(BenchError, match="cannot be armed") as caught, armed_probes(here, SPEC):
        pass
    assert "no function vfio_iommu_type1_ioctl" in caught.value.evidence


def test_a_shell_that_is_gone_is_said(machine: Machine, here: LocalShell) -> None:
    with armed_probes(here, SPEC) as tracer:
        # as if somebody killed it: it ends by itself, and undoes its changes
        machine.program("cat", "exit 1")
        with here.stream(["sh", "-c", "exit"], timeout=5) as ended:
            gone = ArmedProbes(here, SPEC, ended)
            with pytest.raises(BenchError, match="the tracer is gone"):
                gone.mark("run")
            with pytest.raises(BenchError, match="the tracer is gone"):
                gone.records(7)
        tracer.mark("run")


def test_a_failure_in_the_block_comes_first(machine: Machine, here: LocalShell) -> None:
    with pytest.raises(ValueError, match="mine"), armed_probes(here, SPEC):
        raise ValueError("mine")
    assert not machine.instance.exists()


def test_what_cannot_be_removed_is_an_error(
    machine: Machine, here: LocalShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armer, "_CLEAR_TRIES", 2)
    machine.program("sleep", ":")
    with pytest.raises(BenchError, match="could not be removed"), armed_probes(here, SPEC):
        machine.program("rmdir", "exit 1")
    machine.program("rmdir", '/bin/rm -r "$1"')
    clear_probes(here, INSTANCE, GROUP)
    assert not machine.instance.exists()


@pytest.mark.parametrize(
    ("bars", "large"),
    [([16 * MIB, 32 * GIB, 32 * MIB, 32 * GIB, 64 * MIB], [64 * MIB, 32 * GIB]),
     ([4096, 16 * MIB], [16 * MIB])],
)  # fmt: skip
def test_parts_are_probed_for_large_bars_or_else_the_largest(
    bars: list[int], large: list[int]
) -> None:
    filters = make_profile_spec(bars, "/q", kvm=False).filters
    assert filters[f"{GROUP}/imap_in"] == " || ".join(f"size == {bar:#x}" for bar in large)
    assert filters["sched/sched_process_exec"] == 'filename ~ "/q"'
    assert not any(event.startswith("kvm/") for event in filters)
