"""Save a booting host, or restore a saved one, and plug in what is its own.

A host that may be saved waits, before its sshd starts, for the disk with its keys
(guests/agents/renew.py). The disk and the devices are plugged in after the host was saved or
restored, while it is suspended. So a saved host has no keys and no connection that restored hosts
would share, and the large BAR is no part of its state.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.formats.abi import IORESOURCE_WINDOW
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.host import RUN_AGAIN
from orchestrator.machine.host.pci import parse_resources
from orchestrator.machine.nested.marks import ready_mark
from orchestrator.machine.nested.nested import (
    BootSpec,
    StartedVm,
    standstill_named,
    wait_for_mark,
)
from orchestrator.machine.nested.saved import SavedFiles, SavedHost, SavedHosts, digest_modules
from orchestrator.machine.runner.accel import Accel
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.keys import RunKeys, make_tar
from orchestrator.machine.transport.shell import Shell
from orchestrator.machine.vm import plugging
from orchestrator.machine.vm.domain import BAR_BUS, Disk, disk_xml, shmem_xml

_KEYS_PORT, _MODULES_PORT = 0, 1
_MODULES = "arm-modules"
"""Serial of the disk with an arm's modules, on a host that was saved with another arm's."""
_PLACED_SECONDS = 30.0
_HOTPLUG = re.compile(r"(?m)^CONFIG_HOTPLUG_PCI_(PCIE|ACPI)=y$")
# An overlay's lower folder is hidden by what is mounted over it; the old disk stays where it is.
_MOUNT_MODULES = r"""
tries=0
until disk=$(grep -lx "$1" /sys/block/vd*/serial); do
    tries=$((tries + 1)); [ $tries -lt 400 ] || { echo "no disk with serial $1" >&2; exit 1; }
    sleep 0.05
done
disk=${disk%/serial}
umount "/usr/lib/modules/$2" && mount -t ext4 -o ro "/dev/${disk##*/}" "/usr/lib/modules/$2"
"""


class RestoreError(BenchError):
    """A saved host could not be restored; another can be booted instead."""


def can_plug(kernel: KernelBundle) -> bool:
    """True if the kernel is known to find devices that are plugged into the running host. QEMU
    reports them by ACPI (ICH9-LPC.acpi-pci-hotplug-with-bridge-support), and does not let the
    kernel use the root ports' own way as well."""
    if kernel.config is None:
        return False
    return {*_HOTPLUG.findall(kernel.config.read_text())} == {"PCIE", "ACPI"}


@contextmanager
def saving(
    machine: StartedVm, spec: BootSpec, keys: RunKeys, hosts: SavedHosts | None,
    progress: Progress,
) -> Iterator[Callable[[Shell], None]]:  # fmt: skip
    """Save a booting host once it may be saved, and let it go on with its keys and devices. Yield
    a function to call when the host is proven; unless that happens in the block, it counts as not
    saved. A host that cannot be saved is none the worse for it: only its boot raises errors, those
    of `proven_host`, and BenchError if nothing can be plugged into it."""
    with standstill_named(machine):
        mark = wait_for_mark(
            machine, spec.kernel, ready_mark(machine.token), "host that is ready for its keys",
            progress,
        )  # fmt: skip
        plugging.suspend(machine.domain)
    with contextlib.ExitStack() as stack:
        files: SavedFiles | None = None
        if hosts is not None:
            with _not_saved(progress):
                if draft := stack.enter_context(hosts.saving(machine.description)):
                    draft.add_console(machine.console.path.read_bytes())
                    plugging.write_state(machine.domain, draft.memory)
                    files = draft
        _plug_in(machine, spec, keys)

        def keep(shell: Shell) -> None:
            with _not_saved(progress):
                if files is not None:
                    files.keep(
                        token=machine.token, boot_id=mark[1], modules=spec.image.modules,
                        loaded=_loaded_modules(shell, spec.kernel),
                    )  # fmt: skip

        yield keep


@contextmanager
def _not_saved(progress: Progress) -> Iterator[None]:
    """Report why a host cannot be saved, and go on without."""
    try:
        yield
    except (BenchError, OSError) as exc:
        progress.note(f"host: not saved: {exc}")


