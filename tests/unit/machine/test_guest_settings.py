"""The settings of a scenario that reach the guest's domain, whichever way it boots."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from orchestrator.base.bounded import LOG_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import Progress
from orchestrator.evidence.layout import TrialWriter
from orchestrator.formats.units import GIB
from orchestrator.machine.guest import guest
from orchestrator.machine.guest.guest import boot_guest, guest_cmdline, stage_guest
from orchestrator.machine.guest.guestdisk import keys_disk
from orchestrator.machine.host.device import find_devices, parse_devices
from orchestrator.machine.host.host import Host
from orchestrator.machine.runner.cpio import pack_files
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm.domain import Disk, GuestDomain, guest_xml
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.factors import parse_scenarios
from orchestrator.scenario.machines import Guest
from orchestrator.scenario.model import Scenario
from tests.unit.hosts import AgentHost, Recorded
from tests.unit.manifests import facts_of
from tests.unit.scenarios import MINIMAL, scenario

KEYS = RunKeys.make()


class FakeShell:
    """A host that has whatever is looked for, and whose watch agent has its ports."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.given: list[bytes] = []
        self.watched: list[str] = []
        self.disk = "/dev/vdd\n"
        """Answer to the search for the guest's disk."""
        self.change = Recorded(self.ran)

    def alive(self) -> bool:
        return True

    def run(self, command: str, *, stdin: bytes = b"", **more: Any) -> Any:
        self.ran.append(command)
        self.given.append(stdin)
        said = ""
        if "/sys/block" in command:
            said = self.disk
        elif "free_hugepages" in command:
            said = "0\n0\n0\n"
        return SimpleNamespace(stdout=said, stderr="", code=0)

    def read(self, path: str) -> str:
        return self.change.written.get(path, "")

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], timeout: float) -> Iterator[Iterator[str]]:
        self.watched += argv
        yield iter(['E 1 ports {"console": 4000, "ssh": 4001}'])


@pytest.fixture
def shell() -> FakeShell:
    return FakeShell()


def host_of(shell: FakeShell, **facts: Any) -> Host:
    usual = {
        "shell": shell, "kvm": True, "emulated": False, "slow": False, "cpus": 2, "accel": "kvm",
        "payload": "/payload", "undo": shell.run, "change": shell.change, "is_ours": True,
    }  # fmt: skip
    return cast(Host, AgentHost(**(usual | facts)))


