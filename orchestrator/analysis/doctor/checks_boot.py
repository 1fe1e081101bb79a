"""Can this machine boot another kernel, and come back to its own? Findings, from evidence
alone."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.analysis.doctor.abilities import LOCKDOWN, ExaminedMachine, parse_version
from orchestrator.analysis.doctor.finding import Finding, Needs
from orchestrator.evidence.checkup_facts import NOT_EXAMINED, BootMeans, NoMeans
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
            "lockdown", "warning", "whether the kernel is locked down is not known", evidence,
            "as root: barometer doctor",
        )  # fmt: skip
        return
    if level == "none" and not secure_boot:
        yield Finding("lockdown", "ok", "the kernel is not locked down", evidence)
        return
    ways = ["turn Secure Boot off in the firmware's setup"] if secure_boot else []
    if level in machine.options("lockdown"):
        ways.append(f"take lockdown={level} out of the kernel's command line, and reboot")
    if level == "none":
        what = "Secure Boot is on: it boots signed kernels alone, and those lock themselves down"
    else:
        what = (
            f"the kernel is locked down ({level}): barometer cannot write to a device's"
            " configuration space, nor boot a kernel that is not signed (VFIO itself works)"
        )
    yield Finding(
        "lockdown", "problem", what, evidence,
        "; ".join(ways) or "turn Secure Boot off in the firmware's setup, where it is on; else a"
        " kernel without CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    )  # fmt: skip


def check_boot_ways(machine: ExaminedMachine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on how a kernel under test can be booted once, as the machine's keeper
    detected it."""
    if (means := machine.means) is None:
        why = machine.facts.means.why if isinstance(machine.facts.means, NoMeans) else "not asked"
        yield Finding("boot", "note", "how another kernel can be booted is root's to know",
                      (f"the keeper: {why}",), "as root: barometer doctor")  # fmt: skip
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
        what = f"another kernel can be booted by {', '.join(usable)}"
        yield Finding("boot", "ok", what, evidence)
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
    return "mend what one of them lacks; kexec is the fastest"


def check_others(machine: ExaminedMachine, _needs: Needs) -> Iterator[Finding]:
    if machine.facts.leases is NOT_EXAMINED and machine.present(_STATE):
        yield Finding(
            "experiment", "warning", "whether another experiment is at work here is not known",
            (f"{_STATE}: there, and the keeper did not tell its leases",),
            "as root: barometer doctor",
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
            "host.wait, or wait for it",
        )  # fmt: skip
    if live:
        return
    if _STATE not in machine.facts.present:
        yield Finding(
            "experiment", "warning", "whether another experiment is at work here is not known",
            (f"{_STATE}: nobody looked for it",), "barometer doctor of this version",
        )  # fmt: skip
    elif machine.present(_STATE):
        yield Finding(
            "experiment", "warning", "an experiment that was killed left something here",
            (f"{_STATE}: there, and no lease is live",), "barometer recover puts it back",
        )  # fmt: skip
    else:
        yield Finding("experiment", "ok", "nothing of another experiment is here",
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
            "no watchdog: a kernel that hangs keeps the machine until it is turned off and on",
            ("/sys/class/watchdog: empty",),
            "modprobe the board's (iTCO_wdt, sp5100_tco, wdat_wdt), and its name into"
            " /etc/modules-load.d/watchdog.conf; or host.power_cycle",
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
            "watchdog", "warning", "no watchdog that could watch over a boot: "
            + "; ".join(device.why for device in devices),
            evidence, "end what uses it (RuntimeWatchdogSec= of systemd), without nowayout=1;"
            " or host.power_cycle",
        )  # fmt: skip
    elif (way := _choose_way(means, needs)) not in (None, "kexec"):
        yield Finding(
            "watchdog", "warning",
            f"no watchdog watches over a boot by {way}, which resets {names} too",
            (*evidence, f"kexec: {means.kexec.why or 'usable'}"),
            'host.power_cycle; or boots by kexec, host.boot = "kexec"',
        )  # fmt: skip
    elif stop != "0":
        yield Finding(
            "watchdog", "warning", f"a watchdog that may be stopped by a boot: {names}", evidence,
            "watchdog.stop_on_reboot=0 on the machine's own command line, or host.power_cycle",
        )  # fmt: skip
    else:
        yield Finding("watchdog", "ok", f"a watchdog: {names}", evidence)
