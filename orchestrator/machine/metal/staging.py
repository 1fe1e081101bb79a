"""Files that a run puts onto a metal host: kernels with an initramfs for it, agents, a guest.

They are below /var/lib/barometer, with one exception: /lib/modules/RELEASE, where programs look
for a kernel's modules, is a link to them, unless the machine has its own kernel of that release.
"""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import sha256_file
from orchestrator.base.reasons import Reason
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.metal.keeper import Keeper
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import ConnectionLostError, Shell

STATE = "/var/lib/barometer"
"""Folder that exists while a run is at work on the machine, or until the changes that the run left
are put back."""
_MANY_SECONDS = 1200
_INITRAMFS_BYTES = 1 << 30
_SPARE_BYTES = 256 << 20
"""Room for an initramfs, and for the files that are needed while it is made."""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH\n"
# Prints the drivers without which the machine cannot be reached or started, a line each: those of
# its network and its disks, down to the buses that they sit on, and of its file systems. Drivers
# that are built in have no initstate, and are left out.
_DRIVERS = """
{
for device in /sys/class/net/*/device /sys/class/block/*/device; do
    place=$(readlink -f "$device") || continue
    while [ "$place" != /sys/devices ] && [ "$place" != / ]; do
        module=$(readlink "$place/driver/module") && echo "${module##*/}"
        place=${place%/*}
    done
done
for place in /sys/block/dm-*; do [ ! -e "$place" ] || echo dm_mod; done
cat /sys/block/md*/md/level 2> /dev/null | sed 's/raid[456]$/raid456/'
for kind in bonding bridge; do
    for place in /sys/class/net/*/$kind; do [ ! -e "$place" ] || echo $kind; done
done
[ ! -e /proc/net/vlan/config ] || echo 8021q
awk '$2 == "/" || $2 == "/boot" || $2 == "/usr" || $2 == "/var" {print $3}' /proc/mounts
} | while read -r name; do [ ! -e "/sys/module/$name/initstate" ] || echo "$name"; done
"""
# Prints what identifies all that the machine makes an initramfs from, besides the kernel.
_ORIGIN = """
cd /etc
for place in machine-id fstab crypttab cryptsetup-initramfs lvm mdadm mdadm.conf multipath \
        multipath.conf iscsi initramfs-tools dracut.conf dracut.conf.d modules modprobe.d udev \
        systemd/network; do
    [ ! -e "$place" ] || find "$place" -type f | sort | xargs -r sha256sum
done
tr ' ' '\\n' < /proc/cmdline | grep -E '^(root|rootflags|resume|rd\\.)' || :
readlink /sys/class/block/*/device || :
dpkg-query -W 2> /dev/null || rpm -qa | sort
"""
# Arguments: release, folder of its modules, file for the initramfs, folder to make it in.
_MAKE = """set -e
mount -t tmpfs tmpfs /lib/modules
mkdir "/lib/modules/$1"
mount --bind "$2" "/lib/modules/$1"
mkdir "$4"; export TMPDIR="$4"
if command -v mkinitramfs > /dev/null; then mkinitramfs -o "$3" "$1"
elif command -v dracut > /dev/null; then dracut --force --tmpdir "$4" --kver "$1" "$3"
else echo 'neither mkinitramfs nor dracut is installed' >&2; exit 1
fi
"""


@dataclass(frozen=True)
class Staged:
    """A kernel that is ready to be booted on the machine."""

    kernel: KernelBundle
    vmlinuz: str
    initramfs: str
    modules: str
    """Folder of its modules on the machine."""
    sha256: Mapping[str, str]
    """Digests of vmlinuz and initramfs, by their paths."""
    installed: bool
    """True if the machine has its own kernel of that release, so also its /lib/modules/RELEASE."""


