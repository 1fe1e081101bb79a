"""Can this machine boot another kernel, and come back to its own? Findings, from evidence
alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.analysis.finding import Finding, Needs
from orchestrator.analysis.machine import LOCKDOWN, Machine
from orchestrator.scenario import BOOT_WAYS

_STATE = "/var/lib/barometer"
"""Folder of all that barometer keeps on a metal host."""
_PYTHON = (3, 9)
_STOP_ON_REBOOT = "/sys/module/watchdog/parameters/stop_on_reboot"


def root(machine: Machine, _needs: Needs) -> Iterator[Finding]:
    if machine.root:
        yield Finding("root", "ok", "root", ("id -u: 0",))
    else:
        user = machine.raw.get("user", "")
        yield Finding(
            "root", "problem", f"{user} is not root: kernel and drivers cannot be changed",
            (f"id -u: {machine.raw.get('uid')}",),
            f"log in as root, or sudo without a password: {user} ALL=(root) NOPASSWD: ALL",
        )  # fmt: skip


def python(machine: Machine, _needs: Needs) -> Iterator[Finding]:
    version = str(machine.raw.get("python") or "")
    numbers = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if numbers >= _PYTHON:
        yield Finding("python", "ok", f"Python {version}", (f"python3 --version: {version}",))
    else:
        yield Finding("python", "problem", f"Python {version} is too old",
                      (f"python3 --version: {version}",), "Python 3.9 or later")  # fmt: skip


def lockdown(machine: Machine, _needs: Needs) -> Iterator[Finding]:
    """Yield a finding on lockdown, under which no device can be handed over: pci_write_config()
    checks LOCKDOWN_PCI_ACCESS, which the level integrity already refuses. Distributions' kernels
    lock themselves down if Secure Boot is on, so a kernel under test would lock itself down, even
    if the machine's own kernel does not."""
    level = machine.lockdown
    secure_boot = (machine.raw.get("means") or {}).get("secure_boot")
    evidence = (
        machine.said(LOCKDOWN),
        *(f"/proc/cmdline: {word}" for word in machine.words if word.startswith("lockdown=")),
        f"EFI variable SecureBoot: {'unknown' if secure_boot is None else int(secure_boot)}",
    )
    if level == "none" and not secure_boot:
        yield Finding("lockdown", "ok", "the kernel is not locked down", evidence)
        return
    ways = ["turn Secure Boot off in the firmware's setup"] if secure_boot else []
    if level in machine.options("lockdown"):
        ways.append(f"take lockdown={level} out of the kernel's command line, and reboot")
    if level == "none":
        what = "Secure Boot is on: it boots signed kernels alone, and those lock themselves down"
    else:
        what = f"the kernel is locked down ({level}): no device can be handed to VFIO"
    yield Finding(
        "lockdown", "problem", what, evidence,
        "; ".join(ways) or "turn Secure Boot off in the firmware's setup, where it is on; else a"
        " kernel without CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
    )  # fmt: skip


