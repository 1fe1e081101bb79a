"""The program that collects a profile by itself, under real shells on trees of files that stand in
for tracefs, /proc and /sys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.analysis.diagnosis.diagnosis import analyse_profile
from orchestrator.evidence.surveys.collected import load_evidence
from orchestrator.evidence.surveys.host_report import parse_host_report
from orchestrator.formats.units import GIB
from orchestrator.machine.tracing.collecting import (
    collecting_script,
    find_qemu,
    list_bar_devices,
    list_qemus,
    read_after_report,
    read_host_report,
    watch_any_qemu,
)
from orchestrator.machine.tracing.profiler import make_profile_spec
from orchestrator.machine.transport.local import LocalShell
from tests.unit.analysis.test_profile import ALIGNED, BAR, Trace, booted
from tests.unit.machine.test_profiler import SHELLS, Machine

DEVICE = BAR.device
RESOURCE = (
    "0x00000000fb000000 0x00000000fbffffff 0x0000000000040200\n"
    f"{BAR.start:#018x} {BAR.start + BAR.size - 1:#018x} 0x000000000014220c\n"
)
PID = 100
"""Process id of QEMU in the trace of test_profile."""


class Host(Machine):
    """A host with a GPU on vfio-pci, on which a QEMU may start."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        plain = self.tracefs.rename(self.tracefs.with_name("tracefs"))
        self.tracefs, self.instance = plain, plain / "instances/barometer-profile"
        self.sys = folder / "sys"
        at = self.sys / "bus/pci/devices" / DEVICE
        group = self.sys / "kernel/iommu_groups/7"
        (group / "devices" / DEVICE).mkdir(parents=True)
        at.mkdir(parents=True)
        (at / "resource").write_text(RESOURCE)
        (at / "config").write_bytes(bytes.fromhex("de103023") + bytes(60))
        (at / "driver").symlink_to(self.sys / "bus/pci/drivers/vfio-pci")
        (at / "iommu_group").symlink_to(group)
        (group / "reserved_regions").write_text("0x00000000fee00000 0x00000000feefffff msi\n")
        (self.proc / "sys/kernel").mkdir(parents=True)
        (self.proc / "sys/kernel/osrelease").write_text("6.12.0\n")
        (self.proc / "cpuinfo").write_text("address sizes\t: 46 bits physical\n\nprocessor: 1\n")
        (self.proc / "meminfo").write_text("MemTotal: 1 kB\n")
        (self.tracefs / "kprobe_profile").write_text("  ioctl_in  9  0\n")
        self.program("id", "echo 0")
        self.program("sleep", "/bin/sleep 0.05")  # its seconds are 50 ms
        self.program("dmesg", f"echo '[ 1.0] vfio-pci {DEVICE}: hello'")
        mkdir = (self.bin / "mkdir").read_text()
        (self.bin / "mkdir").write_text(
            mkdir + '/bin/mkdir -p options per_cpu/cpu0; echo "entries: 5" > per_cpu/cpu0/stats\n'
        )

    def run_qemu(self, name: str = "gpu vm") -> None:
        """Let a QEMU with VFIO open appear."""
        at = self.proc / f".{PID}"
        (at / "fd").mkdir(parents=True)
        (at / "fd/9").symlink_to("/dev/vfio/7")
        for thread in (PID, PID + 2):
            (at / f"task/{thread}").mkdir(parents=True)
        words = ["/usr/bin/kvm", "-name", f"guest={name},debug-threads=on", "-m", "8G"]
        (at / "cmdline").write_text("\0".join(words) + "\0")
        (at / "limits").write_text("Max locked memory  unlimited  unlimited  bytes\n")
        (at / "status").write_text("VmPTE:\t  12 kB\n")
        end = ALIGNED + BAR.size
        (at / "maps").write_text(
            f"{ALIGNED:x}-{end:x} rw-s {BAR.number << 40:08x} 00:0e 1 anon_inode:[vfio-device]\n"
        )
        program = self.bin / "kvm-program"
        # a program of a guest's container must not be run by root
        self.program("kvm-program", f": > {self.bin.parent}/ran # QEMU emulator version 9.2.0 (v")
        (at / "exe").symlink_to(program)
        (at / "comm").write_text("kvm\n")
        at.rename(self.proc / str(PID))

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "PROC": str(self.proc), "SYS": str(self.sys),
                "TMPDIR": str(self.bin.parent)}  # fmt: skip

    def collect(self, shell: list[str], *arguments: str, **how: float) -> subprocess.Popen[str]:
        limits = {"until": 8, "longest": 60} | how
        script = collecting_script(**limits, tracefs=str(self.tracefs), proc=str(self.proc))
        (self.bin.parent / "collect.sh").write_text(script)
        return subprocess.Popen(
            [*shell, "collect.sh", *arguments], cwd=self.bin.parent, env=self.environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(params=SHELLS, ids=lambda shell: Path(shell[0]).name)
def sh(request: pytest.FixtureRequest) -> list[str]:
    shell: list[str] = request.param
    return shell


def wait_until_armed(process: subprocess.Popen[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("armed"):
            return
    raise AssertionError(process.communicate())


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(collecting_script(20))
    tool = [str(Path(sys.executable).parent / "shellcheck"), "-s", "sh", "-e", "SC2016"]
    done = subprocess.run(
        [*tool, tmp_path / "script"], capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_a_boot_is_collected_and_judged_elsewhere(host: Host, sh: list[str]) -> None:
    with host.collect(sh) as process:
        wait_until_armed(process)
        assert host.read("tracing_on") == "1"
        assert host.read("events/iommu/map/filter") == f"size == {BAR.size:#x}"
        assert host.read("events/baroprofile/pin_in/filter") == f"npage == {BAR.size // 4096}"
        (host.instance / "trace").write_text(booted().text() + "\n")
        (host.instance / "per_cpu/cpu0/stats").write_text("entries: 9\noverrun: 0\n")
        host.run_qemu()
        # the kernel shows the chosen clock in brackets
        (host.instance / "trace_clock").write_text("local [mono]\n")
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    archive = host.bin.parent / out.strip().splitlines()[-1]
    assert not host.instance.exists()
    assert any(line == "-:baroprofile/ioctl_in" for line in host.probes)
    left = {path.name for path in host.bin.parent.iterdir()}
    assert left == {"bin", "proc", "sys", "tracefs", "collect.sh", archive.name, "modprobe"}
    evidence = load_evidence(archive)
    facts = evidence.facts
    assert (facts.domain, facts.pid, facts.ended, facts.boot) == ("gpu vm", PID, "quiet", "wait")
    assert (facts.qemu, facts.memory, facts.release) == ("9.2.0", 8 * GIB, "6.12.0")
    assert [(bar.device, bar.number, bar.size) for bar in facts.bars] == [
        (DEVICE, 0, 16 << 20), (DEVICE, 1, BAR.size)
    ]  # fmt: skip
    assert facts.process is not None
    assert facts.process.threads == (PID, PID + 2)
    profile = analyse_profile(facts, evidence.files, evidence.xml)
    assert profile.timeline.boot_seconds == 25.0
    assert profile.advice[0].name == "no-series"


def test_a_pattern_chooses_the_qemu(host: Host, sh: list[str]) -> None:
    with host.collect(sh, "other") as process:
        wait_until_armed(process)
        host.run_qemu()
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        process.terminate()
        process.communicate(timeout=30)
    assert not host.instance.exists()


@pytest.mark.parametrize("signal", [2, 15, 1])
def test_a_signal_leaves_nothing(host: Host, sh: list[str], signal: int) -> None:
    with host.collect(sh) as process:
        wait_until_armed(process)
        process.send_signal(signal)
        process.communicate(timeout=30)
    assert not host.instance.exists()
    assert not list(host.bin.parent.glob("tmp.*"))
    assert not list(host.bin.parent.glob("*.tar.gz"))


def test_a_kernel_without_arguments_of_returns_has_no_parts(host: Host, sh: list[str]) -> None:
    """Before v6.9 the kernel refuses such a probe: here the file is made one that refuses it."""
    events = host.tracefs / "kprobe_events"
    script = collecting_script(2, tracefs=str(host.tracefs), proc=str(host.proc))
    tried = script.replace('if echo "r:$G/tried iommu_map size=\\$arg4:x64" >>', "if false >>")
    assert tried != script
    (host.bin.parent / "collect.sh").write_text(tried)
    with subprocess.Popen(
        [*sh, "collect.sh"], cwd=host.bin.parent, env=host.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        wait_until_armed(process)
        assert "imap_in" not in events.read_text()
        assert "ioctl_in" in events.read_text()
        process.terminate()
        process.communicate(timeout=30)


def test_whoever_is_not_root_is_told_so(host: Host, sh: list[str]) -> None:
    host.program("id", "echo 1000")
    with host.collect(sh) as process:
        out, errors = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert "needs root" in errors
    assert host.probes == ["p:other/one do_exit"]


def test_a_machine_without_a_large_bar_is_told_so(host: Host, sh: list[str]) -> None:
    (host.sys / "bus/pci/devices" / DEVICE / "resource").write_text(RESOURCE.splitlines()[0])
    with host.collect(sh) as process:
        out, _ = process.communicate(timeout=30)
    assert "no device has a BAR of 64 MiB or more" in out
    assert not host.instance.exists()


# the same functions over a connection -----------------------------------------------------------


def test_what_a_host_says_is_read_over_its_shell(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    shell = LocalShell()
    assert list_bar_devices(shell) == [DEVICE]
    assert list_qemus(shell) == []
    assert find_qemu(shell, "", []) is None
    host.run_qemu()
    assert find_qemu(shell, "gpu vm", []) == PID
    assert find_qemu(shell, "", [str(PID)]) is None
    assert find_qemu(shell, "another", []) is None
    report = parse_host_report(
        read_host_report(shell, [DEVICE]), read_after_report(shell, PID, "quiet", "gpu vm")
    )
    assert report.physical_bits == 46
    assert report.devices[DEVICE].answers is True
    assert report.devices[DEVICE].driver == "vfio-pci"
    assert [region.kind for region in report.devices[DEVICE].reserved] == ["msi"]
    assert report.text("after/devices").split() == [DEVICE]


def test_qemu_by_every_name_is_watched() -> None:
    spec = watch_any_qemu(make_profile_spec([GIB], "/usr/bin/qemu", kvm=False))
    names = spec.filters["sched/sched_process_exec"]
    assert '"*qemu*"' in names
    assert '"*/kvm"' in names


def test_a_qemu_that_is_refused_its_device_is_a_start_that_failed(
    host: Host, sh: list[str]
) -> None:
    """It ends before its first map. An older refusal, of another start, does not count."""
    line = (
        f"vfio-pci {DEVICE}: Device is ineligible for IOMMU domain attach due to platform RMRR"
        " requirement. Contact your platform vendor."
    )
    log = host.bin.parent / "log"
    log.write_text(f"[ 1.0] {line}\n")
    host.program("dmesg", f"cat {log}")
    with host.collect(sh) as process:
        wait_until_armed(process)
        (host.instance / "trace_clock").write_text("local [mono]\n")
        (host.instance / "per_cpu/cpu0/stats").write_text("entries: 9\noverrun: 0\n")
        (host.instance / "trace").write_text(Trace().exec(1.0).text() + "\n")
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        log.write_text(f"[ 1.0] {line}\n[ 9.0] {line}\n")
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    evidence = load_evidence(host.bin.parent / out.strip().splitlines()[-1])
    assert evidence.facts.ended == "start-failed"
    profile = analyse_profile(evidence.facts, evidence.files, evidence.xml)
    assert profile.advice[0].name == "rmrr"


@pytest.mark.parametrize("is_seen", [False, True])
def test_a_qemu_that_ends_at_a_refused_map_is_a_start_that_failed(
    host: Host, sh: list[str], is_seen: bool
) -> None:
    """Whether the program has seen the QEMU before it ended changes nothing."""
    trace = Trace().exec(1.0).mapped(2.0, 0.1, 0x7000, GIB, PID, result=-28)
    with host.collect(sh) as process:
        wait_until_armed(process)
        (host.instance / "trace_clock").write_text("local [mono]\n")
        (host.instance / "per_cpu/cpu0/stats").write_text("entries: 9\noverrun: 0\n")
        if is_seen:
            host.run_qemu()
            assert process.stderr is not None
            assert "waiting for the end of its boot" in process.stderr.readline()
        (host.instance / "trace").write_text(trace.text() + "\n")
        if is_seen:
            shutil.rmtree(host.proc / str(PID))
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    evidence = load_evidence(host.bin.parent / out.strip().splitlines()[-1])
    assert evidence.facts.ended == "start-failed"
    profile = analyse_profile(evidence.facts, evidence.files, evidence.xml)
    assert profile.advice[0].name == "dma-entry-limit"