def check_drivers(shell: Shell, kernel: KernelBundle) -> None:
    """Raise ScenarioError if the kernel lacks a driver or an option without which the machine does
    not start, or VFIO, or the driver of the machine's IOMMU."""
    needed = shell.run(_PATH + _DRIVERS, doing="reading the machine's drivers").stdout.split()
    missing = sorted({name for name in needed if not kernel.has_module(name)})
    if missing:
        raise ScenarioError(
            f"the kernel {kernel.release} has no {', '.join(missing)}, by which the machine finds"
            " its disks and its network",
            hint="a package such as linux-image-amd64 has them; to a kernel that is built, config"
            " can add them",
            reason=Reason.KERNEL_LACKS_MODULE,
        )
    kernel.module_closure(["vfio_pci", "vfio_iommu_type1"])
    iommus = shell.run("ls /sys/class/iommu", check=False).stdout
    for driver, option in (("dmar", "CONFIG_INTEL_IOMMU"), ("ivhd", "CONFIG_AMD_IOMMU")):
        if driver in iommus and kernel.config is not None:
            _check_option(kernel, kernel.config, option)
    if kernel.config is not None:
        _check_option(kernel, kernel.config, "CONFIG_BLK_DEV_INITRD")


def _check_option(kernel: KernelBundle, config: Path, option: str) -> None:
    if f"{option}=y" not in config.read_text("utf-8", errors="replace").splitlines():
        raise ScenarioError(
            f"the kernel {kernel.release} was built without {option}, which the machine needs",
            hint=f'config = ["{option}=y"] adds it to a kernel that is built',
            reason=Reason.KERNEL_LACKS_OPTION,
        )


def folder_of(token: int) -> str:
    """Return the folder for the files of a lease's holder; nobody else writes there."""
    return f"{STATE}/{token}"


def check_room(shell: Shell, kernels: Iterable[KernelBundle]) -> None:
    """Raise BenchError if the machine's disk has no room for the kernels with an initramfs each,
    and to make these."""
    trees = [path for k in kernels for path in (k.vmlinuz, *k.modules.rglob("*"))]
    needed = 2 * sum(path.lstat().st_size for path in trees) + _SPARE_BYTES
    answer = shell.run("df -Pk /var/lib | awk 'END {print $4}'", doing="looking for room").stdout
    if (free := int(answer) * 1024) < needed:
        raise BenchError(
            f"/var/lib has {free >> 20} MiB of room, and the kernels need {needed >> 20} MiB",
            hint="make room there", reason=Reason.DISK_FULL,
        )  # fmt: skip


def stage_kernel(shell: Shell, folder: str, kernel: KernelBundle, cache: Cache) -> Staged:
    """Put the kernel into a folder of the machine, and have the machine make an initramfs for it,
    unless the same one is cached. Raises BenchError with the last lines of the tool's output."""
    modules = f"{folder}/lib/modules/{kernel.release}"
    files: dict[str, Path | bytes] = {
        "vmlinuz": kernel.vmlinuz,
        f"lib/modules/{kernel.release}": kernel.modules,
    }
    if kernel.config is not None:  # mkinitramfs reads there which compressions the kernel knows
        files[f"lib/modules/{kernel.release}/config"] = kernel.config
    put_files(shell, folder, files)
    own = shell.run(["test", "-e", f"/lib/modules/{kernel.release}"], check=False).code == 0
    initramfs = _initramfs(shell, folder, kernel, cache)
    shell.run(
        ["sh", "-c", 'cat > "$1" && sync', "sh", f"{folder}/initramfs"],
        stdin=initramfs.read_bytes(), timeout=_MANY_SECONDS, doing="staging an initramfs",
    )  # fmt: skip
    return Staged(
        kernel, f"{folder}/vmlinuz", f"{folder}/initramfs", modules,
        {f"{folder}/vmlinuz": sha256_file(kernel.vmlinuz),
         f"{folder}/initramfs": sha256_file(initramfs)},
        installed=own,
    )  # fmt: skip