def _loaded_modules(shell: Shell, kernel: KernelBundle) -> dict[str, str]:
    """Return the loaded modules with the sha256 of their files. Raises BenchError if the kernel
    has no file of one: nothing would prove that a restored host has the same."""
    names = shell.run(["cut", "-d ", "-f1", "/proc/modules"]).stdout.split()
    digests = digest_modules(kernel, names)
    if unknown := {*names} - digests.keys():
        raise BenchError(
            f"the kernel has no file of the module {min(unknown)}, which is loaded",
            reason=Reason.WRONG_MODULE,
        )
    return digests


def restore(machine: StartedVm, spec: BootSpec, keys: RunKeys, saved: SavedHost) -> None:
    """Restore a host, with its keys and devices. Raises BenchError."""
    plugging.read_state(machine.domain, saved.memory)
    _plug_in(machine, spec, keys, own_modules=saved.modules != spec.image.modules)


def _plug_in(
    machine: StartedVm, spec: BootSpec, keys: RunKeys, *, own_modules: bool = False
) -> None:
    """Plug everything into a suspended host that is its own, and let it go on."""
    domain, description = machine.domain, machine.description
    secret = machine.folder / "keys"
    secret.write_bytes(make_tar({**keys.for_host(), **_renewals(spec.accel)}))
    plugging.plug(domain, disk_xml(description, Disk(secret, "keys"), _KEYS_PORT))
    if own_modules:
        disk = Disk(spec.image.modules, _MODULES)
        plugging.plug(domain, disk_xml(description, disk, _MODULES_PORT))
    for number in range(spec.device.count):
        if spec.device.kind == "ivshmem":
            plugging.plug(domain, shmem_xml(description, number))
        else:
            plugging.execute(
                domain, "device_add", driver="pci-testdev", membar=spec.device.bar,
                bus=f"pci.{BAR_BUS + number}", addr="0x0",
            )  # fmt: skip
    plugging.resume(domain)
    if xml := domain.xml():  # evidence, now with the devices
        (machine.folder / "domain.xml").write_text(xml)


def _renewals(accel: Accel) -> dict[str, bytes]:
    """Return the files by which a host renews its random state and its wall clock. The clock of an
    exact host goes on as it was saved: it counts instructions from a fixed date, as that of a host
    that was booted."""
    clock = {} if accel == "exact" else {"time": str(time.time()).encode()}
    return {"seed": os.urandom(64), **clock}


def mount_own_modules(shell: Shell, spec: BootSpec, saved: SavedHost) -> None:
    """Mount the arm's own modules, if the host was saved with another arm's. Raises BenchError."""
    if saved.modules != spec.image.modules:
        shell.run(
            ["sh", "-c", _MOUNT_MODULES, "sh", _MODULES, spec.kernel.release],
            doing="mounting the arm's modules",
        )


def wait_for_devices(shell: Shell, spec: BootSpec) -> None:
    """Wait until the kernel has placed the BARs of the plugged devices, or for some time: who uses
    them then says what is missing."""

    def are_placed() -> bool | None:
        # one program: emulated machines are slow at starting them
        listed = shell.run("cat /sys/bus/pci/devices/*/resource", doing="looking at BARs").stdout
        return True if count_bars(listed, spec.device.bar) >= spec.device.count else None

    with contextlib.suppress(BenchError):
        until(are_placed, within=_PLACED_SECONDS, waiting_for="device that was plugged in")


def count_bars(resources: str, size: int) -> int:
    """Count the BARs of this size that have a place, in `resource` files of PCI functions."""
    with parsing("the host's list of BARs", resources):
        parsed = parse_resources(resources.splitlines())
    return sum(
        resource.size == size and resource.placed and not resource.flags & IORESOURCE_WINDOW
        for resource in parsed
    )


@contextmanager
def blaming_restore(
    saved: SavedHost, hosts: SavedHosts, is_stopped: Callable[[], bool]
) -> Iterator[None]:
    """If the block fails, charge it to the bench, whatever failed: a kernel is blamed only on a
    host that it has booted. The trial is made again, on such a host."""
    try:
        yield
    except BarometerError as exc:
        if is_stopped():
            raise
        hosts.remove(saved)
        raise BenchError(
            f"on a restored host: {exc.message}", evidence=exc.evidence,
            reason=Reason.RESTORED_HOST, hint=RUN_AGAIN,
        ) from exc  # fmt: skip
