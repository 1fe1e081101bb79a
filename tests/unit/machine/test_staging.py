"""Files for a metal host: the scripts run here, on a folder that looks like its root."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.metal.keeper import Keeper
from orchestrator.machine.metal.staging import (
    Staged,
    check_drivers,
    check_initramfs_tool,
    check_room,
    folder_of,
    link_modules,
    mount_modules,
    put_files,
    stage_kernel,
)
from tests.unit.hosts import HostShell
from tests.unit.machine.metals import bundle, programs

RELEASE = "6.12.1-x"
FOLDER = folder_of(7)
STAGED, AGAIN = f"{FOLDER}/baseline", f"{FOLDER}/candidate"


class Root:
    """A machine's files: an NVMe with ext4 on PCI, a NIC behind a bridge, and a bond."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.shell = HostShell(folder)
        programs(folder)
        self.bus, self.nic = "sys/devices/pci0000:00", "0000:01:00.0/virtio0"
        self.file("etc/machine-id", "5e1f\n")
        self.file("etc/fstab", "/dev/nvme0n1p1 / ext4\n")
        self.file("proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p1 ro\n")
        self.file("proc/mounts", "/dev/nvme0n1p1 / ext4 rw 0 0\ndata /data xfs rw 0 0\n")
        (folder / "lib/modules").mkdir(parents=True)
        self.driven("0000:02:00.0", "nvme")
        self.driven("0000:01:00.0", "virtio_pci")
        self.driven(self.nic, "virtio_net")
        self.link("sys/class/block/nvme0n1/device", f"{self.bus}/0000:02:00.0/nvme/nvme0")
        self.link("sys/class/net/eth0/device", f"{self.bus}/{self.nic}")
        (folder / "sys/class/net/bond0").mkdir()
        for name in ("nvme", "virtio_pci", "virtio_net", "ext4", "xfs"):
            self.file(f"sys/module/{name}/initstate", "live\n")

    def file(self, name: str, content: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def link(self, name: str, target: str) -> None:
        (self.path / target).mkdir(parents=True, exist_ok=True)
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(self.path / target)

    def driven(self, device: str, module: str) -> None:
        self.link(f"sys/bus/drivers/{module}/module", f"sys/module/{module}")
        self.link(f"{self.bus}/{device}/driver", f"sys/bus/drivers/{module}")

    def log(self) -> str:
        path = self.path / "log"
        return path.read_text() if path.exists() else ""

    def made(self) -> int:
        """Return how often an initramfs was made."""
        return sum("unshare" in command for command in self.shell.ran)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path / "root")


def kernel(folder: Path, *modules: str, config: str | None = None, **more: Any) -> KernelBundle:
    """Make a kernel with the modules that VFIO needs, and these."""
    made = bundle(folder, RELEASE, **more)
    wanted = ("vfio/pci/vfio-pci", "vfio/vfio_iommu_type1", *modules)
    lines = [f"kernel/drivers/{name}.ko.xz:\n" for name in wanted]
    (made.modules / "modules.dep").write_text("".join(lines))
    if config is None:
        return made
    path = folder / "config"
    path.write_text(config)
    return replace(made, config=path)


ALL = ("nvme/host/nvme", "virtio/virtio_pci", "net/virtio_net", "fs/ext4")
CONFIG = "CONFIG_BLK_DEV_INITRD=y\nCONFIG_AMD_IOMMU=y\nCONFIG_INTEL_IOMMU=y\n"


# -- what a kernel must have -----------------------------------------------------------------


def test_kernel_with_the_drivers_of_the_machine_is_taken(root: Root, tmp_path: Path) -> None:
    check_drivers(root.shell, kernel(tmp_path / "k", *ALL, config=CONFIG))
    check_drivers(root.shell, kernel(tmp_path / "no-config", *ALL))


