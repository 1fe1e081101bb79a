"""Sysfs files, modules, tracing and guests: put back within one boot, void after it."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeper import machine as real
from keeper.changes import modules, settings
from orchestrator.machine.runner.state import runs_domain
from tests.unit.agents.keeper.machines import HUGE, THP, Machine


def test_file_is_written_and_put_back(held: Machine) -> None:
    held.done("write", path=HUGE, value="64")
    assert held.text(HUGE) == "64\n"
    assert held.done("putback", volatile=False) == {"done": [f"{HUGE}: 0"], "failed": []}
    assert held.text(HUGE) == "0\n"
    assert held.journal() == []


def test_chosen_value_of_a_list_is_what_is_put_back(held: Machine) -> None:
    held.file(THP, "always defer [madvise] never\n")
    held.done("write", path=THP, value="always")
    held.done("putback", volatile=False)
    assert held.text(THP) == "madvise\n"


def test_file_written_twice_is_as_it_was_first(held: Machine) -> None:
    held.done("write", path=HUGE, value="64")
    held.done("write", path=HUGE, value="128")
    held.done("putback", volatile=False)
    assert held.text(HUGE) == "0\n"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/proc/cmdline", "/sys/../etc/passwd", "sys/x", "/sys/kernel/../../etc/x",
     "/proc/sys", "/sys/link/passwd"],
)  # fmt: skip
def test_file_elsewhere_is_not_written(held: Machine, path: str) -> None:
    held.file("/etc/passwd", "root\n")
    (held.root / "sys/link").symlink_to("../etc")
    before = held.all()
    assert held.refused("write", path=path, value="x") == (
        f"path-refused: {path} is not below /sys or /proc/sys"
    )
    assert held.all() == before


def test_file_that_is_not_there_is_named(held: Machine) -> None:
    assert held.refused("write", path="/sys/no", value="1") == (
        "setting-refused: /sys/no cannot be read, so not put back either:"
        " No such file or directory"
    )


def test_value_that_the_kernel_does_not_take_is_named_with_its_file(held: Machine) -> None:
    (held.root / "sys/full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/sys/full'"):
        real.set_value("/sys/full", "1")


def test_value_that_the_kernel_does_not_take_back_stays_in_the_journal(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held.done("write", path=HUGE, value="64")
    with monkeypatch.context() as patch:
        patch.setattr(real, "set_value", lambda path, value: None)
        (failed,) = held.done("putback", volatile=False)["failed"]
    assert failed["kind"] == "write"
    assert failed["why"] == f"{HUGE} is 64, and was 0"
    assert held.journal() == ["write"]
    assert held.done("putback", volatile=False)["failed"] == []


def test_failure_does_not_keep_the_others_from_being_put_back(held: Machine) -> None:
    held.done("write", path=THP, value="always")
    held.done("write", path=HUGE, value="64")
    (held.root / HUGE[1:]).unlink()
    answer = held.done("putback", volatile=False)
    assert [failed["what"]["path"] for failed in answer["failed"]] == [HUGE]
    assert answer["done"] == [f"{THP}: defer"]
    assert held.journal() == ["write"]


def test_modules_that_are_new_are_unloaded_and_no_other(held: Machine) -> None:
    before = held.text("/proc/modules")
    assert held.done("modules", names=["vfio-pci", "vfio_iommu_type1", "kvm"])["new"] == [
        "vfio", "vfio_pci_core", "vfio_pci", "vfio_iommu_type1",
    ]  # fmt: skip
    assert modules.loaded()[0] == "vfio_iommu_type1"
    held.done("putback", volatile=False)
    assert held.text("/proc/modules") == before


def test_module_that_another_loads_meanwhile_is_not_unloaded(held: Machine) -> None:
    held.done("modules", names=["vfio_iommu_type1"])
    listed = held.text("/proc/modules")
    held.file("/proc/modules", "nvme 4096 1 - Live 0x0\n" + listed)
    held.done("putback", volatile=False)
    assert modules.loaded() == ["nvme", "iommufd", "igb"]


def test_unknown_module_leaves_nothing(held: Machine) -> None:
    before = held.all()
    refused = held.refused("modules", names=["vfio-pci", "no-such"])
    assert refused.startswith("modules-refused: ")
    assert refused.endswith("modprobe: FATAL: Module no-such not found")
    assert held.all() == before


def test_module_in_use_is_reported_and_tried_again(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modules, "_IN_USE_SECONDS", 0.3)
    held.done("modules", names=["vfio_iommu_type1"])
    held.file("/busy-vfio", "")
    (failed,) = held.done("putback", volatile=False)["failed"]
    assert "Module vfio is in use" in failed["why"]
    assert modules.loaded() == ["vfio", "iommufd", "igb"]
    (held.root / "busy-vfio").unlink()
    assert held.done("putback", volatile=False)["failed"] == []
    assert modules.loaded() == ["iommufd", "igb"]


def test_what_a_boot_undid_is_void_and_not_undone_again(held: Machine) -> None:
    held.done("write", path=HUGE, value="64")
    held.done("modules", names=["vfio-pci"])
    held.done("claim", paths=["/boot/x"])
    held.boots()
    held.file(HUGE, "32\n")  # the machine sets this itself when it boots
    answer = held.done("putback", volatile=True)
    assert answer == {
        "done": ["modules: void since the machine was booted",
                 "write: void since the machine was booted"],
        "failed": [],
    }  # fmt: skip
    assert held.text(HUGE) == "32\n"
    assert held.journal() == ["claim"]


def test_tracing_of_barometer_is_cleared_and_no_other(held: Machine) -> None:
    events = "p:barotime/in vfio_pin\np:other/mine vfs_read\n"
    held.file("/sys/kernel/tracing/kprobe_events", events)
    held.file("/sys/kernel/tracing/error_log", "")
    held.done("tracing", instance="barometer", group="barotime")
    # in a folder that looks like tracefs, an instance can only be removed if it is empty
    held.done("putback", volatile=False)
    assert held.text("/sys/kernel/tracing/kprobe_events") == f"{events}-:barotime/in\n"


def test_tracing_on_a_machine_without_tracefs_is_nothing_to_clear(held: Machine) -> None:
    held.done("tracing", instance="barometer", group="barotime")
    assert held.done("putback", volatile=False)["failed"] == []


@pytest.fixture
def guests() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Processes that look like QEMU, by UUID."""
    made = {}
    for _ in range(2):
        name = str(uuid.uuid4())
        argv = ["/usr/bin/qemu-system-x86_64", "-c", "read _", "-uuid", name]
        made[name] = subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE)
    yield made
    for process in made.values():
        process.kill()
        process.communicate()


