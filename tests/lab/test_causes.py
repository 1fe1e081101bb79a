"""Slow and failing starts that are provoked for real, on a nested host: what `profile` says of
each. Half of them are of a QEMU that a script starts, as no libvirt knows it.

tests/unit/test_slow_boots.py has many more, rebuilt as inputs. Here the kernel, QEMU and libvirt
themselves print and refuse.
"""

from __future__ import annotations

import base64
import contextlib
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.analysis.diagnosis.diagnosis import Profile, analyse_profile
from orchestrator.evidence.surveys.collected import load_evidence
from orchestrator.formats.units import GIB, MIB
from orchestrator.machine.host.host import Host
from orchestrator.machine.transport.shell import Completed
from orchestrator.machine.vm.hypervisor import Domain
from orchestrator.report.text.profile_text import text_profile
from tests.lab.conftest import RunOne
from tests.lab.test_profile import URI, barometer, left, on_a_host

pytestmark = [pytest.mark.nested, pytest.mark.full]

BY_HAND = "started-by-hand"
PID_FILE, LOG = "/run/barometer/hand.pid", "/run/barometer/hand.log"
QTEST = "/run/barometer/hand.qtest"
TYPE1 = "/sys/module/vfio_iommu_type1/parameters"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
_PUT_BAR = f"""
import socket
qtest = socket.socket(socket.AF_UNIX)
qtest.settimeout(60)
qtest.connect({QTEST!r})
# 00:04.0: BAR 2 (offsets 0x18 and 0x1c) at 0xfee00000, then memory decoding (offset 4)
for line in ("outl 0xcf8 0x80002018", "outl 0xcfc 0xfee00000", "outl 0xcf8 0x8000201c",
             "outl 0xcfc 0", "outl 0xcf8 0x80002004", "outw 0xcfc 0x2"):
    qtest.sendall(line.encode() + b"\\n")
    if not qtest.recv(100):
        break
"""
"""Puts a memory BAR of QEMU's own on the addresses of interrupts. No guest runs meanwhile."""


NEW = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="trixie-backports"}'


def judge(saved: Path) -> Profile:
    """Return the profile of what was saved, and print it for a reader of the test's log."""
    evidence = load_evidence(saved)
    profile = analyse_profile(evidence.facts, evidence.files, evidence.xml)
    print(text_profile(profile))
    return profile


def list_devices(domain: Domain) -> list[str]:
    """Return the addresses of the devices that the domain owns."""
    addresses = ET.fromstring(domain.definition()).iterfind("devices/hostdev/source/address")
    parts = [
        [int(address.get(name, ""), 16) for name in ("domain", "bus", "slot", "function")]
        for address in addresses
    ]
    return [f"{d:04x}:{bus:02x}:{slot:02x}.{function}" for d, bus, slot, function in parts]


def run_qemu(
    host: Host,
    devices: Sequence[str],
    *arguments: str,
    prefix: str = "",
    bits: int = 46,
    accel: str = "",
    has_ports: bool = True,
) -> Completed:
    """Run a QEMU of nobody's. It goes to the background once its devices are there; without them
    it ends. `has_ports`: each device is behind a root port, which needs MSI-X."""
    words = [
        "qemu-system-x86_64", "-name", BY_HAND, "-machine", "q35",
        "-accel", accel or ("kvm" if host.kvm else "tcg"),
        "-cpu", f"max,host-phys-bits=off,phys-bits={bits}",
        "-nodefaults", "-display", "none", "-serial", f"file:{LOG}",
        "-kernel", f"{host.payload}/guest/vmlinuz", "-initrd", "/run/barometer/guest.initramfs",
        "-append", "console=ttyS0", "-daemonize", "-pidfile", PID_FILE, *arguments,
    ]  # fmt: skip
    for number, address in enumerate(devices):
        bus = f"port{number}" if has_ports else "pcie.0"
        if has_ports:
            words += ["-device", f"pcie-root-port,id={bus},chassis={number + 1}"]
        words += ["-device", f"vfio-pci,host={address},bus={bus}"]
    # each word in quotes: none has a quote itself
    line = " ".join(f"'{word}'" for word in words)
    return host.shell.run(f"{prefix} {line}", check=False, timeout=300)