@pytest.mark.parametrize(
    ("lacking", "name"),
    [(0, "nvme"), (1, "virtio_pci"), (2, "virtio_net"), (3, "ext4")],
)
def test_kernel_without_a_driver_of_disk_network_bus_or_root_is_refused(
    root: Root, tmp_path: Path, lacking: int, name: str
) -> None:
    modules = [module for number, module in enumerate(ALL) if number != lacking]
    with pytest.raises(ScenarioError) as caught:
        check_drivers(root.shell, kernel(tmp_path / "k", *modules))
    assert caught.value.message == (
        f"the kernel {RELEASE} has no {name}, by which the machine finds its disks and its network"
    )
    assert caught.value.reason == "kernel-lacks-module"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("file", "content", "module"),
    [
        ("sys/block/dm-0/size", "8\n", "dm_mod"),
        ("sys/block/md0/md/level", "raid1\n", "raid1"),
        ("sys/block/md0/md/level", "raid6\n", "raid456"),
        ("sys/class/net/bond0/bonding/mode", "802.3ad\n", "bonding"),
        ("sys/class/net/br0/bridge/stp_state", "0\n", "bridge"),
        ("proc/net/vlan/config", "eth0.7 | 7 | eth0\n", "8021q"),
        ("proc/mounts", "/dev/nvme0n1p2 /boot vfat rw 0 0\n", "vfat"),
        ("proc/mounts", "/dev/nvme0n1p2 /usr squashfs rw 0 0\n", "squashfs"),
        ("proc/mounts", "/dev/nvme0n1p2 /var btrfs rw 0 0\n", "btrfs"),
    ],
)
def test_kernel_without_what_the_machine_stands_on_is_refused(
    root: Root, tmp_path: Path, file: str, content: str, module: str
) -> None:
    root.file(file, content)
    check_drivers(root.shell, kernel(tmp_path / "own", *ALL))  # the machine has it built in
    root.file(f"sys/module/{module}/initstate", "live\n")
    with pytest.raises(ScenarioError, match=f"has no {module}, by which"):
        check_drivers(root.shell, kernel(tmp_path / "k", *ALL))
    check_drivers(root.shell, kernel(tmp_path / "other", *ALL, f"x/{module}"))


def test_what_the_machines_own_kernel_has_built_in_is_not_asked_for(
    root: Root, tmp_path: Path
) -> None:
    for name in ("nvme", "virtio_pci", "virtio_net", "ext4"):
        (root.path / f"sys/module/{name}/initstate").unlink()
    check_drivers(root.shell, kernel(tmp_path / "k"))


def test_all_that_is_missing_is_named_once(root: Root, tmp_path: Path) -> None:
    root.link("sys/class/net/eth1/device", f"{root.bus}/{root.nic}")
    with pytest.raises(ScenarioError, match="has no ext4, nvme, virtio_net, virtio_pci, by which"):
        check_drivers(root.shell, kernel(tmp_path / "k"))


def test_machine_without_disks_and_network_of_its_own_needs_nothing(tmp_path: Path) -> None:
    mounts = tmp_path / "root/proc/mounts"
    mounts.parent.mkdir(parents=True)
    mounts.write_text("tmpfs / tmpfs rw 0 0\n")
    check_drivers(HostShell(tmp_path / "root"), kernel(tmp_path / "k"))


def test_kernel_without_vfio_is_refused(root: Root, tmp_path: Path) -> None:
    without = kernel(tmp_path / "k")
    (without.modules / "modules.dep").write_text("".join(f"kernel/{m}.ko:\n" for m in ALL))
    with pytest.raises(ScenarioError, match="no module vfio_pci"):
        check_drivers(root.shell, without)


@pytest.mark.parametrize(
    ("iommu", "option"),
    [
        ("dmar0", "CONFIG_INTEL_IOMMU"),
        ("ivhd0", "CONFIG_AMD_IOMMU"),
        ("", "CONFIG_BLK_DEV_INITRD"),
    ],
)
def test_kernel_that_was_built_without_what_the_machine_needs_is_refused(
    root: Root, tmp_path: Path, iommu: str, option: str
) -> None:
    if iommu:
        (root.path / "sys/class/iommu" / iommu).mkdir(parents=True)
    config = CONFIG.replace(f"{option}=y", f"# {option} is not set")
    with pytest.raises(ScenarioError) as caught:
        check_drivers(root.shell, kernel(tmp_path / "k", *ALL, config=config))
    assert option in caught.value.message
    assert (caught.value.reason, caught.value.hint) == (
        "kernel-lacks-option", f'config = ["{option}=y"] adds it to a kernel that is built',
    )  # fmt: skip