def test_guest_is_ended_and_no_other(
    held: Machine, guests: dict[str, subprocess.Popen[bytes]]
) -> None:
    (mine, process), (_, other) = guests.items()
    for each in guests.values():
        (held.root / f"proc/{each.pid}").symlink_to(f"/proc/{each.pid}")
    held.done("guest", uuid=mine)
    answer = held.done("putback", volatile=False)
    assert answer == {"done": [f"guest {mine}: ended"], "failed": []}
    assert process.wait(5) == -9
    time.sleep(0.1)
    assert other.poll() is None


GUEST = str(uuid.uuid4())
QEMUS = {
    "Debian's": ["/usr/bin/qemu-system-x86_64", "-name", "guest=x", "-uuid", GUEST, "-S"],
    "that of a distribution with only one": ["/usr/libexec/qemu-kvm", "-uuid", GUEST],
    "of another guest": ["/usr/bin/qemu-system-x86_64", "-uuid", str(uuid.uuid4())],
    "of a guest with its disk": ["/usr/bin/qemu-system-x86_64", "-uuid", "x", f"/{GUEST}"],
    "converts its disk": ["/usr/bin/qemu-img", "convert", f"/images/{GUEST}", "-uuid"],
    "an editor of its log": ["/usr/bin/less", "/var/log/libvirt/qemu-x.log", "-uuid", GUEST],
    "in a folder of QEMU's": ["/opt/qemu/bin/virsh", "-uuid", GUEST],
    "has exited": [""],
}


@pytest.mark.parametrize("case", QEMUS)
def test_keeper_and_runner_agree_on_what_is_the_qemu_of_a_guest(tmp_path: Path, case: str) -> None:
    (tmp_path / "cmdline").write_text("\0".join(QEMUS[case]) + "\0")
    is_it = case in ("Debian's", "that of a distribution with only one")
    assert settings._is_qemu(tmp_path, GUEST) == is_it
    assert runs_domain([*QEMUS[case], ""], GUEST) == is_it


@given(words=st.lists(st.sampled_from(["qemu", "/x/qemu-kvm", "/qemu/sh", "-uuid", "u", ""])))
def test_keeper_and_runner_agree_on_any_command_line(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("process")
    (folder / "cmdline").write_text("\0".join(words))
    assert settings._is_qemu(folder, "u") == runs_domain(words or [""], "u")


@pytest.mark.parametrize("name", ["", "qemu", "01234567", "01234567-89AB-cdef-0123-456789abcdef "])
def test_guest_is_known_by_a_whole_uuid(held: Machine, name: str) -> None:
    assert held.refused("guest", uuid=name) == f"bad-request: {name!r} is no UUID of a guest"


def test_value_that_the_kernel_refuses_names_its_file(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (held.root / "sys/full").symlink_to("/dev/full")
    monkeypatch.setenv("BAROMETER_ROOT", str(held.root))
    with pytest.raises(OSError, match="No space left on device: '/sys/full'"):
        real.set_value("/sys/full", "1")
