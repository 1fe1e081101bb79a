"""A made-up machine: a folder that looks like its root, and programs that act on that folder as
the real ones act on a machine. `tee` does what only a kernel does on a write to sysfs."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from keeper import verbs
from keeper.journaling import records
from keeper.steps import Steps

OWNER = {"runner": "ci7", "user": "lab", "pid": 4711, "what": "nightly.toml"}
RELEASE, VERSION = "6.12.107-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.12.107-1"
GPU, NIC = "0000:3b:00.0", "0000:04:00.0"
THP = "/sys/kernel/mm/transparent_hugepage/defrag"
HUGE = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
GRUBENV = "# GRUB Environment Block\nsaved_entry=debian\n"
EFI = "/sys/firmware/efi/efivars"
LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
KERNEL, INITRD = b"MZ, a kernel" * 100, b"an initramfs" * 100

PROGRAMS = {
    # adds the module and its dependencies to /proc/modules; the latest loaded is first
    "modprobe": """
        case $1 in
        --show-depends)
            case $2 in
            vfio-pci) set -- iommufd vfio vfio-pci-core vfio-pci ;;
            vfio_iommu_type1) set -- iommufd vfio vfio_iommu_type1 ;;
            kvm) echo "builtin kvm"; exit 0 ;;
            dm_mod) [ -e "$ROOT/has-dm" ] || exit 1; set -- dm-mod ;;
            *) echo "modprobe: FATAL: Module $2 not found" >&2; exit 1 ;;
            esac
            for m; do echo "insmod /lib/modules/6.12/kernel/$m.ko.xz "; done ;;
        *)
            "$0" --show-depends "$1" | while read -r verb path; do
                [ "$verb" = insmod ] || continue
                m=${path##*/}; m=$(echo "${m%.ko*}" | tr - _)
                grep -q "^$m " "$ROOT/proc/modules" && continue
                { echo "$m 4096 0 - Live 0x0"; cat "$ROOT/proc/modules"; } > "$ROOT/proc/new"
                mv "$ROOT/proc/new" "$ROOT/proc/modules"
                [ "$m" != vfio_pci ] || mkdir -p "$ROOT/sys/bus/pci/drivers/vfio-pci"
            done ;;
        esac""",
    "rmmod": """
        [ ! -e "$ROOT/busy-$1" ] || { echo "rmmod: ERROR: Module $1 is in use" >&2; exit 1; }
        sed -i "/^$1 /d" "$ROOT/proc/modules"
        [ "$1" != vfio_pci ] || rmdir "$ROOT/sys/bus/pci/drivers/vfio-pci" """,
    "tee": """
        read -r value || exit 0
        folder=${1%/*}
        bound() { ln -s "../../drivers/$1" "$ROOT/sys/bus/pci/devices/$value/driver"; }
        case $1 in
        */unbind) rm "$ROOT/sys/bus/pci/devices/$value/driver" ;;
        */drivers_probe)
            override=$(cat "$ROOT/sys/bus/pci/devices/$value/driver_override")
            [ -e "$ROOT/shy" ] || bound "$override" ;;
        */bind) bound "${folder##*/}" ;;
        *) echo "tee: $1: Invalid argument" >&2; exit 1 ;;
        esac""",
    "kexec": """
        echo "kexec $*" >> "$ROOT/log"
        case "$1" in
        -s) [ ! -e "$ROOT/unsigned" ] || { echo "Permission denied" >&2; exit 255; } ;;
        esac
        case "$*" in
        *-l*) echo 1 > "$ROOT/sys/kernel/kexec_loaded" ;;
        -u) echo 0 > "$ROOT/sys/kernel/kexec_loaded" ;;
        esac""",
    "grub-reboot": """
        read -r head < "$ROOT/boot/grub/grubenv"
        [ "$head" = "# GRUB Environment Block" ] || exit 1
        sed -i /^next_entry=/d "$ROOT/boot/grub/grubenv"
        echo "next_entry=$1" >> "$ROOT/boot/grub/grubenv" """,
    "grub-editenv": """
        read -r head < "$1"
        [ "$head" = "# GRUB Environment Block" ] ||
            { echo "grub-editenv: error: invalid environment block." >&2; exit 1; }
        sed -i /^next_entry=/d "$1"
        case $2 in set) echo "$3" >> "$1" ;; esac""",
    "grub-probe": """
        case $1 in
        --target=partmap) echo gpt ;;
        --target=fs) echo ext2 ;;
        --target=fs_uuid) echo 5e1f-uuid ;;
        --target=abstraction) [ ! -e "$ROOT/abstraction" ] || /usr/bin/cat "$ROOT/abstraction" ;;
        esac""",
    "grub-mkrelpath": 'echo "${1#"$ROOT"}"',
    # efivarfs: four bytes of attributes, UTF-16. The first entry is the default.
    "bootctl": """
        oneshot="$ROOT/$EFI/LoaderEntryOneShot-$LOADER"
        entries="$ROOT/boot/efi/loader/entries"
        case $1 in
        --print-boot-path) echo /boot/efi ;;
        set-oneshot)
            rm -f "$oneshot"
            [ -z "$2" ] || { printf '\\7\\0\\0\\0'; printf '%s\\0' "$2" | iconv -t UTF-16LE; } \
                > "$oneshot" ;;
        list)
            mark=" (default)"
            { grep -ls ^sort-key "$entries"/*; grep -Ls ^sort-key "$entries"/* | sort -r; } |
            while read -r entry; do
                echo "        title: $(sed -n 's/^title *//p' "$entry")$mark (not reported/new)"
                mark=
            done ;;
        esac""",
    "systemd-run": 'echo "systemd-run $*" >> "$ROOT/log"',
    "systemctl": """
        echo "systemctl $*" >> "$ROOT/log"
        [ "$1" != is-system-running ] || cat "$ROOT/running" """,
    "mkinitramfs": "",
    # the mounted folder is the same in both places
    "mount": """
        echo "mount $*" >> "$ROOT/log"
        mv "$3" "$3.under" && ln -s "$2" "$3" """,
    "umount": """
        echo "umount $*" >> "$ROOT/log"
        rm "$2" && mv "$2.under" "$2" """,
}
_HEAD = f"PATH=/usr/bin:/bin EFI={EFI} LOADER={LOADER}"


class Machine:
    """A machine that a runner uses. `ask` is what a runner does; the other methods happen to the
    machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.token = 0
        for name, script in PROGRAMS.items():
            program = self.file(f"/fakes/{name}", f"#!/bin/sh\n{_HEAD}\n{script}\n")
            program.chmod(0o755)
        self.file("/log", "")
        (root / "var/lib").mkdir(parents=True)
        (root / "etc/systemd/system/sysinit.target.wants").mkdir(parents=True)
        (root / "lib/modules" / RELEASE).mkdir(parents=True)
        self.file("/boot/grub/grub.cfg", "set default=${next_entry}\nsource custom.cfg\n")
        self.file("/boot/grub/grubenv", GRUBENV)
        self.file("/boot/grub/custom.cfg", "# the admin's own\n", 0o644)
        self.file(f"/boot/vmlinuz-{RELEASE}", "its own kernel")
        self.file("/boot/efi/loader/entries/debian.conf", "title Debian\nsort-key debian\n")
        self.power_on()

    def power_on(self) -> None:
        """Recreate what a boot of the machine's own kernel recreates. The boot loaders forget the
        kernel for the next boot."""
        for folder in ("sys", "proc", "run"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for under in (self.root / "lib/modules").glob("*.under"):
            under.with_suffix("").unlink()
            under.rename(under.with_suffix(""))
        self.boots()
        self.file("/proc/modules", "iommufd 4096 0 - Live 0x0\nigb 4096 0 - Live 0x0\n")
        self.file("/proc/self/mounts", "/dev/vda1 / ext4 rw 0 0\n/dev/vda2 /boot ext4 rw 0 0\n")
        self.file(THP, "defer\n")
        self.file(HUGE, "0\n")
        self.file("/sys/kernel/kexec_loaded", "0\n")
        self.function(GPU, driver=None)
        self.function(NIC, driver="igb")
        (self.root / "run/systemd/system").mkdir(parents=True)
        info = "\0".join("systemd-boot 257")
        self.file(f"{EFI}/LoaderInfo-{LOADER}", f"\6\0\0\0{info}\0")
        self.file(f"{EFI}/LoaderFeatures-{LOADER}", "\6\0\0\0\x7f" + "\0" * 7)
        self.file("/boot/grub/grubenv", GRUBENV)

    def file(self, path: str, content: str, mode: int = 0o644) -> Path:
        there = self.root / path[1:]
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content.encode("latin-1"))
        there.chmod(mode)
        return there

    def text(self, path: str) -> str:
        return (self.root / path[1:]).read_text()

    def boots(self, release: str = RELEASE, token: str = "") -> None:
        """Set the kernel's identity after a boot. A kernel of barometer's has a `token`."""
        word = f" barometer.token={token}" if token else ""
        self.file("/proc/cmdline", f"BOOT_IMAGE=/vmlinuz-{release} ro console=ttyS0{word}\n")
        self.file("/proc/sys/kernel/osrelease", f"{release}\n")
        self.file("/proc/sys/kernel/version", f"{VERSION}\n")
        self.file("/proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")

    def function(self, address: str, driver: str | None) -> None:
        folder = f"/sys/bus/pci/devices/{address}"
        self.file(f"{folder}/driver_override", "(null)\n")
        self.file(f"{folder}/config", "\xde\x10\x30\x23\x02\x04" + "\0" * 58)
        self.file(f"{folder}/power/control", "on\n")
        if driver:
            (self.root / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True)
            (self.root / f"{folder[1:]}/driver").symlink_to(f"../../drivers/{driver}")

    def driver(self, address: str) -> str | None:
        link = self.root / f"sys/bus/pci/devices/{address}/driver"
        return link.readlink().name if link.is_symlink() else None

    def image(self) -> dict[str, str]:
        """Stage images and return them as a request to `boot` names them."""
        facts = {}
        for name, content in (("kernel", KERNEL), ("initrd", INITRD)):
            path = self.root / "var/lib/barometer" / name
            path.write_bytes(content)
            facts[name] = f"/var/lib/barometer/{name}"
            facts[f"{name}_sha256"] = hashlib.sha256(content).hexdigest()
        return facts

    def ask(self, verb: str, **request: Any) -> dict[str, Any]:
        return verbs.answer({"verb": verb, "token": self.token, **request})

    def acquire(self, **changes: Any) -> dict[str, Any]:
        asked = {"resources": ["machine"], "owner": OWNER, "ttl": 60.0, "takeover": 0, **changes}
        answer = self.ask("acquire", **asked)
        self.token = answer.get("token", self.token)
        return answer

    def done(self, verb: str, **request: Any) -> dict[str, Any]:
        """Ask for a verb that must not be refused."""
        answer = self.ask(verb, **request)
        assert "refused" not in answer, answer
        return answer

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Put a file as one step of a verb. Raises RefusedError."""
        encoded = base64.b64encode(content).decode()
        Steps(self.token).take("put", path=path, content_base64=encoded, mode=mode)

    def refused(self, verb: str, **request: Any) -> str:
        """Ask for a verb that must be refused, and return the reason and the message."""
        answer = self.ask(verb, **request)
        return f"{answer['refused']}: {answer['message']}"

    def journal(self) -> list[str]:
        return [entry["kind"] for entry in self.done("status")["journal"]]

    def all(self) -> dict[str, tuple[int, bytes]]:
        """Return every file, folder and link with its mode and content, as a user of the machine
        would see them: the kernel shows an empty driver_override as (null). The content of a lease
        is left out, because it changes with the clock."""
        seen = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                seen[name] = (0, str(path.readlink()).encode())
            else:
                content = path.read_bytes() if path.is_file() else b""
                if path.name == "driver_override" and content == b"\n":
                    content = b"(null)\n"
                if path.name.startswith("lease-"):
                    content = b""
                seen[name] = (path.stat().st_mode, content)
        for moving in ("log", "proc/sys/kernel/random/boot_id"):
            seen.pop(moving)
        return seen


def sealed_by_a_newer(record: dict[str, Any]) -> bytes:
    """Seal a record as the keeper of a newer barometer may write it."""
    with mock.patch.object(records, "SCHEMA", records.SCHEMA + 1):
        return records.seal(record)


def secure_boot(machine: Machine, value: str = "\1") -> None:
    """Write the firmware's variable, which begins with its attributes (UEFI 2.10, table 3.1)."""
    machine.file(f"{EFI}/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", f"\6\0\0\0{value}")


@contextlib.contextmanager
def made_up() -> Iterator[Machine]:
    """Make a machine; property tests use this too, because they may not have fixtures of a
    function. Only the programs above are on PATH, so that no program of this machine is
    started."""
    folder = Path(tempfile.mkdtemp(prefix="keeper-"))
    environment = {
        "BAROMETER_ROOT": str(folder), "ROOT": str(folder), "PATH": str(folder / "fakes"),
    }  # fmt: skip
    try:
        with mock.patch.dict(os.environ, environment):
            yield Machine(folder)
    finally:
        shutil.rmtree(folder)
