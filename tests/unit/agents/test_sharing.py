"""A shared host as a folder: what is put back on it, and what is compared."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.agents.keeper.machines import GPU, HUGE, THP, Machine, made_up
from tests.unit.agents.loading import AGENTS, agent

sharing = agent("sharing")
UUID = "8c1f2a6e-0000-4000-8000-000000000000"
LOG = "/var/log/libvirt/qemu/barometer-guest-0.log"
TRACING = "/sys/kernel/tracing"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with made_up() as made:
        made.file(THP, "always [madvise] never\n")
        made.file(f"{TRACING}/kprobe_events", "")
        (made.root / f"{TRACING[1:]}/instances").mkdir()
        (made.root / "run/barometer").mkdir()
        process(made, 1, "init", 0)
        process(made, 2, "kthreadd", 0)
        process(made, 9, "kworker/0:1", 2)
        process(made, 80, "libvirtd", 1)
        yield made


def process(machine: Machine, pid: int, name: str, parent: int, status: str = "S") -> None:
    machine.file(f"/proc/{pid}/stat", f"{pid} ({name}) {status} {parent} 1 1 0\n")


def differing(before: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    now = sharing.state()
    names = before.keys() | now.keys()
    return {n: (before.get(n), now.get(n)) for n in names if before.get(n) != now.get(n)}


def test_what_was_changed_is_put_back_and_the_host_is_as_before(machine: Machine) -> None:
    before = sharing.state()
    machine.file(THP, "always madvise [never]\n")
    machine.file(HUGE, "12\n")
    machine.file(LOG, "of the guest\n")
    machine.file("/run/barometer/guest.initramfs", "with keys")
    changes: list[list[Any]] = [
        ["write", {"path": THP, "former": "madvise"}],
        ["write", {"path": HUGE, "former": "0"}],
        ["write", {"path": HUGE, "former": "7"}],
        ["claim", {"paths": [LOG]}],
        ["tracing", {"instance": "barometer", "group": "barotime"}],
        ["guest", {"uuid": UUID}],
    ]
    assert differing(before).keys() == {THP, HUGE, "/var/log/libvirt/qemu", "/run/barometer"}
    assert sharing.put_back(changes) == []
    assert machine.text(THP) == "madvise\n"  # a real kernel shows all the words
    assert machine.text(HUGE) == "0\n"
    assert differing(before).keys() == {THP}


def test_what_cannot_be_put_back_is_named_and_the_rest_is(machine: Machine) -> None:
    machine.file(HUGE, "12\n")
    changes: list[list[Any]] = [
        ["write", {"path": HUGE, "former": "0"}],
        ["write", {"path": "/sys/gone", "former": "0"}],
    ]
    (failed,) = sharing.put_back(changes)
    assert failed.startswith("write: /sys/gone cannot be read")
    assert machine.text(HUGE) == "0\n"


@pytest.mark.parametrize(
    ("path", "text", "name"),
    [
        ("/proc/modules", "iommufd 4096 0 - Live 0x0\n", "module igb"),
        ("/sys/module/vfio_iommu_type1/parameters/disable_hugepages", "Y\n", None),
        ("/sys/module/intel_iommu/parameters/x", "1\n", None),
        ("/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled", "always\n", None),
        ("/proc/sys/vm/stat_interval", "5\n", None),
        ("/proc/sys/kernel/tainted", "512\n", None),
        (f"{TRACING}/kprobe_events", "p:barotime/x x\n", None),
        (f"{TRACING}/instances/barometer/trace", "", f"{TRACING}/instances"),
        ("/proc/self/mounts", "/dev/vda1 / ext4 ro 0 0\n", "mount /"),
        (f"/sys/bus/pci/devices/{GPU}/driver_override", "vfio-pci\n", None),
        ("/run/barometer/deep/file", "", "/run/barometer"),
        ("/dev/shm/left", "", "/dev/shm"),
        ("/tmp/left", "", "/tmp"),
    ],
)
def test_what_is_left_is_seen(machine: Machine, path: str, text: str, name: str | None) -> None:
    before = sharing.state()
    machine.file(path, text)
    assert (name or path) in differing(before)


def test_driver_of_a_device_is_seen(machine: Machine) -> None:
    before = sharing.state()
    machine.function(GPU, driver="vfio-pci")
    assert differing(before) == {f"driver of {GPU}": ("", "vfio-pci")}


def test_process_is_seen_unless_it_is_the_kernels_or_ending(machine: Machine) -> None:
    before = sharing.state()
    process(machine, 10, "kworker/1:1", 2)
    process(machine, 81, "qemu-system-x86", 1, "Z")
    assert differing(before) == {}
    process(machine, 82, "a (b) qemu", 80)
    process(machine, 83, "libvirtd", 80)
    assert differing(before) == {
        "processes a (b) qemu": (None, "1"), "processes libvirtd": ("1", "2"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/ns_last_pid",
     "/sys/kernel/mm/transparent_hugepage/khugepaged/full_scans"],
)  # fmt: skip
def test_what_the_kernel_counts_is_no_state(machine: Machine, path: str) -> None:
    before = sharing.state()
    machine.file(path, "7\n")
    assert differing(before) == {}


def test_answer_is_in_json(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("[]"))
    sharing.main()
    said = json.loads(capsys.readouterr().out)
    assert said == {"failed": [], "state": sharing.state()}


def test_it_runs_with_nothing_but_the_folder_of_agents(tmp_path: Path) -> None:
    """The command is a host's; the root here has nothing."""
    done = subprocess.run(
        [sys.executable, "-I", AGENTS / "sharing.py"], input="[]", text=True, check=True,
        capture_output=True, env={"BAROMETER_ROOT": str(tmp_path)},
    )  # fmt: skip
    assert json.loads(done.stdout)["failed"] == []