def test_iommu_of_another_maker_is_not_asked_for(root: Root, tmp_path: Path) -> None:
    (root.path / "sys/class/iommu/dmar0").mkdir(parents=True)
    config = CONFIG.replace("CONFIG_AMD_IOMMU=y", "")
    check_drivers(root.shell, kernel(tmp_path / "k", *ALL, config=config))


@pytest.mark.parametrize("tool", ["mkinitramfs", "dracut"])
def test_one_tool_for_an_initramfs_is_enough(root: Root, tool: str) -> None:
    (root.path / "programs/mkinitramfs").rename(root.path / "programs" / tool)
    check_initramfs_tool(root.shell)


def test_machine_without_a_tool_for_an_initramfs_is_refused(root: Root) -> None:
    (root.path / "programs/mkinitramfs").unlink()
    with pytest.raises(BenchError, match="no program that makes an initramfs") as caught:
        check_initramfs_tool(root.shell)
    assert caught.value.hint == "install initramfs-tools or dracut"


# -- files -----------------------------------------------------------------------------------


def test_files_and_folders_are_roots_with_their_modes(root: Root, tmp_path: Path) -> None:
    sent: list[bytes] = []
    real = root.shell.run

    def run(argv: Any, *, stdin: bytes = b"", **how: Any) -> Any:
        sent.append(stdin)
        return real(argv, stdin=stdin, **how)

    root.shell.run = run  # type: ignore[method-assign]
    folder = tmp_path / "agents"
    (folder / "keeper").mkdir(parents=True)
    (folder / "keeper/verbs.py").write_text("pass\n")
    program = folder / "run"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(program, 1000, 1000)
    (tmp_path / "link").symlink_to(folder)
    put_files(root.shell, STAGED, {"agents": tmp_path / "link", "guest/cmdline": b"quiet\n"})
    place = root.path / STAGED[1:]
    assert (place / "agents/keeper/verbs.py").read_text() == "pass\n"
    assert not (place / "agents").is_symlink()
    assert (place / "agents/run").stat().st_mode & 0o777 == 0o755
    assert (place / "guest/cmdline").read_bytes() == b"quiet\n"
    listed = subprocess.run(
        ["tar", "-tzv", "--numeric-owner"], input=sent[0], capture_output=True, check=True
    ).stdout.decode()
    assert len(listed.splitlines()) == 5
    assert all(line.split()[1] == "0/0" for line in listed.splitlines())


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.binary(max_size=2000)))
def test_any_content_arrives_as_it_is(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        put_files(HostShell(Path(name)), STAGED, {**files})
        place = Path(name) / STAGED[1:]
        assert {p.name: p.read_bytes() for p in place.iterdir()} == files


def test_files_that_cannot_be_put_are_named(root: Root) -> None:
    root.file(STAGED[1:], "in the way\n")
    with pytest.raises(BenchError, match="staging one, two failed"):
        put_files(root.shell, STAGED, {"one": b"", "two": b""})


def test_files_are_compressed_on_their_way(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    real = root.shell.run

    def run(argv: Any, *, stdin: bytes = b"", **how: Any) -> Any:
        sent.append(len(stdin))
        return real(argv, stdin=stdin, **how)

    monkeypatch.setattr(root.shell, "run", run)
    put_files(root.shell, STAGED, {"vfio.ko": b"module" * 100_000})
    assert sum(sent) < 10_000
    assert (root.path / STAGED[1:] / "vfio.ko").stat().st_size == 600_000


def test_disk_must_have_room_for_the_kernels_twice_and_more(root: Root, tmp_path: Path) -> None:
    kernels = [kernel(tmp_path / name) for name in ("one", "two")]
    for each in kernels:
        with (each.modules / "vfio.ko").open("wb") as file:
            file.truncate(100 << 20)
    root.file("room", f"{660 << 10}\n")  # includes room for the rest of the kernels
    check_room(root.shell, kernels)
    root.file("room", f"{655 << 10}\n")
    with pytest.raises(BenchError) as caught:
        check_room(root.shell, kernels)
    assert caught.value.reason == "disk-full"
    assert caught.value.message == "/var/lib has 655 MiB of room, and the kernels need 656 MiB"
    check_room(root.shell, kernels[:1])


# -- kernels ---------------------------------------------------------------------------------


def test_kernel_is_staged_with_its_modules_and_an_initramfs_of_them(
    root: Root, tmp_path: Path
) -> None:
    bundled = kernel(tmp_path / "k", config=CONFIG)
    staged = stage_kernel(root.shell, STAGED, bundled, Cache(tmp_path / "cache"))
    folder = root.path / STAGED[1:]
    assert staged.vmlinuz == f"{STAGED}/vmlinuz"
    assert staged.modules == f"{STAGED}/lib/modules/{RELEASE}"
    assert (folder / "vmlinuz").read_bytes() == bundled.vmlinuz.read_bytes()
    modules = folder / "lib/modules" / RELEASE
    assert (modules / "modules.order").read_text() == "kernel/fs/ext4.ko\n"
    assert (modules / "config").read_text() == CONFIG
    # made by the tool, which saw the staged modules as its own, and the machine's id
    assert (folder / "initramfs").read_text() == "kernel/fs/ext4.ko\n5e1f\n"
    assert not (folder / "made").exists()
    for path in (staged.vmlinuz, staged.initramfs):
        content = (root.path / path[1:]).read_bytes()
        assert staged.sha256[path] == hashlib.sha256(content).hexdigest()
    assert not staged.installed
    assert list((root.path / "lib/modules").iterdir()) == []


def test_dracut_makes_the_initramfs_where_there_is_nothing_else(
    root: Root, tmp_path: Path
) -> None:
    (root.path / "programs/mkinitramfs").unlink()
    dracut = root.path / "programs/dracut"
    dracut.write_text(
        '#!/bin/sh\n[ "$1 $2 $4" = "--force --tmpdir --kver" ] && echo "of $5 in $3" > "$6"\n'
    )
    dracut.chmod(0o755)
    stage_kernel(root.shell, STAGED, kernel(tmp_path / "k"), Cache(tmp_path / "cache"))
    made = (root.path / STAGED[1:] / "initramfs").read_text()
    assert made == f"of {RELEASE} in {root.path}{STAGED}/tmp\n"


def test_initramfs_is_made_once_of_the_same_things(root: Root, tmp_path: Path) -> None:
    cache, bundled = Cache(tmp_path / "cache"), kernel(tmp_path / "k")
    first = stage_kernel(root.shell, STAGED, bundled, cache)
    second = stage_kernel(root.shell, AGAIN, bundled, cache)
    assert root.made() == 1
    assert first.sha256[first.initramfs] == second.sha256[second.initramfs]
    assert (root.path / second.initramfs[1:]).read_text() == "kernel/fs/ext4.ko\n5e1f\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("etc/fstab", "/dev/nvme0n1p2 / ext4\n"),
        ("etc/machine-id", "another\n"),
        ("etc/initramfs-tools/modules", "igb\n"),
        ("etc/dracut.conf.d/x.conf", "x\n"),
        ("etc/modprobe.d/x.conf", "options igb x=1\n"),
        ("etc/systemd/network/10-lan.link", "[Match]\n"),
        ("etc/crypttab", "root UUID=7\n"),
        ("etc/lvm/lvm.conf", "devices {}\n"),
        ("etc/mdadm/mdadm.conf", "ARRAY /dev/md0\n"),
        ("etc/mdadm.conf", "ARRAY /dev/md0\n"),
        ("etc/multipath/wwids", "/36/\n"),
        ("etc/iscsi/initiatorname.iscsi", "InitiatorName=x\n"),
        ("etc/udev/rules.d/70-net.rules", "x\n"),
        ("etc/dracut.conf", "x\n"),
        ("packages", "busybox 1.38\n"),
        ("proc/cmdline", "root=UUID=7 ro\n"),
    ],
)
def test_initramfs_is_made_anew_of_other_things(
    root: Root, tmp_path: Path, name: str, content: str
) -> None:
    cache, bundled = Cache(tmp_path / "cache"), kernel(tmp_path / "k")
    stage_kernel(root.shell, STAGED, bundled, cache)
    root.file(name, content)
    stage_kernel(root.shell, AGAIN, bundled, cache)
    assert root.made() == 2


