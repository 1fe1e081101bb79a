"""Find the means by which this machine can be made to boot a kernel once, and come back."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from typing import Any

from keeper import machine
from keeper.changes import watchdog

_EFI = "/sys/firmware/efi/efivars"
_LOADER = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""Vendor GUID of systemd-boot's EFI variables (systemd.io/BOOT_LOADER_INTERFACE)."""
ONESHOT = "LoaderEntryOneShot"
_KNOWS_ONESHOT = 1 << 3
"""Bit EFI_LOADER_FEATURE_ENTRY_ONESHOT of the EFI variable LoaderFeatures (same page)."""
GRUB_FOLDERS = ("/boot/grub", "/boot/grub2")
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_UNWRITABLE = ("btrfs", "zfs", "bcachefs", "squashfs", "overlay")
"""File systems that GRUB reads and never writes to (GRUB manual, "Environment block")."""
_BLOCK = "/sys/class/block"
_CRYPT = "CRYPT-"
"""Prefix of the device-mapper UUIDs of devices that cryptsetup makes."""


@dataclass(frozen=True)
class Means:
    """A means to boot a kernel once. If it is not usable, `why` says what is in the way."""

    why: str = ""
    prefix: str = ""
    """Prefix of GRUB's programs: grub or grub2."""
    folder: str = ""
    """Folder of GRUB, or the one in which systemd-boot looks for kernels and entries."""

    @property
    def usable(self) -> bool:
        return not self.why

    def facts(self) -> dict[str, Any]:
        return {"usable": self.usable, **asdict(self)}


def detect() -> dict[str, Any]:
    """Return the answer to the verb `detect`. `secure_boot` is null if no EFI variable tells."""
    return {
        "kexec": kexec().facts(),
        "grub": grub().facts(),
        "systemd-boot": systemd_boot().facts(),
        "reboot": {"usable": True, "why": ""},
        "systemd": machine.has_systemd(),
        "watchdogs": watchdog.watchdogs(),
        "watchdog_stop_on_reboot": machine.text(watchdog.STOP_ON_REBOOT),
        "consoles": [word for word in machine.cmdline().split() if word.startswith("console=")],
        "initramfs": machine.program("mkinitramfs", "dracut") or "",
        "lockdown": lockdown(),
        "secure_boot": secure_boot(),
    }


def lockdown() -> str:
    """Return the mode of kernel_lockdown(7): none, integrity or confidentiality."""
    return machine.chosen(machine.text("/sys/kernel/security/lockdown") or "none")


def secure_boot() -> bool | None:
    value = _efi(_SECURE_BOOT)
    return None if value is None else value[-1:] == b"\1"


def _unsigned() -> str:
    """Return what keeps a boot loader from starting a kernel that nobody has signed, else ""."""
    if secure_boot():
        return "Secure Boot is on: shim or the firmware refuses a kernel that is not signed"
    return ""


def kexec() -> Means:
    if machine.program("kexec") is None:
        return Means("the machine has no kexec(8): install kexec-tools")
    if machine.text("/sys/kernel/kexec_loaded") is None:
        return Means("its kernel is built without kexec (CONFIG_KEXEC, CONFIG_KEXEC_FILE)")
    if machine.text("/proc/sys/kernel/kexec_load_disabled") == "1":
        return Means("/proc/sys/kernel/kexec_load_disabled is 1, until it is booted again")
    if lockdown() != "none":
        return Means(
            f"the kernel is locked down ({lockdown()}): it takes no kernel that its vendor has not"
            " signed; secure boot is what locks it down"
        )
    return Means()


def grub() -> Means:
    """Return GRUB as a means. An entry is booted just once only if GRUB can clear it, so it must
    be able to write to its environment block."""
    for folder in GRUB_FOLDERS:
        prefix = folder.rpartition("/")[2]
        if machine.at(f"{folder}/grub.cfg").exists():
            return Means(_in_the_way_of_grub(folder, prefix), prefix, folder)
    return Means("there is no grub.cfg in /boot/grub or /boot/grub2")


def _in_the_way_of_grub(folder: str, prefix: str) -> str:
    configuration = machine.text(f"{folder}/grub.cfg") or ""
    for word in ("next_entry", "custom.cfg"):
        if word not in configuration:
            return f"{folder}/grub.cfg does not know {word}"
    for name in ("reboot", "editenv", "probe", "mkrelpath"):
        if machine.program(f"{prefix}-{name}") is None:
            return f"the machine has no {prefix}-{name}"
    if not os.access(machine.at(f"{folder}/grubenv"), os.W_OK):
        return f"{folder}/grubenv is missing or cannot be written to"
    device, kind = mount_of(folder)
    if kind in _UNWRITABLE or re.match(r"/dev/(mapper/|dm-|md)", device):
        return (
            f"{folder} is on {device} ({kind}), which GRUB cannot write to: it could not clear a"
            " one-shot entry, and the machine would boot it again and again"
        )
    return _unsigned() or _in_the_way_of_reading()


