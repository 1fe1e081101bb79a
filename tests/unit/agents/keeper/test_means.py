"""The ways to boot a machine, and the obstacles to each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.agents.keeper.machines import EFI, LOADER, Machine, secure_boot


def gone(path: str) -> Callable[[Machine], None]:
    return lambda machine: (machine.root / path).unlink()


def file(path: str, content: str) -> Callable[[Machine], None]:
    def write(machine: Machine) -> None:
        machine.file(path, content)

    return write


def on_a_volume(uuid: str) -> Callable[[Machine], None]:
    """Put /var on a volume whose physical volume is a device of that UUID; /boot is a
    partition."""

    def write(machine: Machine) -> None:
        mounts = "/dev/sda1 / ext4 rw 0 0\n/dev/mapper/vg-var /var ext4 rw 0 0\n"
        machine.file("/proc/self/mounts", mounts)
        node = machine.file("/dev/dm-1", "")
        (machine.root / "dev/mapper").mkdir()
        (machine.root / "dev/mapper/vg-var").symlink_to(node)
        machine.file("/sys/class/block/dm-1/dm/uuid", "LVM-x\n")
        machine.file("/sys/class/block/dm-0/dm/uuid", f"{uuid}\n")
        (machine.root / "sys/class/block/dm-1/slaves/dm-0").mkdir(parents=True)

    return write


def program(name: str, script: str) -> Callable[[Machine], None]:
    def write(machine: Machine) -> None:
        machine.file(f"/fakes/{name}", f"#!/bin/sh\n{script}\n", 0o755)

    return write


def test_machine_with_everything(machine: Machine) -> None:
    machine.file("/sys/class/watchdog/watchdog0/identity", "i6300ESB timer\n")
    machine.file("/sys/class/watchdog/watchdog0/nowayout", "0\n")
    machine.file("/sys/class/watchdog/watchdog0/state", "inactive\n")
    machine.file("/sys/module/i6300esb/initstate", "live\n")
    machine.file("/sys/module/watchdog/parameters/stop_on_reboot", "-1\n")
    driver = machine.root / "sys/class/watchdog/watchdog0/device/driver"
    driver.mkdir(parents=True)
    (driver / "module").symlink_to(machine.root / "sys/module/i6300esb")
    found = machine.done("detect")
    assert {how: found[how]["usable"] for how in ("kexec", "grub", "systemd-boot", "reboot")} == {
        "kexec": True, "grub": True, "systemd-boot": True, "reboot": True,
    }  # fmt: skip
    assert found["systemd-boot"]["folder"] == "/boot/efi"
    assert (found["systemd"], found["initramfs"], found["lockdown"]) == (
        True, "mkinitramfs", "none",
    )  # fmt: skip
    assert found["consoles"] == ["console=ttyS0"]
    assert found["watchdogs"] == [
        {"device": "watchdog0", "driver": "i6300esb", "identity": "i6300ESB timer",
         "state": "inactive", "timeout": None, "nowayout": "0", "why": ""},
    ]  # fmt: skip
    assert found["watchdog_stop_on_reboot"] == "-1"
    assert found["secure_boot"] is None


@pytest.mark.parametrize(
    ("how", "change", "why"),
    [
        ("kexec", gone("fakes/kexec"), "the machine has no kexec(8): install kexec-tools"),
        ("kexec", gone("sys/kernel/kexec_loaded"), "its kernel is built without kexec"),
        ("kexec", file("/proc/sys/kernel/kexec_load_disabled", "1\n"), "kexec_load_disabled is 1"),
        ("kexec", file("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
         "the kernel is locked down (integrity)"),
        ("grub", gone("boot/grub/grub.cfg"), "there is no grub.cfg"),
        ("grub", file("/boot/grub/grub.cfg", "next_entry\n"), "grub.cfg does not know custom.cfg"),
        ("grub", file("/boot/grub/grub.cfg", "custom.cfg\n"), "grub.cfg does not know next_entry"),
        ("grub", gone("fakes/grub-reboot"), "the machine has no grub-reboot"),
        ("grub", gone("boot/grub/grubenv"), "/boot/grub/grubenv is missing"),
        ("grub", file("/proc/self/mounts", "/dev/sda1 / btrfs rw 0 0\n"),
         "/boot/grub is on /dev/sda1 (btrfs), which GRUB cannot write to"),
        ("grub", file("/proc/self/mounts", "/dev/mapper/vg-root / ext4 rw 0 0\n"),
         "/boot/grub is on /dev/mapper/vg-root (ext4), which GRUB cannot write to"),
        ("grub", on_a_volume("CRYPT-LUKS2-5e1f-pv"),
         "/var/lib is on an encrypted disk (/dev/mapper/vg-var), whose passphrase GRUB would"),
        ("grub", secure_boot, "Secure Boot is on: shim or the firmware refuses a kernel that is"),
        ("systemd-boot", secure_boot, "Secure Boot is on: shim or the firmware refuses"),
        ("systemd-boot", gone("fakes/bootctl"), "the machine has no bootctl"),
        ("systemd-boot", gone(f"{EFI[1:]}/LoaderInfo-{LOADER}"), "not booted by systemd-boot"),
        ("systemd-boot", file(f"{EFI}/LoaderFeatures-{LOADER}", "\6\0\0\0\7"),
         "its systemd-boot does not know one-shot entries"),
        ("systemd-boot", file(f"{EFI}/LoaderEntryOneShot-{LOADER}", "\6\0\0\0r\0e\0d\0\0\0"),
         "red is to be booted next already; `bootctl set-oneshot ''` gives that up"),
        ("systemd-boot", lambda machine: (machine.root / "boot/efi").rename(machine.root / "esp"),
         "/boot/efi cannot be written to"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_said(
    machine: Machine, how: str, change: Callable[[Machine], None], why: str
) -> None:
    change(machine)
    found = machine.done("detect")[how]
    assert found["usable"] is False
    assert why in found["why"]


def test_folder_of_its_own_file_system_counts_and_not_that_of_the_root(machine: Machine) -> None:
    machine.file(
        "/proc/self/mounts", "/dev/mapper/root / btrfs rw 0 0\n/dev/sda2 /boot xfs rw 0 0\n"
        "/dev/sda3 /boot/grubby ext4 rw 0 0\n",
    )  # fmt: skip
    assert machine.done("detect")["grub"]["usable"] is True


def test_grub_of_fedora_is_found_under_its_name(machine: Machine) -> None:
    (machine.root / "boot/grub").rename(machine.root / "boot/grub2")
    for name in ("reboot", "editenv", "probe", "mkrelpath"):
        (machine.root / f"fakes/grub-{name}").rename(machine.root / f"fakes/grub2-{name}")
    found = machine.done("detect")["grub"]
    assert (found["usable"], found["prefix"], found["folder"]) == (True, "grub2", "/boot/grub2")


@pytest.mark.parametrize(("value", "expected"), [("\1", True), ("\0", False)])
def test_secure_boot_is_told(machine: Machine, value: str, expected: bool) -> None:
    secure_boot(machine, value)
    found = machine.done("detect")
    assert found["secure_boot"] is expected
    assert [found[how]["usable"] for how in ("grub", "systemd-boot")] == [not expected] * 2


def test_default_entry_that_the_admin_named_is_told(machine: Machine) -> None:
    machine.file("/etc/default/grub", 'GRUB_TIMEOUT=5\nGRUB_DEFAULT="1>2"\n')
    machine.acquire()
    assert machine.done("original")["default"] == {"loader": "grub", "entry": "1>2"}


def test_default_entry_of_systemd_boot_is_told(machine: Machine) -> None:
    (machine.root / "boot/grub/grub.cfg").unlink()
    wide = "debian.conf".encode("utf-16-le").decode("latin-1")
    machine.file(f"{EFI}/LoaderEntrySelected-{LOADER}", f"\6\0\0\0{wide}\0\0")
    machine.acquire()
    assert machine.done("original")["default"] == {
        "loader": "systemd-boot", "entry": "debian.conf",
    }  # fmt: skip


def test_grub_reads_volumes_that_nobody_encrypted(machine: Machine) -> None:
    on_a_volume("LVM-y")(machine)
    assert machine.done("detect")["grub"]["usable"]
