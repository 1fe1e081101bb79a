"""Runs of barometer on the stand-in metal machine, as a user has them: each in its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.machine.standin import StandIn

SCENARIO = """
name = "metal-map"
workload = "map"
[host]
kind = "metal"
address = "metal"
ssh_config = "{ssh_config}"
deadline = 300
wait = 120
lease = 30
console = "tail -n +1 -F {console}"
[device]
kind = "hostdev"
pick = "largest-bar"
bar = "1GiB"
[arms]
baseline.kernel = {{ deb = "linux-image-cloud-amd64", suite = "trixie" }}
candidate.kernel = {{ deb = "linux-image-cloud-amd64", suite = "trixie-backports" }}
candidate.sysfs = {{ "/sys/kernel/mm/transparent_hugepage/enabled" = "always" }}
[map]
repeats = 2
[trace]
passes = ["plain", "counts"]
"""
GUEST_BOOT = (
    SCENARIO.replace('workload = "map"\n', "")
    .replace("[map]\nrepeats = 2\n", "")
    .replace('address = "metal"', 'address = "operator@metal"')  # becomes root by sudo
    + """
[guest]
kernel = {{ deb = "linux-image-cloud-amd64", suite = "trixie" }}
"""
)
# Everything on the machine that a run may change and has to put back: a line each, sorted.
_STATE = r"""
uname -r; cat /proc/cmdline
find /var/lib/barometer /run/barometer* /etc/systemd/system /lib/modules /boot /var/log/libvirt \
    /etc/initramfs-tools -printf '%p %y %m %s %l\n' 2> /dev/null | grep -v '/grubenv ' | sort
if [ -e /sys/firmware/efi ]; then
    ls /sys/firmware/efi/efivars; bootctl list | sed -n '/(default)/,/^$/p'
else grep -a next_entry /boot/grub/grubenv; fi
for device in /sys/bus/pci/devices/*; do
    echo "$device $(readlink "$device/driver") $(cat "$device/driver_override")"
done
ls /sys/kernel/tracing/instances; cat /sys/kernel/tracing/kprobe_events
cat /sys/kernel/mm/transparent_hugepage/enabled /proc/sys/vm/nr_hugepages
cut -d' ' -f1 /proc/modules | sort
pgrep -a qemu; mount | grep /lib/modules
:
"""


def state_of(machine: StandIn) -> str:
    """Return what a run may change. It is equal before and after."""
    return machine.ssh("PATH=$PATH:/usr/sbin\n" + _STATE)


def scenario_for(machine: StandIn, folder: Path, text: str = SCENARIO) -> Path:
    path = folder / "metal.toml"
    path.write_text(text.format(ssh_config=machine.ssh_config, console=machine.console))
    return path


@dataclass
class Running:
    """A barometer command that runs, with its lines and their times. A line is printed when a
    stage begins."""

    process: subprocess.Popen[str]
    lines: list[tuple[float, str]] = field(default_factory=list)

    def began(self, line: str, occurrence: int = 1) -> bool:
        return sum(said == line for _, said in self.lines) >= occurrence

    def wait_until(self, line: str, occurrence: int, within: float) -> bool:
        """Wait until the line came. False if the command ended first or `within` seconds have
        passed."""
        deadline = time.monotonic() + within
        while not self.began(line, occurrence):
            if self.process.poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)


@contextmanager
def barometer(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Run the command in a session of its own while the block runs, and then wait for its end. If
    the block fails, kill it with everything it started. Prints its lines at the end, each with the
    seconds at which it came."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    running = Running(process)

    def read() -> None:
        for line in process.stdout or ():
            running.lines.append((time.monotonic(), line.strip()))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield running
        process.wait()
        reader.join(10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        reader.join(10)
        if process.stdout is not None:
            process.stdout.close()
        for at, line in running.lines:
            print(f"{at - began:6.1f} {line}")


def done(*arguments: str | Path, accept: Sequence[int] = (0,), within: float = 1800) -> str:
    """Run a command that ends by itself and return its output."""
    with barometer(*arguments) as running:
        try:
            code = running.process.wait(within)
        except subprocess.TimeoutExpired as exc:
            raise AssertionError(f"not done within {within} s:\n{running.text()}") from exc
    assert code in accept, f"exit code {code}:\n{running.text()}"
    return running.text()