class Machines:
    """The host's libvirt, which only records what it should start."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def security_models(self) -> tuple[str, ...]:
        return ("apparmor",)

    def running(self, xml: str) -> NoReturn:
        uuid = re.search("<uuid>(.*)</uuid>", xml)
        self.log.append(f"start {uuid and uuid[1]}")
        raise StartedError


class StartedError(Exception):
    pass


@pytest.fixture
def domains(monkeypatch: pytest.MonkeyPatch) -> list[GuestDomain]:
    """The guests that should be started."""
    found: list[GuestDomain] = []

    def seen(spec: GuestDomain) -> str:
        found.append(spec)
        return guest_xml(spec)

    monkeypatch.setattr(guest, "guest_xml", seen)
    return found


class Boots:
    """Boots guests up to the point of their start."""

    def __init__(self, shell: FakeShell, domains: list[GuestDomain], folder: Path) -> None:
        self.shell, self.domains, self.folder = shell, domains, folder

    def __call__(self, chosen: Scenario, *, traced: bool = False, **facts: Any) -> GuestDomain:
        bar = chosen.device.bar
        listed = "".join(
            f"device 0000:0{number}:00.0 0x1af4 0x1110\n"
            + "0x0 0x0 0x0\n" * 2
            + f"{number * bar:#x} {(number + 1) * bar - 1:#x} 0x14220c\n"
            for number in range(1, chosen.device.count + 1)
        )
        devices = find_devices(parse_devices(listed), chosen.device)
        guest = chosen.guest
        assert guest is not None
        trial = TrialWriter(self.folder / f"000{len(self.domains)}-baseline", facts_of())
        with pytest.raises(StartedError):
            boot_guest(
                host_of(self.shell, **facts), cast(Connection, Machines(self.shell.ran)),
                devices, guest, chosen.device,
                index=0, traced=traced, keys=KEYS, trial=trial, progress=Progress(),
            )  # fmt: skip
        return self.domains[-1]


@pytest.fixture
def booted(shell: FakeShell, domains: list[GuestDomain], tmp_path: Path) -> Boots:
    return Boots(shell, domains, tmp_path)


# the settings of a matrix ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "values", "part", "parts"),
    [
        ("guest.firmware", ["seabios", "ovmf"], "firmware", ["seabios", "ovmf"]),
        (
            "guest.backing", ["anonymous", "memfd", "hugetlb-2MiB", "hugetlb-1GiB"],
            "backing", ["anonymous", "memfd", "hugetlb-2MiB", "hugetlb-1GiB"],
        ),
        ("guest.viommu", ["none", "intel"], "viommu", ["none", "intel"]),
        ("guest.phys_bits", [40, 46], "phys_bits", [40, 46]),
        ("guest.backend", ["type1", "iommufd"], "iommufd", [False, True]),
        ("guest.boot", ["direct", "disk"], "kernel", ["/payload/guest/vmlinuz", ""]),
        ("guest.memory", ["1GiB", "2GiB"], "memory", [GIB, 2 * GIB]),
        ("guest.cpus", [1, 2], "cpus", [1, 2]),
        ("device.mmap", [True, False], "mmap", [True, False]),
        (
            "device.count", [1, 3], "devices",
            [("0000:01:00.0",), ("0000:01:00.0", "0000:02:00.0", "0000:03:00.0")],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_setting_of_a_cell_reaches_its_guest(
    booted: Boots, factor: str, values: list[Any], part: str, parts: list[Any]
) -> None:
    text = MINIMAL + f'[matrix]\n"{factor}" = {json.dumps(values)}\n'
    memory = [] if factor == "guest.memory" else ["guest.memory=1GiB"]
    cells = parse_scenarios(text, "x.toml", overrides=["host.memory=6GiB", *memory]).cells
    assert [cell.settings for cell in cells] == [{factor: value} for value in values]
    assert [getattr(booted(cell.scenario), part) for cell in cells] == parts


def test_guest_is_as_usual_without_settings(booted: Boots) -> None:
    spec = booted(scenario())
    assert (spec.firmware, spec.backing, spec.viommu) == ("seabios", "anonymous", "none")
    assert (spec.mmap, spec.iommufd, spec.phys_bits) == (True, False, None)
    assert (spec.console_port, spec.ssh_port) == (4000, 4001)
    assert spec.devices == ("0000:01:00.0",)


def test_domain_is_saved_before_it_is_started(booted: Boots, tmp_path: Path) -> None:
    booted(scenario("guest.firmware=ovmf"))
    [path] = tmp_path.rglob("guest-0/domain.xml")
    assert "OVMF_CODE" in path.read_text()


def test_host_is_asked_before_each_change_of_a_guest(booted: Boots, shell: FakeShell) -> None:
    spec = booted(scenario("guest.backing=hugetlb-2MiB", "guest.memory=1GiB"))
    folder = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    pages = f"{folder}/nr_hugepages"
    assert shell.ran == [
        "change: files /var/log/libvirt/qemu/barometer-guest-0.log",
        f"echo 1 > /proc/sys/vm/compact_memory; cat {pages} {folder}/free_hugepages"
        f" {folder}/resv_hugepages",
        f"change: write {pages} 512",
        f"change: guest {spec.uuid}",
        f"start {spec.uuid}",
        ["tail", "-c", str(LOG_BYTES), "/var/log/libvirt/qemu/barometer-guest-0.log"],
        f"echo 0 > {pages}",
    ]


@pytest.mark.parametrize(("is_ours", "unconfined"), [(True, ()), (False, ("apparmor",))])
def test_guest_is_set_apart_from_what_confines_others_on_their_machine(
    booted: Boots, is_ours: bool, unconfined: tuple[str, ...]
) -> None:
    assert booted(scenario(), is_ours=is_ours).unconfined == unconfined


def test_log_and_pid_are_those_of_the_domain(booted: Boots, shell: FakeShell) -> None:
    spec = booted(scenario())
    assert f"change: files /var/log/libvirt/qemu/{spec.name}.log" in shell.ran
    assert f"/run/libvirt/qemu/{spec.name}.pid" in shell.watched


def test_guest_is_traced_into_the_trace_only_when_it_is_asked(booted: Boots) -> None:
    plain, traced = booted(scenario()), booted(scenario(), traced=True)
    assert (len(plain.trace_events), plain.trace_log) == (1, "")
    assert set(plain.trace_events) < set(traced.trace_events)
    assert traced.trace_log.endswith("/trace_marker")


@pytest.mark.parametrize(
    ("emulated", "kvm", "cpus", "pinned"),
    [
        (False, True, 4, ()),
        (True, False, 4, ()),
        (True, True, 4, (1, 2, 3, 1)),
        (True, True, 1, (0, 0, 0, 0)),
    ],
)
def test_cpus_are_kept_in_place_where_an_emulated_host_has_kvm(
    booted: Boots, emulated: bool, kvm: bool, cpus: int, pinned: tuple[int, ...]
) -> None:
    spec = booted(scenario("guest.cpus=4"), emulated=emulated, kvm=kvm, cpus=cpus)
    assert spec.pinned == pinned


# what it boots from ----------------------------------------------------------------------------


def guest_of(*overrides: str) -> Guest:
    found = scenario(*overrides).guest
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("cmdline", "whole"),
    [("", "console=ttyS0 panic=-1"), ("quiet a=b", "console=ttyS0 panic=-1 quiet a=b")],
)
def test_command_line_of_a_guest_ends_with_the_scenarios(cmdline: str, whole: str) -> None:
    assert guest_cmdline(guest_of(f'guest.cmdline="{cmdline}"')) == whole


def test_guest_boots_the_payloads_kernel_with_the_runs_initramfs(
    booted: Boots, shell: FakeShell
) -> None:
    spec = booted(scenario("guest.cmdline=quiet"))
    assert (spec.kernel, spec.initramfs, spec.cmdline, spec.disks) == (
        "/payload/guest/vmlinuz", "/run/barometer/guest.initramfs",
        "console=ttyS0 panic=-1 quiet", (),
    )  # fmt: skip
    assert not [command for command in shell.ran if "/sys/block" in command]


def test_guest_with_a_disk_boots_from_it_and_finds_its_keys_on_another(booted: Boots) -> None:
    spec = booted(scenario("guest.boot=disk", "guest.cmdline=quiet"))
    assert (spec.kernel, spec.initramfs, spec.cmdline) == ("", "", "")
    assert spec.disks == (
        Disk(Path("/dev/vdd"), "system", block=True),
        Disk(Path("/run/barometer/guest.keys"), "keys"),
    )


def test_disk_of_the_guest_is_found_by_its_serial(
    booted: Boots, shell: FakeShell, tmp_path: Path
) -> None:
    """The command itself runs, on a tree with other disks."""
    for name, serial in (("vda", "root"), ("vdb", ""), ("vdc", "guest"), ("vdd", "guest2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
    booted(scenario("guest.boot=disk"))
    [command] = [command for command in shell.ran if "/sys/block" in command]
    said = subprocess.check_output(
        ["sh", "-c", command.replace("/sys/block", str(tmp_path))], text=True
    )
    assert said == "/dev/vdc\n"


def test_host_without_the_guests_disk_is_the_benchs_failure(
    shell: FakeShell, tmp_path: Path
) -> None:
    shell.disk = ""
    with pytest.raises(BenchError):
        boot_guest(
            host_of(shell), cast(Connection, Machines([])), [], guest_of("guest.boot=disk"),
            scenario().device, index=0, traced=False, keys=KEYS,
            trial=TrialWriter(tmp_path / "0001-baseline", facts_of()), progress=Progress(),
        )  # fmt: skip


def test_keys_are_behind_the_initramfs_of_a_guest_that_boots_directly(shell: FakeShell) -> None:
    stage_guest(host_of(shell), guest_of(), KEYS)
    assert shell.ran == [
        "mkdir -p /run/barometer && cat /payload/guest/initramfs - >"
        " /run/barometer/guest.initramfs"
    ]
    assert shell.given == [pack_files(KEYS.for_guest())]


def test_keys_are_a_disk_of_a_guest_that_boots_from_one(shell: FakeShell) -> None:
    stage_guest(host_of(shell), guest_of("guest.boot=disk"), KEYS)
    assert shell.ran == ["mkdir -p /run/barometer && cat > /run/barometer/guest.keys"]
    assert shell.given == [keys_disk(KEYS)]
