"""Measure what `barometer profile` adds to the boot that it traces.

    ci/bench/profiling.py [--pairs 6] [--bar 1GiB]

Starts a domain with a large BAR on the stand-in machine of the metal lane, alone and under a
profile, in turn. The time is from the start of its QEMU to the guest's boot mark, both on the
machine's own clock. Prints the ratio within each pair.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))
from orchestrator.analysis.boot.timeline import RAM
from orchestrator.base.cache import Cache
from orchestrator.base.progress import Progress
from orchestrator.formats.units import GIB
from orchestrator.kernels import materialise_kernel
from orchestrator.machine.runner.cpio import pack_files
from orchestrator.machine.runner.images import guest_files
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm.domain import GuestDomain
from orchestrator.machine.vm.hypervisor import Connection, Domain
from orchestrator.run.profile import connected_host
from orchestrator.scenario.kernel_forms import DebKernel
from tests.lab.domains import define
from tests.lab.machine.standin import StandIn, standin
from tests.lab.metal_runs import barometer

NAME, DEVICE = "slow-vm", "0000:01:00.0"
URI = "qemu+ssh://metal/system"
_FOLDER = "/var/lib/libvirt/images"
_SERIAL = "/var/log/libvirt/qemu/slow-vm-serial.log"
_QUIET_SECONDS = "60"
"""Quiet time that ends the profile. Under two levels of emulation a kernel may be silent for
longer than the usual 20 s before its console is up."""
_WATCH = rf"""
import glob, os, time

def started():
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            if b"guest={NAME}," in open(path, "rb").read():
                fields = open(path.replace("cmdline", "stat")).read().rpartition(")")[2].split()
                return int(fields[19]) / os.sysconf("SC_CLK_TCK")
        except OSError:
            pass

while (start := started()) is None:
    time.sleep(0.05)
while True:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    if b"boot mark" in open("{_SERIAL}", "rb").read():
        print(now - start)
        break
    time.sleep(0.1)
"""


def define_slow_vm(metal: StandIn, libvirt: Connection) -> Domain:
    kernel = materialise_kernel(
        DebKernel(deb="linux-image-cloud-amd64", suite="trixie"), Cache(), Progress(), "gues"
    )
    files = guest_files(kernel, Cache()).files
    initramfs = files["guest/initramfs"] + pack_files(RunKeys.make().for_guest())
    for name, content in (("vmlinuz", files["guest/vmlinuz"]), ("initramfs", initramfs)):
        metal.ssh(f"cat > {_FOLDER}/{name}", stdin=content)
    guest = GuestDomain(
        name=NAME, uuid=str(uuid.uuid4()), kvm=False, memory=GIB // 2, cpus=1,
        kernel=f"{_FOLDER}/vmlinuz", initramfs=f"{_FOLDER}/initramfs",
        cmdline="console=ttyS0", console_port=1, ssh_port=2222, devices=(DEVICE,),
    )  # fmt: skip
    return define(libvirt, guest, _SERIAL, managed=True)


def boot(metal: StandIn, domain: Domain, *, profiled: bool) -> tuple[float, int]:
    """Return the boot's seconds and the number of maps of the BAR in the profile, 0 without
    one."""
    metal.ssh(f"rm -f {_SERIAL}; touch {_SERIAL}")
    watch = subprocess.Popen(
        ["ssh", "-F", metal.ssh_config, "metal", f"python3 -c {shlex.quote(_WATCH)}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = 0
    if profiled:
        with barometer(
            "profile", NAME, "--connect", URI, "--ssh-config", metal.ssh_config, "--json",
            "--until", _QUIET_SECONDS,
        ) as profile:  # fmt: skip
            seconds = float(watch.communicate(timeout=600)[0])
            if profile.process.wait(300):
                raise SystemExit(profile.text())
        output = profile.text()
        operations = json.loads(output[output.index("{\n") :])["operations"]
        maps = sum(each["kind"] == "map" and each["bar"] != RAM for each in operations)
    else:
        domain.start()
        seconds = float(watch.communicate(timeout=600)[0])
    domain.destroy()
    return seconds, maps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--bar", default="1GiB")
    options = parser.parse_args()
    ratios = []
    with (
        tempfile.TemporaryDirectory(prefix="profiling-") as folder,
        standin(Path(folder), bar=options.bar) as metal,
        connected_host(URI, metal.ssh_config) as (_, libvirt),
    ):
        domain = define_slow_vm(metal, libvirt)
        boot(metal, domain, profiled=False)  # warms what it reads
        for number in range(options.pairs):
            order = (False, True) if number % 2 else (True, False)
            pair = {profiled: boot(metal, domain, profiled=profiled) for profiled in order}
            (alone, _), (seconds, maps) = pair[False], pair[True]
            ratios.append(seconds / alone)
            print(
                f"pair {number + 1}: alone {alone:.2f} s, profiled {seconds:.2f} s (emulated),"
                f" {maps} maps of the BAR, ratio {ratios[-1]:.4f}",
                flush=True,
            )
    print(f"ratio: median {median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}")


if __name__ == "__main__":
    main()
