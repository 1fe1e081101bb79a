"""The stand-in metal machine: a VM that is known by its SSH address alone, like a rack server.

It boots from its own disk, keeps what is written there, and reboots on command. The rack's parts
are here too: the machine's serial console and its power button. Only a test may talk to QEMU's
monitor.
"""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError
from orchestrator.base.process import run, tail
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.formats.units import parse_size
from orchestrator.machine.transport.keys import KeyPair
from tests.lab.machine import qmp
from tests.lab.machine.disk import FIRMWARE, Loader, machine_disk

BOOT_SECONDS = 600.0
"""Most seconds from power-on to SSH. It takes less than a minute, but ten times that on a busy
runner."""
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")


@dataclass(frozen=True)
class StandIn:
    """A running machine. Its users are root and operator, who may sudo and is in the group
    libvirt."""

    port: int
    ssh_config: Path
    """Configuration for ssh -F: the Host `metal`, its key, its pinned host key."""
    console: Path
    """Output of its serial console since it was started, over all boots."""
    _monitor: Path
    """Socket of QEMU's monitor."""
    _process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    def ssh(
        self, command: str, *, user: str = "root", stdin: bytes = b"", timeout: float = 120,
        accept: tuple[int, ...] = (0,),
    ) -> str:  # fmt: skip
        """Run a shell command on the machine and return its standard output, for a test's own look
        at it. Raises AssertionError for another exit code (255: no connection)."""
        done = subprocess.run(
            ["ssh", "-F", self.ssh_config, f"{user}@metal", command],
            input=stdin, capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode in accept, f"{command}: {done.returncode}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def boot_id(self) -> str | None:
        """Return the boot id, or None if the machine does not answer."""
        try:
            return self.ssh("cat /proc/sys/kernel/random/boot_id", timeout=20).strip()
        except (AssertionError, subprocess.TimeoutExpired):
            return None

    def wait_for_boot(self, after: str | None = None, within: float = BOOT_SECONDS) -> float:
        """Wait until the machine answers with a boot id other than `after`; return the seconds."""
        started = time.monotonic()

        def booted() -> bool | None:
            if not self.is_running():
                raise BenchError(
                    "the stand-in machine is gone",
                    evidence=self.last_words(),
                    reason=Reason.MACHINE_LOST,
                )
            return True if self.boot_id() not in (None, after) else None

        until(booted, within=within, waiting_for="SSH of the stand-in machine", every=0.5,
              last_seen=self.last_words)  # fmt: skip
        return time.monotonic() - started

    def last_words(self) -> str:
        return tail(self.console.read_text(errors="replace"), 40)

    def reset(self) -> None:
        """Press the reset button."""
        qmp.ask(self._monitor, "system_reset")

    @property
    def power_cycle(self) -> str:
        """Command on the runner that presses the reset button."""
        return shlex.join([sys.executable, qmp.__file__, str(self._monitor), "system_reset"])

    def is_running(self) -> bool:
        return self._process.poll() is None

    def monitor(self, command: str) -> str:
        """Send a command to QEMU's human monitor and return the answer."""
        return str(qmp.ask(self._monitor, "human-monitor-command", {"command-line": command}))


@contextmanager
def standin(
    folder: Path,
    *,
    bar: str = "1GiB",
    accel: Literal["tcg", "kvm"] = "tcg",
    loader: Loader = "grub",
    within: float = BOOT_SECONDS,
) -> Iterator[StandIn]:
    """Power on a machine whose device has a BAR of `bar`, and wait for SSH. The machine and its
    disk are gone after the block, however it ends. The firmware is a BIOS, or UEFI if the boot
    `loader` is systemd-boot. The machine's files are in `folder`: console.log, ssh_config, keys.

    Raises BenchError if the machine cannot be built or does not come up."""
    disk, console, monitor = folder / "disk.raw", folder / "console.log", folder / "qmp"
    runner, host = KeyPair.make(), KeyPair.make()
    credentials = folder / "credentials"
    credentials.touch(mode=0o600)
    credentials.write_text(_credentials(runner, host))
    console.touch()
    try:
        made = machine_disk(Cache(), loader)
        flashes = [folder / name for name in FIRMWARE] if loader == "systemd-boot" else []
        for copy in (disk, *flashes):
            run(["cp", "--sparse=always", "--no-preserve=mode", made / copy.name, copy],
                doing="copying the stand-in machine's disk")  # fmt: skip
        qemu = _qemu(disk, flashes, console, monitor, credentials, bar, accel)
        with _started(qemu, monitor) as process:
            machine = StandIn(0, folder / "ssh_config", console, monitor, process)
            forwards = _FORWARD.search(machine.monitor("info usernet"))
            assert forwards is not None
            machine = replace(machine, port=int(forwards[1]))
            _write_ssh_config(folder, machine.port, runner, host)
            machine.wait_for_boot(within=within)
            yield machine
    finally:
        disk.unlink(missing_ok=True)


@contextmanager
def _started(qemu: list[str], monitor: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start QEMU and wait until its monitor listens. It ends with the block and with this process,
    however that ends. Raises BenchError if QEMU does not start."""
    log = monitor.with_name("qemu.log")
    with log.open("wb") as errors, subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *qemu], stdin=subprocess.DEVNULL, stderr=errors
    ) as process:  # fmt: skip
        try:
            until(lambda: monitor.exists() or process.poll() is not None or None, within=30,
                  waiting_for="monitor of QEMU")  # fmt: skip
            if process.poll() is not None:
                raise BenchError(
                    "QEMU of the stand-in machine ended",
                    evidence=log.read_text(),
                    reason=Reason.HOST_CRASH,
                )
            yield process
        finally:
            process.kill()
            process.wait()


def _credentials(runner: KeyPair, host: KeyPair) -> str:
    """Return an SMBIOS string that systemd reads as a credential (systemd.system-credentials(7)):
    lines for tmpfiles.d(5) that write the keys."""
    files = (
        ("/etc/ssh/ssh_host_ed25519_key", "0600", host.private_openssh),
        ("/etc/ssh/authorized_keys", "0644", runner.public_line.encode() + b"\n"),
    )
    lines = "".join(
        f"f+~ {path} {mode} root root - {base64.b64encode(content).decode()}\n"
        for path, mode, content in files
    )
    encoded = base64.b64encode(lines.encode()).decode()
    return f"io.systemd.credential.binary:tmpfiles.extra={encoded}"


def _write_ssh_config(folder: Path, port: int, runner: KeyPair, host: KeyPair) -> None:
    key, known = folder / "id_ed25519", folder / "known_hosts"
    key.touch(mode=0o600)
    key.write_bytes(runner.private_openssh)
    known.write_text(f"[127.0.0.1]:{port} {host.public_line}\n")
    (folder / "ssh_config").write_text(
        f"Host metal 127.0.0.1\n  HostName 127.0.0.1\n  Port {port}\n  User root\n"
        f"  IdentityFile {key}\n  IdentitiesOnly yes\n  BatchMode yes\n"
        f"  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n  ConnectTimeout 10\n"
    )


def _qemu(
    disk: Path, flashes: list[Path], console: Path, monitor: Path, credentials: Path, bar: str,
    accel: str,
) -> list[str]:  # fmt: skip
    """Return QEMU's command line. `flashes` are a UEFI machine's firmware: program and
    variables."""
    machine = {
        # after kexec a kernel is slow while many translations of the previous one are left
        "tcg": ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=256",
                # with virtual GIF, a nested host was seen to lose its interrupts under emulation
                "-cpu", "max,-vgif,phys-bits=46"],
        # interrupt remapping needs the I/O APIC in QEMU, not in KVM
        "kvm": ["-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", "host"],
    }[accel]  # fmt: skip
    ports = ("bar", "disk", "net", "legacy")
    return [
        "qemu-system-x86_64", "-name", "barometer-standin", *machine, "-smp", "2", "-m", "4G",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-smbios", f"type=11,path={credentials}",
        "-device", "intel-iommu,intremap=on,aw-bits=48",
        *[part for number, port in enumerate(ports, 1)
          for part in ("-device", f"pcie-root-port,id={port},chassis={number},slot={number}")],
        "-object", f"memory-backend-memfd,id=memory,share=on,size={parse_size(bar)}",
        "-device", "ivshmem-plain,memdev=memory,bus=bar",
        *[part for flash in flashes for part in ("-drive", f"if=pflash,format=raw,file={flash}")],
        "-blockdev", f"driver=file,node-name=file,filename={disk}",
        # flushed data survives the machine's end, not the runner's
        "-blockdev", "driver=raw,node-name=disk,file=file,cache.no-flush=on",
        "-device", "virtio-blk-pci,drive=disk,bus=disk,bootindex=1",
        "-netdev", "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", "virtio-net-pci,netdev=net,bus=net,romfile=",
        # two devices without ACS between them: they share an IOMMU group with their bridge
        "-device", "pcie-pci-bridge,id=shared,bus=legacy",
        "-device", "pci-testdev,bus=shared,addr=1", "-device", "pci-testdev,bus=shared,addr=2",
        "-device", "i6300esb", "-action", "watchdog=reset",
        "-chardev", f"file,id=console,path={console}", "-device", "isa-serial,chardev=console",
        "-qmp", f"unix:{monitor},server=on,wait=off",
    ]  # fmt: skip