@contextlib.contextmanager
def waiting(host: Host, saved: Path, code: int) -> Iterator[None]:
    """Let a profile wait for the next QEMU while the block runs. At its end the profile is in
    `saved`, the probes are gone and the QEMU, if it still runs, is ended. `code`: exit code of the
    profile; 3 is that of a start that failed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "profile", "--wait-for-qemu", "--name", BY_HAND,
         "--connect", URI, "--ssh-config", str(host.scratch / "ssh_config"),
         "--save", str(saved)],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "armed: start" in line:
                break
        else:
            pytest.fail("".join(seen))
        yield
        out, _ = process.communicate(timeout=900)
        print(out)
        assert process.returncode == code
        assert not left(host)
        if code == 0:  # it was left running
            host.shell.run(f"kill -0 $(cat {PID_FILE})")
    finally:
        process.kill()
        process.wait()
        end_qemu(host)


def end_qemu(host: Host) -> None:
    """End the QEMU that was started by hand, and remove its files."""
    host.shell.run(
        f"pid=$(cat {PID_FILE}) && kill $pid && while kill -0 $pid; do sleep 0.2; done;"
        f" rm -f {PID_FILE} {QTEST} {LOG}", check=False,
    )  # fmt: skip


def test_a_qemu_started_by_hand_is_recorded_and_all_of_its_boot_has_a_name(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: a boot that no libvirt knows is found, by its name; its BAR and its memory are
    told apart; 95 % of the boot is in named costs; the QEMU is left running."""

    def check(host: Host, domain: Domain) -> None:
        with waiting(host, tmp_path / "hand", 0):
            started = run_qemu(host, list_devices(domain), "-m", "512")
            assert started.code == 0, started

    on_a_host(shared_trial, monkeypatch, check)
    profile = judge(tmp_path / "hand")
    facts = profile.facts
    assert (facts.domain, facts.boot, facts.uri, facts.memory) == (BY_HAND, "wait", "", GIB // 2)
    assert facts.process is not None
    assert {step.bar for step in profile.timeline.steps} >= {"RAM", profile.levels[0].place}
    costs = sum(advice.seconds for advice in profile.advice if not advice.is_wrong)
    assert costs >= 0.95 * profile.whole_seconds
    assert costs + profile.unexplained == pytest.approx(profile.whole_seconds)


def test_a_start_that_the_limit_of_locked_memory_ends(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: the kernel's message of RLIMIT_MEMLOCK is found and its number is said, of a
    QEMU that has ended before anybody could look at its limits."""
    # root may lock what it likes, unless it lacks this capability
    prefix = "ulimit -l 131072; exec setpriv --bounding-set=-ipc_lock"

    def check(host: Host, domain: Domain) -> None:
        with waiting(host, tmp_path / "memlock", 3):
            started = run_qemu(host, list_devices(domain), "-m", "512", prefix=prefix)
            assert started.code != 0

    on_a_host(shared_trial, monkeypatch, check)
    profile = judge(tmp_path / "memlock")
    assert profile.facts.has_failed
    (cause,) = profile.advice
    assert cause.name == "memlock"
    assert "128MiB" in cause.problem


def test_a_start_that_the_limit_of_maps_ends(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: of a start by libvirt that failed the trace is kept and read, and the limit is
    looked up; what QEMU dumps is not the message."""

    def check(host: Host, domain: Domain) -> None:
        host.shell.run(["modprobe", "vfio_iommu_type1"])
        host.change.write(f"{TYPE1}/dma_entry_limit", "2")
        process = barometer(host, "--save", str(tmp_path / "entries"))
        out, err = process.communicate(timeout=600)
        print(out, err)
        assert process.returncode == 3
        assert "RAX" not in out
        assert not left(host)
        assert not domain.active()

    on_a_host(shared_trial, monkeypatch, check)
    profile = judge(tmp_path / "entries")
    assert profile.facts.has_failed
    (cause,) = profile.advice
    assert cause.name == "dma-entry-limit"
    assert "dma_entry_limit is 2" in cause.problem
    assert "and 2 were made" in cause.problem


def test_a_start_that_the_iommus_width_ends(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: EINVAL beyond the 39 bits of the host's IOMMU is told with both numbers and
    the address. The guest's memory is the far thing here: a DIMM at 2^40, the first place that
    QEMU has for one on a host of AMD's."""
    far = (
        "-m", "512M,slots=1,maxmem=2T", "-object", "memory-backend-ram,id=far,size=128M",
        "-device", f"pc-dimm,memdev=far,addr={1 << 40:#x}",
    )  # fmt: skip

    def check(host: Host, domain: Domain) -> None:
        with waiting(host, tmp_path / "width", 3):
            started = run_qemu(host, list_devices(domain), *far)
            assert started.code != 0

    on_a_host(one_trial, monkeypatch, check, "host.viommu_aw_bits=39")
    profile = judge(tmp_path / "width")
    assert profile.facts.has_failed
    (cause,) = profile.advice
    assert cause.name == "address-bits"
    assert "needs 41 address bits, the IOMMU translates 39" in cause.problem
    assert f"{1 << 40:#x}" in cause.problem


def test_a_qemu_that_a_reserved_range_ends(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: EINVAL within the range that the IOMMU keeps for interrupts is told with that
    range, from the group's reserved_regions.

    No firmware puts memory there. QEMU's test interface does, with a BAR of QEMU's own, in a guest
    without an APIC, which would be in front of it. QEMU aborts, because memory that a device
    cannot reach is fatal once the machine runs (vfio_container_region_add())."""
    own_bar = (
        "-m", "512", "-S", "-cpu", "qemu64,-apic", "-qtest", f"unix:{QTEST},server=on,wait=off",
        "-qtest-log", "/dev/null", "-object", "memory-backend-ram,id=own,size=1M,share=on",
        "-device", "ivshmem-plain,memdev=own,bus=pcie.0,addr=4",
    )  # fmt: skip

    def check(host: Host, domain: Domain) -> None:
        with waiting(host, tmp_path / "reserved", 3):
            devices = list_devices(domain)
            started = run_qemu(host, devices, *own_bar, accel="tcg", has_ports=False)
            assert started.code == 0, started
            host.shell.run(["python3", "-c", _PUT_BAR], check=False)

    on_a_host(shared_trial, monkeypatch, check)
    cause, *_ = judge(tmp_path / "reserved").advice
    assert cause.name == "reserved-range"
    assert "0xfee00000-0xfeefffff (msi)" in cause.problem


def test_pinning_of_memory_is_the_largest_cost(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: the largest cost that is not the guest's own work is told first, and what helps
    with it: here 2 GiB in pages of 4 KiB, beside a BAR of 1 GiB that is mapped leaf by leaf."""

    def check(host: Host, domain: Domain) -> None:
        host.change.write(THP, "never")
        with waiting(host, tmp_path / "pinning", 0):
            started = run_qemu(host, list_devices(domain), "-m", "2048")
            assert started.code == 0, started

    on_a_host(one_trial, monkeypatch, check, NEW)
    profile = judge(tmp_path / "pinning")
    first = next(
        advice for advice in profile.advice if not advice.is_wrong and not advice.is_ordinary
    )
    assert first.name == "ram-pinning"
    assert "4 KiB pages" in first.problem
    assert [remedy.name for remedy in first.remedies][:2] == ["guest-memory", "huge-pages"]
    pinned = sum(
        step.seconds for step in profile.timeline.steps_before_mark()
        if step.bar == "RAM" and step.kind == "map"
    )  # fmt: skip
    assert first.seconds == pytest.approx(pinned, rel=0.02)


def test_one_of_two_devices_finds_no_place(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: each device's BAR is looked for. 36 bits are 64 GiB, which have room for one
    BAR of 32 GiB beside the guest's memory. SeaBIOS puts the other one above them, where it is
    mapped as well; it is named, and the bits that would do."""

    def check(host: Host, domain: Domain) -> None:
        with waiting(host, tmp_path / "two", 0):
            started = run_qemu(host, list_devices(domain), "-m", "512", bits=36)
            assert started.code == 0, started

    on_a_host(one_trial, monkeypatch, check, NEW, "device.bar=32GiB", "device.count=2")
    profile = judge(tmp_path / "two")
    large = [bar for bar in profile.facts.bars if bar.size >= 64 * MIB]
    assert len(large) == 2
    cause = profile.advice[0]
    assert cause.name == "bar-not-placed"
    assert len(cause.bars) == 1
    assert "1 of 2 BARs" in cause.problem
    assert "36 address bits" in cause.problem
    assert "address bits would do" in cause.help


def test_a_program_without_barometer_collects_a_boot(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Holds on to: `--script` arms, waits, collects and leaves nothing on a machine with a real
    kernel, without barometer; its archive is judged here."""
    program = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "profile", "--script"],
        text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    folder = "/run/barometer/collect"

    def check(host: Host, domain: Domain) -> None:
        host.shell.run(["mkdir", folder])
        host.shell.run(f"cat > {folder}/collect.sh", stdin=program.encode())
        program_id = host.shell.run(
            f"cd {folder}; setsid sh collect.sh {BY_HAND} > out 2> log < /dev/null & echo $!;"
            f" until grep -q '^armed' {folder}/log; do sleep 1; done", timeout=300,
        ).stdout.strip()  # fmt: skip
        try:
            started = run_qemu(host, list_devices(domain), "-m", "512")
            assert started.code == 0, started
            host.shell.run(f"while kill -0 {program_id}; do sleep 1; done", timeout=900)
        finally:
            print(host.shell.run(["cat", f"{folder}/log"]).stdout)
            end_qemu(host)
        archive = host.shell.run(f"base64 -w0 {folder}/*.tar.gz").stdout
        (tmp_path / "collected.tar.gz").write_bytes(base64.b64decode(archive))
        assert not left(host)
        entries = host.shell.run(["ls", folder]).stdout.split()
        assert len(entries) == 4  # the program, its two outputs, the archive
        host.shell.run(["rm", "-r", folder])

    on_a_host(shared_trial, monkeypatch, check)
    profile = judge(tmp_path / "collected.tar.gz")
    assert (profile.facts.domain, profile.facts.boot) == (BY_HAND, "wait")
    costs = sum(advice.seconds for advice in profile.advice if not advice.is_wrong)
    assert costs >= 0.95 * profile.whole_seconds