def _initramfs(shell: Shell, folder: str, kernel: KernelBundle, cache: Cache) -> Path:
    """Return an initramfs that the machine makes, or the cached one if the machine made one from
    the same content before."""
    origin = shell.run(_PATH + _ORIGIN, doing="reading what an initramfs is made from").stdout
    key = {"kind": "metal-initramfs", "schema": 1, "kernel": kernel.digest, "origin": origin}

    def build(place: Path) -> None:
        _make(shell, folder, kernel, place / "initramfs")

    return cache.entry("initramfs", key, build) / "initramfs"


def _make(shell: Shell, folder: str, kernel: KernelBundle, target: Path) -> None:
    """Make an initramfs with the machine's own tool, which sees the staged modules in
    /lib/modules."""
    release, initramfs = kernel.release, f"{folder}/made"
    shell.run(
        # in a mount namespace of its own: nobody else sees the mounts, which end with the command
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _PATH + _MAKE, "sh",
         release, f"{folder}/lib/modules/{release}", initramfs, f"{folder}/tmp"],
        timeout=_MANY_SECONDS, doing=f"making an initramfs for {release}",
    )  # fmt: skip
    _fetch(shell, initramfs, target)


def _fetch(shell: Shell, path: str, target: Path) -> None:
    """Move a file from the machine to the runner. Raises BenchError."""
    answer = shell.run(["stat", "-c", "%s", path], doing=f"reading the size of {path}").stdout
    with parsing(f"the size of {path}", answer):
        size = int(answer)
    if size > _INITRAMFS_BYTES:
        raise BenchError(
            f"{shell.name}: {path} has more than {_INITRAMFS_BYTES >> 20} MiB",
            reason=Reason.OUTPUT_FLOOD,
        )
    fetch = ["sh", "-c", 'cat "$1" && rm "$1"', "sh", path]
    try:
        with shell.stream(fetch, timeout=_MANY_SECONDS) as output, target.open("wb") as file:
            for chunk in output.chunks():
                file.write(chunk)
                if file.tell() > size:
                    break
            if file.tell() == size:
                return
            why = f"it has {size} bytes, and {file.tell()} arrived"
    except (EOFError, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the runner's own disk is full
        why = f"{type(exc).__name__}: {exc}"
    raise ConnectionLostError(
        f"{shell.name}: {path} could not be fetched: {why}", reason=Reason.HOST_SSH_LOST
    )


def put_files(shell: Shell, folder: str, files: Mapping[str, Path | bytes]) -> None:
    """Put files and folders onto the machine, by their names below `folder`, which is made if it
    is missing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            if isinstance(content, Path):
                tar.add(content.resolve(), name, filter=_give_to_root)
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    shell.run(
        ["sh", "-c", 'umask 022; mkdir -p "$1" && tar -xz -C "$1"', "sh", folder],
        stdin=buffer.getvalue(), timeout=_MANY_SECONDS, doing=f"staging {', '.join(files)}",
    )  # fmt: skip


def _give_to_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def link_modules(keeper: Keeper, staged: Staged) -> None:
    """Make /lib/modules/RELEASE a link to the staged modules, unless the machine has its own. Call
    this before the boot. Raises BenchError."""
    if not staged.installed:
        keeper.link(f"/lib/modules/{staged.kernel.release}", staged.modules)


def mount_modules(keeper: Keeper, staged: Staged) -> None:
    """Mount the staged modules over the machine's own of the same release, until changes are put
    back. Call this after the boot. Raises BenchError."""
    if staged.installed:
        keeper.mount(f"/lib/modules/{staged.kernel.release}", staged.modules)


def check_initramfs_tool(shell: Shell) -> None:
    """Raise BenchError if nothing on the machine can make an initramfs."""
    tool = shell.run(f"{_PATH}command -v mkinitramfs || command -v dracut", check=False)
    if tool.code:
        raise BenchError(
            "the machine has no program that makes an initramfs",
            hint="install initramfs-tools or dracut", reason=Reason.NO_INITRAMFS_TOOL,
        )  # fmt: skip
