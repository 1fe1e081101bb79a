"""Can this machine boot another kernel, and come back to its own? Findings, from evidence
alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import LOCKDOWN, ExaminedMachine, parse_version
from orchestrator.analysis.doctor.finding import Finding, Needs
from orchestrator.evidence.surveys.checkup_facts import NOT_EXAMINED, BootMeans, NoMeans
from orchestrator.scenario.vocabulary import BootWay

_STATE = "/var/lib/barometer"
"""Folder of all that barometer keeps on a metal host."""
_PYTHON = (3, 9)
_STOP_ON_REBOOT = "/sys/module/watchdog/parameters/stop_on_reboot"


def check_root(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    if machine.is_root:
        yield Finding("root", "ok", "root", ("id -u: 0",))
    else:
        user = machine.facts.user
        yield Finding(
            "root", "problem", f"{user} is not root: kernel and drivers cannot be changed",
            (f"id -u: {machine.facts.uid}",),
            f"log in as root, or sudo without a password: {user} ALL=(root) NOPASSWD: ALL",
        )  # fmt: skip


def check_python(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    version = machine.facts.python
    if parse_version(version) >= _PYTHON:
        yield Finding("python", "ok", f"Python {version}", (f"python3 --version: {version}",))
    else:
        yield Finding("python", "problem", f"Python {version} is too old",
                      (f"python3 --version: {version}",), "Python 3.9 or later")  # fmt: skip


def check_lockdown(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on lockdown, under which a run cannot work: it writes to the device's
    configuration space, and pci_write_config() checks LOCKDOWN_PCI_ACCESS, which the level
    integrity already refuses. VFIO itself works under integrity. Distributions' kernels
    lock themselves down if Secure Boot is on, so a kernel under test would lock itself down, even
    if the machine's own kernel does not."""
    level = machine.lockdown
    secure_boot = machine.means.secure_boot if machine.means else None
    evidence = (
        machine.quote(LOCKDOWN),
        *(f"/proc/cmdline: {word}" for word in machine.words if word.startswith("lockdown=")),
        f"EFI variable SecureBoot: {'unknown' if secure_boot is None else int(secure_boot)}",
    )
    if LOCKDOWN in machine.facts.unreadable:
        yield Finding(
            "lockdown", "warning", "it is not known if the kernel is locked down", evidence,
            "run barometer doctor as root",
        )  # fmt: skip
        return
    if level == "none" and not secure_boot:
        yield Finding("lockdown", "ok", "the kernel is not locked down", evidence)
        return
    ways = ["turn Secure Boot off in the firmware's setup"] if secure_boot else []
    if level in machine.options("lockdown"):
        ways.append(f"take lockdown={level} out of the kernel's command line, and reboot")
    if level == "none":
        text = "Secure Boot is on: it boots only signed kernels, and these lock themselves down"
    else:
        text = (
            f"the kernel is locked down ({level}): barometer cannot write to a device's"
            " configuration space, nor boot a kernel that is not signed (VFIO itself works)"
        )
    yield Finding(
        "lockdown", "problem", text, evidence,
        "; ".join(ways) or "if Secure Boot is on, turn it off in the firmware's setup; otherwise"
        " use a kernel without CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    )  # fmt: skip


def check_boot_ways(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on how a kernel under test can be booted once, as the machine's keeper
    detected it."""
    if (means := machine.means) is None:
        why = machine.facts.means.why if isinstance(machine.facts.means, NoMeans) else "not asked"
        yield Finding("boot", "note", "only root can see how another kernel can be booted",
                      (f"the keeper: {why}",), "run barometer doctor as root")  # fmt: skip
        return
    usable = _usable(means)
    methods = means.methods
    evidence = tuple(f"{name}: {method.why or 'usable'}" for name, method in methods.items())
    if needs.boot != "auto" and needs.boot not in usable:
        yield Finding(
            "boot", "problem", f'host.boot = "{needs.boot}": {methods[needs.boot].why}', evidence,
            f'host.boot = "{usable[0]}"' if usable else _another_way(means),
        )  # fmt: skip
    elif usable:
        text = f"another kernel can be booted by {', '.join(usable)}"
        yield Finding("boot", "ok", text, evidence)
    else:
        yield Finding("boot", "problem", "there is no way to boot another kernel once", evidence,
                      _another_way(means))  # fmt: skip


def _choose_way(means: BootMeans, needs: Needs) -> BootWay | None:
    """Return the way in which a run boots a kernel, or None if there is none."""
    return next((name for name in _usable(means) if needs.boot in ("auto", name)), None)


def _usable(means: BootMeans) -> list[BootWay]:
    return [name for name, method in means.methods.items() if method.usable]


def _another_way(means: BootMeans) -> str:
    if "kexec-tools" in means.kexec.why:
        return "apt-get install kexec-tools"
    return "add what one of these ways lacks; kexec is the fastest"


def check_others(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    if machine.facts.leases is NOT_EXAMINED and machine.present(_STATE):
        yield Finding(
            "experiment", "warning", "it is not known if another experiment uses this machine",
            (f"{_STATE}: exists, but the keeper's leases could not be read",),
            "run barometer doctor as root",
        )  # fmt: skip
        return
    leases = () if machine.facts.leases is NOT_EXAMINED else machine.facts.leases
    live = [lease for lease in leases if not lease.expired]
    for lease in live:
        owner = lease.owner
        yield Finding(
            "experiment", "warning",
            f"{owner.user}@{owner.runner} holds {', '.join(lease.resources)}",
            (f"lease {lease.token}: {owner.what}, for {lease.left:.0f} s more",),
            "wait for it, or set host.wait",
        )  # fmt: skip
    if live:
        return
    if _STATE not in machine.facts.present:
        yield Finding(
            "experiment", "warning", "it is not known if another experiment uses this machine",
            (f"{_STATE}: not looked for",), "run barometer doctor of this version",
        )  # fmt: skip
    elif machine.present(_STATE):
        yield Finding(
            "experiment", "warning", "an experiment that was killed left something here",
            (f"{_STATE}: exists, and no lease is in use",), "barometer recover puts it back",
        )  # fmt: skip
    else:
        yield Finding("experiment", "ok", "no other experiment left anything here",
                      (f"{_STATE}: no such file",))  # fmt: skip


def check_watchdog(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on watchdogs that can restart the machine if a kernel under test hangs. One
    watchdog must be free, it must be possible to stop it, and the kernel must leave it running
    over a kexec. A boot through a boot loader resets the machine, which ends the watchdog's
    countdown."""
    if (means := machine.means) is None:
        return  # the finding `boot` says so
    devices = means.watchdogs
    if not devices:
        yield Finding(
            "watchdog", "warning",
            "no watchdog: if a kernel hangs, the machine must be turned off and on by hand",
            ("/sys/class/watchdog: empty",),
            "modprobe the board's driver (iTCO_wdt, sp5100_tco, wdat_wdt) and put its name into"
            " /etc/modules-load.d/watchdog.conf; or set host.power_cycle",
        )  # fmt: skip
        return
    names = ", ".join(device.identity or device.device for device in devices)
    stop = means.watchdog_stop_on_reboot
    evidence = (
        *(f"{device.device}: driver {device.driver}, state {device.state}, nowayout"
          f" {device.nowayout}" for device in devices),
        f"{_STOP_ON_REBOOT}: {'no such file' if stop is None else stop}",
    )  # fmt: skip
    if all(device.why for device in devices):
        yield Finding(
            "watchdog", "warning", "no watchdog can restart the machine during a boot: "
            + "; ".join(device.why for device in devices),
            evidence, "stop what uses it (RuntimeWatchdogSec= of systemd) and load it without"
            " nowayout=1; or set host.power_cycle",
        )  # fmt: skip
    elif (way := _choose_way(means, needs)) not in (None, "kexec"):
        yield Finding(
            "watchdog", "warning",
            f"no watchdog works during a boot by {way}, because that resets {names}",
            (*evidence, f"kexec: {means.kexec.why or 'usable'}"),
            'set host.power_cycle, or host.boot = "kexec"',
        )  # fmt: skip
    elif stop != "0":
        yield Finding(
            "watchdog", "warning", f"a boot may stop the watchdog {names}", evidence,
            "put watchdog.stop_on_reboot=0 on the machine's own command line, or set"
            " host.power_cycle",
        )  # fmt: skip
    else:
        yield Finding("watchdog", "ok", f"a watchdog: {names}", evidence)