def ways(machine: Machine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on how a kernel under test can be booted once, as the machine's keeper
    detected it."""
    means = machine.raw.get("means") or {}
    if "kexec" not in means:
        yield Finding("boot", "note", "how another kernel can be booted is root's to know",
                      (f"the keeper: {means.get('why', 'did not answer')}",),
                      "as root: barometer doctor")  # fmt: skip
        return
    there = _usable(means)
    evidence = tuple(f"{name}: {means[name]['why'] or 'usable'}" for name in BOOT_WAYS)
    if needs.boot != "auto" and needs.boot not in there:
        yield Finding(
            "boot", "problem", f'host.boot = "{needs.boot}": {means[needs.boot]["why"]}', evidence,
            f'host.boot = "{there[0]}"' if there else _another_way(means),
        )  # fmt: skip
    elif there:
        said = f"another kernel can be booted by {', '.join(there)}"
        yield Finding("boot", "ok", said, evidence)
    else:
        yield Finding("boot", "problem", "there is no way to boot another kernel once", evidence,
                      _another_way(means))  # fmt: skip


def _way(means: Mapping[str, Any], needs: Needs) -> str | None:
    """Return the way in which a run boots a kernel, or None if there is none."""
    there = _usable(means)
    return next((name for name in there if needs.boot in ("auto", name)), None)


def _usable(means: Mapping[str, Any]) -> list[str]:
    return [name for name in BOOT_WAYS if means[name]["usable"]]


def _another_way(means: Mapping[str, Any]) -> str:
    if "kexec-tools" in means["kexec"]["why"]:
        return "apt-get install kexec-tools"
    return "mend what one of them lacks; kexec is the fastest"


def others(machine: Machine, _needs: Needs) -> Iterator[Finding]:
    live = [lease for lease in machine.raw.get("leases") or () if not lease["expired"]]
    for lease in live:
        owner, what = lease["owner"], ", ".join(lease["resources"])
        yield Finding(
            "experiment", "warning", f"{owner.get('user')}@{owner.get('runner')} holds {what}",
            (f"lease {lease['token']}: {owner.get('what')}, for {lease['left']:.0f} s more",),
            "host.wait, or wait for it",
        )  # fmt: skip
    if live:
        return
    if machine.present(_STATE):
        yield Finding(
            "experiment", "warning", "an experiment that was killed left something here",
            (f"{_STATE}: there, and no lease is live",), "barometer recover puts it back",
        )  # fmt: skip
    else:
        yield Finding("experiment", "ok", "nothing of another experiment is here",
                      (f"{_STATE}: no such file",))  # fmt: skip


def watchdog(machine: Machine, needs: Needs) -> Iterator[Finding]:
    """Yield a finding on watchdogs that can restart the machine if a kernel under test hangs. One
    watchdog must be free, it must be possible to stop it, and the kernel must leave it running
    over a kexec. A boot through a boot loader resets the machine, which ends the watchdog's
    countdown."""
    means = machine.raw.get("means") or {}
    devices = means.get("watchdogs")
    if devices is None:
        return
    if not devices:
        yield Finding(
            "watchdog", "warning",
            "no watchdog: a kernel that hangs keeps the machine until it is turned off and on",
            ("/sys/class/watchdog: empty",),
            "modprobe the board's (iTCO_wdt, sp5100_tco, wdat_wdt), and its name into"
            " /etc/modules-load.d/watchdog.conf; or host.power_cycle",
        )  # fmt: skip
        return
    names = ", ".join(str(device["identity"] or device["device"]) for device in devices)
    stop = means.get("watchdog_stop_on_reboot")
    evidence = (
        *(f"{device['device']}: driver {device['driver']}, state {device['state']}, nowayout"
          f" {device['nowayout']}" for device in devices),
        f"{_STOP_ON_REBOOT}: {'no such file' if stop is None else stop}",
    )  # fmt: skip
    if all(device["why"] for device in devices):
        yield Finding(
            "watchdog", "warning", "no watchdog that could watch over a boot: "
            + "; ".join(str(device["why"]) for device in devices),
            evidence, "end what uses it (RuntimeWatchdogSec= of systemd), without nowayout=1;"
            " or host.power_cycle",
        )  # fmt: skip
    elif (way := _way(means, needs)) not in (None, "kexec"):
        yield Finding(
            "watchdog", "warning",
            f"no watchdog watches over a boot by {way}, which resets {names} too",
            (*evidence, f"kexec: {means['kexec']['why'] or 'usable'}"),
            'host.power_cycle; or boots by kexec, host.boot = "kexec"',
        )  # fmt: skip
    elif stop != "0":
        yield Finding(
            "watchdog", "warning", f"a watchdog that may be stopped by a boot: {names}", evidence,
            "watchdog.stop_on_reboot=0 on the machine's own command line, or host.power_cycle",
        )  # fmt: skip
    else:
        yield Finding("watchdog", "ok", f"a watchdog: {names}", evidence)
