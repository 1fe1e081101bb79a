"""The guest's disk in a real machine of this runner, under both firmwares."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ArmFailedError
from orchestrator.base.progress import Progress
from orchestrator.kernels import materialise_kernel
from orchestrator.machine.guest.guestdisk import KEYS_SERIAL, SYSTEM_SERIAL, guest_disk, keys_disk
from orchestrator.machine.guest.watching import boot_mark
from orchestrator.machine.runner.images import read_recipe, unpack_packages
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.transport.shell import connected
from orchestrator.scenario.kernel_forms import DebKernel

pytestmark = pytest.mark.vm

SECONDS = 180.0


def firmware(name: str, folder: Path) -> list[str]:
    """Return QEMU's arguments for the firmware; SeaBIOS is its default."""
    if name == "bios":
        return []
    files = ["usr/share/OVMF/OVMF_CODE_4M.fd", "usr/share/OVMF/OVMF_VARS_4M.fd"]
    package = unpack_packages(read_recipe("disk")["suites"], ["ovmf"], files, Cache())
    code, variables = (package / "files" / file for file in files)
    own = Path(shutil.copyfile(variables, folder / "variables.fd"))
    return ["-drive", f"if=pflash,format=raw,readonly=on,file={code}",
            "-drive", f"if=pflash,format=raw,file={own}"]  # fmt: skip


def disk(serial: str, path: Path) -> list[str]:
    return ["-blockdev", f"driver=file,read-only=on,node-name={serial},filename={path}",
            "-device", f"virtio-blk-pci,drive={serial},serial={serial}"]  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param("bios", marks=pytest.mark.full), "uefi"])
def test_systemd_is_up_and_says_how_long_it_took(means: None, name: str, tmp_path: Path) -> None:
    kernel = materialise_kernel(
        DebKernel(deb="linux-image-cloud-amd64", suite="trixie"), Cache(), Progress()
    )
    system = guest_disk(kernel, "console=ttyS0 panic=-1 barometer.test", Cache())
    keys, console = RunKeys.make(), tmp_path / "console.log"
    (tmp_path / "keys").write_bytes(keys_disk(keys))
    console.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    with subprocess.Popen(
        ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "768",
         "-nodefaults", "-display", "none", "-no-reboot", *firmware(name, tmp_path),
         *disk(SYSTEM_SERIAL, system.path), *disk(KEYS_SERIAL, tmp_path / "keys"),
         "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
         "-device", "virtio-net-pci,netdev=net,romfile=",
         "-chardev", f"file,id=console,path={console}", "-device", "isa-serial,chardev=console"],
    ) as machine:  # fmt: skip
        try:
            end = time.monotonic() + SECONDS
            while "ssh server is up" not in console.read_text(errors="replace"):
                assert machine.poll() is None, console.read_text()
                assert time.monotonic() < end, console.read_text()
                time.sleep(0.5)
            with connected(
                "guest", ("127.0.0.1", port), key=keys.runner, host_key=keys.guest,
                error=ArmFailedError,
            ) as shell:  # fmt: skip
                mark = shell.run("cat /run/boot-mark-uptime").stdout.strip()
                assert f"{boot_mark(keys.guest_token)} uptime {mark}" in console.read_text()
                assert shell.run("cat /proc/cmdline").stdout.endswith(" barometer.test\n")
                assert shell.run("uname -r").stdout.strip() == kernel.release
                assert shell.run("systemctl is-system-running --wait").stdout == "running\n"
                assert "(userspace)" in shell.run("systemd-analyze time").stdout
                shell.run("(sleep 0.2; poweroff -f) >/dev/null 2>&1 </dev/null &")
            machine.wait(60)
        finally:
            machine.kill()
