"""Disks that the host gets besides its own, and what is left of them afterwards."""

from __future__ import annotations

import contextlib
import tarfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.nested import nested
from orchestrator.machine.nested.nested import BootSpec, running_machine, save_machine
from orchestrator.machine.runner import tsc
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.runner.images import FIRST, HostImage
from orchestrator.machine.runner.state import BenchState
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import Shell
from orchestrator.machine.vm.domain import Disk
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.machines import EmulatedDevice
from orchestrator.scenario.model import Scenario
from orchestrator.scenario.vocabulary import ARMS, ArmName
from tests.unit.scenarios import scenario

PAYLOAD = Disk(Path("/cache/payload"), "payload")
GUEST = Disk(Path("/cache/disk.raw"), "guest")
COMPLETED = "<domain/>\n"


class FakeLibvirt:
    """A libvirt that starts nothing and keeps the domain that it should start."""

    def __init__(self) -> None:
        self.xml, self.paused = "", False

    @contextlib.contextmanager
    def running(self, xml: str, *, paused: bool) -> Iterator[Any]:
        self.xml, self.paused = xml, paused
        yield SimpleNamespace(xml=lambda: COMPLETED)


class FakeState:
    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, "0f0f"
        self.shm: list[str] = []
        self.added: list[str] = []

    def add(self, **more: str) -> None:
        self.added += more
        self.shm += [name for what, name in more.items() if what == "shm"]

    def remove_shm(self, name: str) -> None:
        self.shm.remove(name)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.libvirt, self.state = FakeLibvirt(), FakeState(folder)
        for name in ("root", "modules", "initramfs"):
            (folder / name).write_bytes(name.encode())
        self.image = HostImage(folder / "root", folder / "modules", folder / "initramfs", {})

    @contextlib.contextmanager
    def running(
        self,
        chosen: Scenario,
        disks: Sequence[Disk],
        arm: ArmName = "baseline",
        accel: Accel = "tcg",
    ) -> Iterator[ET.Element]:
        """Yield the domain that libvirt should start."""
        kernel = cast(KernelBundle, SimpleNamespace(vmlinuz=Path("/kernel/vmlinuz")))
        spec = BootSpec(
            arm, chosen.nested, cast(EmulatedDevice, chosen.device), chosen.arms[arm].words,
            kernel, self.image, tuple(disks), accel, with_libvirt=True,
        )  # fmt: skip
        with running_machine(
            spec, uuid.uuid4().hex, keys=RunKeys.make(), state=cast(BenchState, self.state),
            libvirt=cast(Connection, self.libvirt),
        ) as self.machine:  # fmt: skip
            yield ET.fromstring(self.libvirt.xml)

    def keys(self) -> list[Path]:
        return list(self.state.folder.glob("*/keys"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def disks_of(domain: ET.Element) -> dict[str, str]:
    """Return serial -> file of each disk."""
    found = {}
    for disk in domain.iterfind("devices/disk"):
        source = disk.find("source")
        assert source is not None
        assert disk.find("readonly") is not None
        found[str(disk.findtext("serial"))] = source.attrib["file"]
    return found


@pytest.mark.parametrize("more", [(PAYLOAD,), (PAYLOAD, GUEST)])
def test_host_has_its_own_disks_and_those_it_is_given(bench: Bench, more: Sequence[Disk]) -> None:
    with bench.running(scenario(), more) as domain:
        assert disks_of(domain) == {
            "root": str(bench.image.root), "modules": str(bench.image.modules),
            **{disk.serial: str(disk.path) for disk in more},
            "keys": str(bench.keys()[0]),
        }  # fmt: skip


@pytest.mark.parametrize("count", [1, 4])
def test_devices_and_disks_are_each_behind_a_port_of_their_own(bench: Bench, count: int) -> None:
    with bench.running(scenario(f"device.count={count}"), (PAYLOAD, GUEST)) as domain:
        ports = domain.findall("devices/controller[@model='pcie-root-port']")
        places = [
            a.attrib["bus"] for kind in ("shmem", "disk")
            for a in domain.iterfind(f"devices/{kind}/address")
        ]  # fmt: skip
    assert len(places) == len(set(places)) == len(ports) == count + 5


def test_each_device_has_shared_memory_of_its_own_that_is_gone_afterwards(bench: Bench) -> None:
    with bench.running(scenario("device.count=3"), (PAYLOAD,)) as domain:
        names = [shmem.attrib["name"] for shmem in domain.iterfind("devices/shmem")]
        assert bench.state.shm == names
        assert len(set(names)) == 3
        assert bench.state.added == ["domains", "shm", "shm", "shm"]
    assert bench.state.shm == []


def test_keys_are_a_private_tar_that_is_gone_afterwards_whatever_happened(bench: Bench) -> None:
    def broken() -> None:
        with bench.running(scenario(), (PAYLOAD,)):
            [disk] = bench.keys()
            assert disk.stat().st_mode & 0o777 == 0o600
            assert disk.stat().st_size % 512 == 0
            with tarfile.open(disk) as tar:
                assert tar.getnames() == ["ssh_host_ed25519_key", "authorized_keys"]
                assert {member.mode for member in tar} == {0o600}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert bench.keys() == []
    assert bench.state.shm == []


def test_kernel_without_an_initramfs_has_the_same_command_line(bench: Bench) -> None:
    def booted() -> tuple[str | None, list[str]]:
        with bench.running(scenario(), (PAYLOAD,)) as domain:
            [root] = [d for d in domain.iterfind("devices/disk") if d.findtext("serial") == "root"]
            target = root.find("target")
            assert target is not None
            assert target.attrib["dev"] == "vda"
            words = str(domain.findtext("os/cmdline")).split()
            return domain.findtext("os/initrd"), [w for w in words if "token" not in w]

    with_initramfs, words = booted()
    assert with_initramfs == str(bench.image.initramfs)
    assert {"root=/dev/vda", "ro", f"init={FIRST}"} <= {*words}
    bench.image = replace(bench.image, initramfs=None)
    assert booted() == (None, words)


@pytest.mark.parametrize(("accel", "emulated"), [("tcg", True), ("exact", True), ("kvm", False)])
def test_timer_of_an_emulated_host_is_not_counted_against_a_busy_loop(
    bench: Bench, accel: Accel, emulated: bool
) -> None:
    with bench.running(scenario(), (PAYLOAD,), accel=accel) as domain:
        words = str(domain.findtext("os/cmdline")).split()
    assert ("no_timer_check" in words) == ("tsc=reliable" in words) == emulated


@pytest.mark.parametrize(
    ("accel", "khz", "expected"),
    [
        ("tcg", 2_596_120, ["tsc_early_khz=2596120"]), ("tcg", None, []),
        ("exact", None, ["tsc_early_khz=1000000"]), ("kvm", 2_596_120, []),
    ],
)  # fmt: skip
def test_emulated_host_is_told_the_frequency_of_its_tsc(
    bench: Bench,
    accel: Accel,
    khz: int | None,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tsc, "tsc_khz", lambda: khz)
    with bench.running(scenario(), (PAYLOAD,), accel=accel) as domain:
        words = str(domain.findtext("os/cmdline")).split()
    assert [word for word in words if word.startswith("tsc_early_khz=")] == expected


@pytest.mark.parametrize(("uptime", "is_fast"), [(21.0, False), (4701.0, True)])
def test_emulated_host_whose_clock_runs_too_fast_is_given_up(uptime: float, is_fast: bool) -> None:
    shell = cast(Shell, SimpleNamespace(read={"/proc/uptime": f"{uptime} 1.0\n"}.get))
    with contextlib.ExitStack() as stack:
        if is_fast:
            failure = stack.enter_context(pytest.raises(BenchError))
        nested._check_clock(shell, time.monotonic() - 23)
    assert not is_fast or failure.value.reason == "host-clock"


def test_evidence_of_a_machine_is_what_there_is_by_then(bench: Bench, tmp_path: Path) -> None:
    state, evidence = cast(BenchState, bench.state), tmp_path / "host"
    evidence.mkdir()

    def saved() -> dict[str, str]:
        save_machine(state, bench.machine.token, evidence)
        return {path.name: path.read_text() for path in evidence.iterdir()}

    with bench.running(scenario(), (PAYLOAD,)) as domain:
        assert bench.machine.token in str(domain.findtext("os/cmdline")).partition("token=")[2]
        assert saved() == {"domain.xml": COMPLETED}
        console = domain.find("devices/serial/source")
        assert console is not None
        Path(console.attrib["path"]).write_text("up\n")
        bench.machine.log.parent.mkdir(parents=True)
        bench.machine.log.write_text("starting up\nHOME=/home/lab\n/usr/bin/qemu\n")
        assert saved() == {
            "domain.xml": COMPLETED, "console.log": "up\n",
            "qemu.log": "starting up\n/usr/bin/qemu\n",
        }  # fmt: skip
        with bench.machine.log.open("a") as log:
            log.write("terminating on signal 15 from pid 4711 (/home/lab/python)\n")
    assert saved()["qemu.log"].endswith("/qemu\nterminating on signal 15 from pid 4711\n")


ARM_WORDS = (
    "host.cmdline=quiet -- 3", "arms.candidate.cmdline=iommu.strict=1 nosmt",
    'arms.candidate.parameters={"vfio_iommu_type1.disable_hugepages" = true}',
)  # fmt: skip


def test_arms_words_are_on_its_own_command_line_before_those_of_init(bench: Bench) -> None:
    lines = {}
    for arm in ARMS:
        with bench.running(scenario(*ARM_WORDS), (PAYLOAD,), arm) as domain:
            lines[arm] = str(domain.findtext("os/cmdline"))
    own = "iommu.strict=1 nosmt vfio_iommu_type1.disable_hugepages=Y"
    assert lines["candidate"].endswith(f" {own} quiet -- 3")
    assert lines["baseline"].endswith(" quiet -- 3")
    assert "nosmt" not in lines["baseline"]
