"""The stand-in metal machine behaves as a real one: the lane `metal` relies on this. Only the full
lane runs guests on it."""

from __future__ import annotations

from pathlib import Path

import libvirt
import pytest

from tests.lab.machine.standin import StandIn

pytestmark = pytest.mark.metal

DEVICE = "/sys/bus/pci/devices/0000:01:00.0"
SHARED = "/sys/bus/pci/devices/0000:05:01.0"
# Writes 0x10 to QEMU's isa-debug-exit port and loops: exit code 0x10 * 2 + 1.
SECTOR = bytes([0xB0, 0x10, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]).ljust(510, b"\0") + b"\x55\xaa"


def test_users_network_and_init(metal: StandIn) -> None:
    assert metal.ssh("systemctl is-system-running --wait") == "running\n"
    assert metal.ssh("sudo -n id -u", user="operator") == "0\n"
    assert "libvirt" in metal.ssh("id -nG", user="operator").split()
    with pytest.raises(AssertionError, match="255"):
        metal.ssh("true", user="nobody")
    metal.ssh("! timeout 3 bash -c 'echo > /dev/tcp/10.0.2.2/22'")  # the network reaches nothing


def test_the_device_has_its_bar_and_a_group_of_its_own(metal: StandIn) -> None:
    start, end, _ = metal.ssh(f"sed -n 3p {DEVICE}/resource").split()
    assert int(end, 16) - int(start, 16) + 1 == 1 << 30
    assert metal.ssh(f"ls {DEVICE}/iommu_group/devices") == "0000:01:00.0\n"
    assert metal.ssh(f"cat {DEVICE}/vendor {DEVICE}/device") == "0x1af4\n0x1110\n"


def test_another_device_shares_its_group_with_a_bridge_and_a_sibling(metal: StandIn) -> None:
    assert metal.ssh(f"ls {SHARED}/iommu_group/devices").split() == [
        "0000:04:00.0", "0000:05:01.0", "0000:05:02.0"
    ]  # fmt: skip


@pytest.mark.full
def test_kvm_runs_a_guest(metal: StandIn) -> None:
    metal.ssh("cat > /root/sector", stdin=SECTOR.ljust(1 << 20, b"\0"))
    metal.ssh(
        "qemu-system-x86_64 -accel kvm -m 16 -nodefaults -display none -no-reboot"
        " -device isa-debug-exit,iobase=0xf4,iosize=0x04"
        " -drive file=/root/sector,format=raw,if=ide,snapshot=on",
        timeout=60, accept=(33,),
    )  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("user", ["root", "operator"])
def test_libvirt_answers_over_ssh(metal: StandIn, user: str, tmp_path: Path) -> None:
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nexec ssh -F "{metal.ssh_config}" "$@"\n')
    program.chmod(0o700)
    connection = libvirt.open(f"qemu+ssh://{user}@metal/system?command={program}&no_tty=1")
    try:
        assert connection.getVersion() >= 10_000_000  # QEMU's version: MAJOR * 1000000
        assert "<domain type='kvm'/>" in connection.getCapabilities()
    finally:
        connection.close()