def test_initramfs_is_made_anew_for_another_kernel_and_not_for_another_token(
    root: Root, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    stage_kernel(root.shell, STAGED, kernel(tmp_path / "one"), cache)
    root.file("proc/cmdline", "BOOT_IMAGE=/x root=/dev/nvme0n1p1 ro barometer.token=7 quiet\n")
    stage_kernel(root.shell, AGAIN, kernel(tmp_path / "other" / "one"), cache)
    assert root.made() == 1
    stage_kernel(root.shell, f"{FOLDER}/two", kernel(tmp_path / "two"), cache)
    assert root.made() == 2


def test_initramfs_that_cannot_be_made_is_said_with_its_last_words(
    root: Root, tmp_path: Path
) -> None:
    tool = root.path / "programs/mkinitramfs"
    tool.write_text("#!/bin/sh\necho 'no space left' >&2\nexit 1\n")
    cache = Cache(tmp_path / "cache")
    with pytest.raises(BenchError, match=f"making an initramfs for {RELEASE} failed") as caught:
        stage_kernel(root.shell, STAGED, kernel(tmp_path / "k"), cache)
    assert "no space left" in caught.value.evidence
    assert not any(path.is_dir() for path in (tmp_path / "cache/initramfs").iterdir())
    tool.write_text("#!/bin/sh\necho fine > $2\n")
    stage_kernel(root.shell, AGAIN, kernel(tmp_path / "again" / "k"), cache)


@pytest.mark.parametrize("said", ["", "exit 0", "echo a.b", "yes", "kill -9 $$"])
def test_initramfs_that_arrives_otherwise_is_not_kept(
    root: Root, tmp_path: Path, said: str
) -> None:
    cat = root.path / "programs/cat"
    cat.write_text(
        f'#!/bin/sh\ncase "$1" in */made) ;; *) exec /bin/cat "$@" ;; esac\n{said}\nexit 1\n'
    )
    cat.chmod(0o755)
    with pytest.raises(BenchError, match="could not be fetched") as caught:
        staged(root, tmp_path)
    assert caught.value.reason == "host-ssh-lost"
    assert not any(path.is_dir() for path in (tmp_path / "cache/initramfs").iterdir())


def test_initramfs_beyond_its_limit_is_refused(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.machine.metal.staging._INITRAMFS_BYTES", 3)
    with pytest.raises(BenchError, match="has more than") as caught:
        staged(root, tmp_path)
    assert caught.value.reason == "output-flood"


def test_large_initramfs_arrives_as_it_is(root: Root, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    root.file("content", "")
    (root.path / "content").write_bytes(content)
    tool = root.path / "programs/mkinitramfs"
    tool.write_text('#!/bin/sh\ncat "$ROOT/content" > $2\n')
    folder = root.path / staged(root, tmp_path).initramfs[1:]
    assert folder.read_bytes() == content


# -- /lib/modules ----------------------------------------------------------------------------


def staged(root: Root, tmp_path: Path) -> Staged:
    return stage_kernel(root.shell, STAGED, kernel(tmp_path / "k"), Cache(tmp_path / "cache"))


class Asked(Keeper):
    """A keeper that records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def link(self, path: str, target: str) -> None:
        self.asked.append(("link", path, target))

    def mount(self, path: str, source: str) -> None:
        self.asked.append(("mount", path, source))


@pytest.mark.parametrize("has_it", [False, True])
def test_modules_are_linked_or_mounted_over_those_of_the_machines_own(
    root: Root, tmp_path: Path, has_it: bool
) -> None:
    if has_it:
        root.file(f"lib/modules/{RELEASE}/modules.dep", "the machine's own\n")
    keeper, ready = Asked(), staged(root, tmp_path)
    assert ready.installed is has_it
    link_modules(keeper, ready)
    mount_modules(keeper, ready)
    how = "mount" if has_it else "link"
    assert keeper.asked == [(how, f"/lib/modules/{RELEASE}", f"{STAGED}/lib/modules/{RELEASE}")]