def _in_the_way_of_reading() -> str:
    """Return what keeps GRUB from reading the staged files, else "". They may be on another device
    than GRUB's own. grub-probe is not asked, because it makes the kernel load the device
    mapper."""
    place = os.path.dirname(machine.STATE)
    device = mount_of(place)[0]
    if device.startswith("/dev/") and _is_encrypted(machine.at(device).resolve().name):
        return f"{place} is on an encrypted disk ({device}), whose passphrase GRUB would ask for"
    return ""


def _is_encrypted(device: str) -> bool:
    """True if the device is encrypted, or a device below it."""
    if (machine.text(f"{_BLOCK}/{device}/dm/uuid") or "").startswith(_CRYPT):
        return True
    below = machine.at(f"{_BLOCK}/{device}/slaves").glob("*")
    return any(_is_encrypted(slave.name) for slave in below)


def mount_of(path: str) -> tuple[str, str]:
    """Return device and type of the file system that a folder is on."""
    best = ("", "", "")
    for line in (machine.text("/proc/self/mounts") or "").splitlines():
        device, point, kind, *_ = line.split()
        if f"{path}/".startswith(f"{point.rstrip('/')}/") and len(point) >= len(best[1]):
            best = (device, point, kind)
    return best[0], best[2]


def systemd_boot() -> Means:
    if why := _in_the_way_of_systemd_boot():
        return Means(why)
    try:
        folder = machine.run("bootctl", "--print-boot-path").strip()
    except machine.RefusedError as exc:
        return Means(str(exc))
    is_writable = os.access(machine.at(folder), os.W_OK)
    return Means("" if is_writable else f"{folder} cannot be written to", folder=folder)


def _in_the_way_of_systemd_boot() -> str:
    if machine.program("bootctl") is None:
        return "the machine has no bootctl"
    if not (loader_variable("LoaderInfo") or "").startswith("systemd-boot"):
        return "the machine was not booted by systemd-boot"
    features = _efi(f"LoaderFeatures-{_LOADER}") or b""
    if not int.from_bytes(features, "little") & _KNOWS_ONESHOT:
        return "its systemd-boot does not know one-shot entries"
    if not os.access(machine.at(_EFI), os.W_OK):
        return f"{_EFI} cannot be written to"
    if (other := loader_variable(ONESHOT)) is not None:
        return f"{other} is to be booted next already; `bootctl set-oneshot ''` gives that up"
    return _unsigned()


def boot_partition() -> str | None:
    """Return where systemd-boot looks for entries, whether or not it booted the machine."""
    if machine.program("bootctl") is None:
        return None
    try:
        return machine.run("bootctl", "--print-boot-path").strip() or None
    except machine.RefusedError:
        return None


def default_entry() -> dict[str, str]:
    """Return the entry that the boot loader starts by default, as far as that can be read."""
    if (loader := grub()).folder:
        listed = machine.text("/etc/default/grub") or ""
        asked = re.search(r"^GRUB_DEFAULT=[\"']?([^\"'\n]*)", listed, re.MULTILINE)
        saved = grub_variable(loader.folder, "saved_entry") or ""
        entry = asked[1] if asked and asked[1] != "saved" else saved
        return {"loader": "grub", "entry": entry}
    entry = loader_variable("LoaderEntryDefault") or loader_variable("LoaderEntrySelected")
    return {"loader": "systemd-boot" if entry else "", "entry": entry or ""}


def grub_variable(folder: str, name: str) -> str | None:
    """Return a variable of the environment block, a text file of NAME=VALUE lines; None if it is
    not set."""
    for line in (machine.text(f"{folder}/grubenv") or "").splitlines():
        key, _, value = line.partition("=")
        if key == name:
            return value
    return None


def loader_variable(name: str) -> str | None:
    """Return a variable of systemd-boot's; None if it is not set, or the kernel has no EFI
    variables."""
    value = _efi(f"{name}-{_LOADER}")
    return None if value is None else value.decode("utf-16-le", "replace").rstrip("\0")


def _efi(name: str) -> bytes | None:
    """Return a variable's content, which follows the four bytes of its attributes (efivarfs)."""
    try:
        return machine.at(f"{_EFI}/{name}").read_bytes()[4:]
    except OSError:
        return None
