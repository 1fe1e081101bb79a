"""Saved hosts are found by the content of all that a boot depends on, and by nothing less."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.cache import Cache, Draft
from orchestrator.base.errors import BenchError
from orchestrator.formats.units import GIB
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.nested import saved as room
from orchestrator.machine.nested.saved import SavedHost, SavedHosts, reserve_space
from orchestrator.machine.vm.domain import Disk, HostDomain
from orchestrator.machine.vm.hypervisor import Connection
from orchestrator.scenario.machines import EmulatedDevice, NestedHost

VERSIONS = {"qemu": "10.0.2", "libvirt": "11.3.0"}
BOOT = {"token": "0123456789ab", "boot_id": "58dcfb39-ced9-403f-9b65-0cae6c414847"}
NOT_OF_A_BOOT = {"name", "uuid", "console", "shm_names", "bar", "device", "restored"}
"""Parts of a domain that differ between boots of one host, or are plugged in later."""


def libvirt(versions: dict[str, str]) -> Connection:
    return cast(Connection, SimpleNamespace(version=lambda: versions))


class Lab:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("vmlinuz", "initramfs", "root.ext4", "modules.ext4", "payload.ext4"):
            (folder / name).write_text(name)
        self.modules = folder / "modules"
        (self.modules / "kernel").mkdir(parents=True)
        for name in ("overlay", "vfio"):
            (self.modules / f"kernel/{name}.ko").write_text(name)
        (self.modules / "modules.dep").write_text("kernel/overlay.ko:\nkernel/vfio.ko:\n")
        self.kernel = KernelBundle("7.3", folder / "vmlinuz", self.modules, None, "digest")
        self.domain = HostDomain(
            name="barometer-1", uuid="1", accel="exact", memory=GIB, cpus=1, phys_bits=46,
            kernel=folder / "vmlinuz", initramfs=folder / "initramfs",
            cmdline="root=/dev/vda barometer.token=aaaaaaaaaaaa barometer.keys=later iommu=pt",
            console=folder / "console.log",
            disks=tuple(
                Disk(folder / f"{name}.ext4", name) for name in ("root", "modules", "payload")
            ),
            viommu="intel", viommu_aw_bits=48, device="ivshmem", bar=4 * GIB,
            shm_names=("barometer-1-0",), reserve=64 * GIB,
        )  # fmt: skip
        self.cache = Cache(folder / "cache")
        self.hosts = SavedHosts(self.cache, libvirt(VERSIONS))

    def save(self, loaded: tuple[str, ...] = ("overlay",)) -> None:
        with self.hosts.saving(self.domain) as files:
            assert files is not None
            files.memory.write_text("state")
            files.add_console(b"Linux version 7.3")
            files.keep(
                **BOOT, modules=self.folder / "modules.ext4",
                loaded=room.digest_modules(self.kernel, loaded),
            )  # fmt: skip

    def find(self, **other: Any) -> SavedHost | None:
        return self.hosts.find(replace(self.domain, **other), self.kernel)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    lab = Lab(tmp_path)
    assert lab.find() is None
    lab.save()
    yield lab
    assert not [*tmp_path.glob("cache/hosts/.*")]


def test_saved_host_is_found_as_it_was_saved(lab: Lab) -> None:
    saved = lab.find()
    assert saved is not None
    assert (saved.token, saved.boot_id) == (BOOT["token"], BOOT["boot_id"])
    assert (saved.memory.read_text(), saved.console.read_text()) == ("state", "Linux version 7.3")
    assert saved.modules == lab.folder / "modules.ext4"
    assert len(saved.digest) >= 16


def test_saved_host_is_its_users_alone(lab: Lab) -> None:
    saved = lab.find()
    assert saved is not None
    assert saved.place.stat().st_mode & 0o077 == 0
    for path in (saved.memory, saved.console, saved.place / "host.json"):
        assert path == saved.memory or path.stat().st_mode & 0o077 == 0


def test_host_that_was_not_kept_is_not_found(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with lab.hosts.saving(lab.domain) as files:
        assert files is not None
        files.memory.write_text("state")
    assert lab.find() is None


def test_saved_host_is_not_saved_again(lab: Lab) -> None:
    with lab.hosts.saving(lab.domain) as files:
        assert files is None


OTHER: dict[str, Any] = {
    "accel": "tcg", "memory": 2 * GIB, "cpus": 2, "phys_bits": 48, "viommu": "virtio",
    "viommu_aw_bits": 39, "reserve": 128 * GIB, "initramfs": None,
    "cmdline": "root=/dev/vda barometer.token=aaaaaaaaaaaa barometer.keys=later",
    "name": "barometer-2", "uuid": "2", "console": Path("/elsewhere"), "bar": 32 * GIB,
    "device": "pci-testdev", "shm_names": ("barometer-2-0",), "restored": True,
}  # fmt: skip


@pytest.mark.parametrize("name", [field.name for field in fields(HostDomain)])
def test_every_part_of_a_host_is_a_part_of_its_boot_or_known_not_to_be(
    lab: Lab, name: str
) -> None:
    if name == "kernel":
        other: Any = lab.folder / "root.ext4"
    elif name == "disks":
        other = lab.domain.disks[:2]
    else:
        other = OTHER[name]
    assert (lab.find(**{name: other}) is not None) == (name in NOT_OF_A_BOOT)


def test_number_of_devices_is_a_part_of_a_boot(lab: Lab) -> None:
    assert lab.find(shm_names=("barometer-1-0", "barometer-1-1")) is None


def test_token_is_no_part_of_a_boot_and_the_words_around_it_are(lab: Lab) -> None:
    cmdline = lab.domain.cmdline
    assert lab.find(cmdline=cmdline.replace("aaaaaaaaaaaa", "bbbbbbbbbbbb")) is not None
    assert lab.find(cmdline=cmdline + " quiet") is None


@pytest.mark.parametrize("name", ["vmlinuz", "initramfs", "root.ext4", "payload.ext4"])
def test_place_of_a_file_is_no_part_of_a_boot_and_its_content_is(lab: Lab, name: str) -> None:
    moved = lab.folder / "moved"
    shutil.copyfile(lab.folder / name, moved)

    def at(path: Path) -> dict[str, Any]:
        disks = tuple(
            replace(disk, path=path) if disk.path.name == name else disk
            for disk in lab.domain.disks
        )
        parts = {"vmlinuz": {"kernel": path}, "initramfs": {"initramfs": path}}
        return parts.get(name, {"disks": disks})

    assert lab.find(**at(moved)) is not None
    moved.write_text("other")
    assert lab.find(**at(moved)) is None


def change(lab: Lab, name: str, content: str) -> None:
    (lab.folder / name).write_text(content)


@pytest.mark.parametrize(
    ("happens", "is_found"),
    [
        # another arm's: its own disk is mounted over the saved one's
        (lambda lab: change(lab, "modules/kernel/vfio.ko", "rebuilt"), True),
        (lambda lab: change(lab, "modules/kernel/overlay.ko", "rebuilt"), False),
        (lambda lab: (lab.modules / "kernel/overlay.ko").unlink(), False),
        # the saved host has that disk mounted
        (lambda lab: change(lab, "modules.ext4", "other"), False),
        (lambda lab: (lab.folder / "modules.ext4").unlink(), False),
    ],
)
def test_modules_that_were_loaded_when_it_was_saved_must_be_the_same(
    lab: Lab, happens: Callable[[Lab], object], is_found: bool
) -> None:
    happens(lab)
    assert (lab.find() is not None) == is_found


def test_other_arm_with_a_disk_of_its_own_finds_the_same_host(lab: Lab) -> None:
    change(lab, "own.ext4", "own modules")
    disks = (lab.domain.disks[0], Disk(lab.folder / "own.ext4", "modules"), lab.domain.disks[2])
    saved = lab.find(disks=disks)
    assert saved is not None
    assert saved.modules == lab.folder / "modules.ext4"


@pytest.mark.parametrize("versions", [{**VERSIONS, "qemu": "10.0.3"}, {}])
def test_other_emulator_finds_nothing(lab: Lab, versions: dict[str, str]) -> None:
    assert SavedHosts(lab.cache, libvirt(versions)).find(lab.domain, lab.kernel) is None


def test_rebuilt_emulator_of_the_same_version_finds_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.folder / "bin").mkdir()
    emulator = lab.folder / "bin/qemu-system-x86_64"
    emulator.write_text("rebuilt")
    emulator.chmod(0o755)
    monkeypatch.setenv("PATH", f"{emulator.parent}:{os.environ['PATH']}")
    assert SavedHosts(lab.cache, libvirt(VERSIONS)).find(lab.domain, lab.kernel) is None


def test_other_cpu_finds_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = room._read_cpu()
    assert "flags" in flags
    assert "MHz" not in flags  # it changes all the time
    monkeypatch.setattr(room, "_read_cpu", lambda: flags.replace("sse2", ""))
    assert SavedHosts(lab.cache, libvirt(VERSIONS)).find(lab.domain, lab.kernel) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", json.dumps({**BOOT, "modules": 1})])
def test_damaged_record_finds_nothing(lab: Lab, text: str) -> None:
    saved = lab.find()
    assert saved is not None
    record = saved.place / "host.json"
    record.chmod(0o600)
    record.write_text(text)
    assert lab.find() is None
    # even if its damage is not noticed
    entry = saved.place / "entry.json"
    entry.write_text(json.dumps({"files": {}}))
    assert lab.find() is None


def test_damaged_state_finds_nothing_and_is_saved_anew(lab: Lab) -> None:
    saved = lab.find()
    assert saved is not None
    saved.memory.chmod(0o600)
    saved.memory.write_text("stat3")
    assert lab.find() is None
    lab.save()
    assert lab.find() is not None


def test_removed_host_is_not_found(lab: Lab) -> None:
    saved = lab.find()
    assert saved is not None
    lab.hosts.remove(saved)
    assert lab.find() is None


def test_nothing_is_saved_where_it_may_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=lab.domain.memory - 1))
    with lab.hosts.saving(lab.domain) as files:
        assert files is None
    assert not [*tmp_path.glob("cache/hosts/*/")]


def test_old_hosts_make_room_for_new_ones(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MOST_BYTES", 0)
    first = lab.domain
    lab.domain = replace(first, memory=2 * GIB)
    lab.save()
    assert lab.hosts.find(first, lab.kernel) is None


def test_full_disk_is_an_error_that_names_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Draft, "keep", full)
    with pytest.raises(BenchError, match="No space left"):
        lab.save()
    assert [path for path in tmp_path.glob("cache/hosts/*") if path.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("bits", "bar", "count", "reserve"),
    [
        (46, 4 * GIB, 1, 64 * GIB), (46, 32 * GIB, 4, 64 * GIB), (46, 256 * GIB, 1, 256 * GIB),
        (36, 4 * GIB, 1, 4 * GIB), (39, 4 * GIB, 1, 64 * GIB), (39, 4 * GIB, 2, 4 * GIB),
    ],
)  # fmt: skip
def test_space_is_reserved_for_most_bars_where_there_is_room(
    bits: int, bar: int, count: int, reserve: int
) -> None:
    size = f"{bar // GIB}GiB"
    device = EmulatedDevice.model_validate({"kind": "ivshmem", "bar": size, "count": count})
    assert reserve_space(NestedHost(phys_bits=bits), device) == reserve
