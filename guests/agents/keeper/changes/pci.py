"""Hand a PCI function to another driver, and back.

The sysfs files are described in Documentation/ABI/testing/sysfs-bus-pci, the registers in the PCI
Local Bus Specification 3.0, section 6.2.2.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from keeper import machine, means
from keeper.machine import RefusedError

_BUS = "/sys/bus/pci"
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_COMMAND = 4
"""Offset of the command register, 16 bits."""
_MEMORY = 1 << 1
"""Bit of the command register that lets the function answer to memory accesses."""
_UNSET = "(null)"
"""Text of driver_override if none is set."""


def plan(address: str, driver: str) -> dict[str, Any]:
    folder = _folder(address)
    if not _ADDRESS.fullmatch(address) or not machine.at(folder).exists():
        raise RefusedError("bind", f"{folder}: the machine has no such device")
    override = machine.text(f"{folder}/driver_override")
    return {
        "address": address,
        "driver": driver,
        "former": {
            "driver": _driver(address),
            "override": "" if override in (None, _UNSET) else override,
            "command": _command(address),
            "power": machine.text(f"{folder}/power/control"),
        },
    }


def bind(what: dict[str, Any]) -> None:
    """Give the function to the driver. Raises RefusedError if the driver does not take it, or if
    memory decoding cannot be turned off: a guest's firmware turns it off to size and move the
    BARs."""
    address, driver = what["address"], what["driver"]
    folder = _folder(address)
    _detach(address)
    # a virtual function has no such bit: it is hardwired to zero (SR-IOV 1.1, 3.4.1.3)
    if not machine.at(f"{folder}/physfn").exists():
        _prove_decode(address)
    machine.set_value(f"{folder}/driver_override", driver)
    if not machine.at(f"{_BUS}/drivers/{driver}").exists():
        raise RefusedError("bind", f"{_BUS}/drivers/{driver}: the driver is not loaded")
    with machine.refused_as("bind", "setting-refused"):
        machine.set_value_within(f"{_BUS}/drivers_probe", address)
    if (now := _driver(address)) != driver:
        raise RefusedError(
            "bind", f"{address}: {driver} did not take the device, {now or 'no driver'} has it;"
            " the kernel's log may say why",
        )  # fmt: skip


def unbind(what: dict[str, Any]) -> str:
    address, former = what["address"], what["former"]
    folder, driver = _folder(address), former["driver"]
    if _driver(address) != driver:
        _detach(address)
    machine.set_value(f"{folder}/driver_override", former["override"])
    if _driver(address) is None:
        _restore_command(address, former["command"], whole=driver is None)
        if driver is not None:
            _attach(address, driver)
    if former["power"] is not None:
        machine.set_value(f"{folder}/power/control", former["power"])
    if (now := _driver(address)) != driver:
        raise RefusedError(
            "bind", f"{address}: {now or 'no driver'} has the device, and {driver} had"
        )
    return f"{address}: {driver or 'no driver'}"


def _folder(address: str) -> str:
    return f"{_BUS}/devices/{address}"


def _driver(address: str) -> str | None:
    link = machine.at(f"{_folder(address)}/driver")
    return Path(os.readlink(link)).name if link.is_symlink() else None


def _detach(address: str) -> None:
    if _driver(address) is not None:
        machine.set_value_within(f"{_folder(address)}/driver/unbind", address)


def _attach(address: str, driver: str) -> None:
    path = f"{_BUS}/drivers/{driver}"
    if not machine.at(path).exists():
        raise RefusedError("bind", f"{path}: the device's former driver is not loaded")
    machine.set_value_within(f"{path}/bind", address)


def _command(address: str) -> int | None:
    """Return the command register, or None if it cannot be read."""
    try:
        config = machine.at(f"{_folder(address)}/config").read_bytes()
    except OSError:
        return None
    value = config[_COMMAND : _COMMAND + 2]
    return int.from_bytes(value, "little") if len(value) == 2 else None


def _set_command(address: str, value: int) -> None:
    try:
        with machine.writable(f"{_folder(address)}/config") as file:
            os.pwrite(file, value.to_bytes(2, "little"), _COMMAND)
    except PermissionError as exc:
        if (lockdown := means.lockdown()) == "none":
            raise
        raise RefusedError(
            "bind", f"{exc.filename}: {exc.strerror}: the kernel is locked down ({lockdown}), and"
            " has nobody write to a device's registers",
        ) from exc  # fmt: skip


def _restore_command(address: str, former: int | None, *, whole: bool) -> None:
    """Restore the command register. With `whole` (no driver had the function) every bit is
    restored. Otherwise only the memory bit is, which `_prove_decode` changes and may have left
    changed if it was killed. The driver sets the other bits itself."""
    now = _command(address)
    if former is None or now is None:
        return
    wanted = former if whole else now | former & _MEMORY
    if wanted != now:  # a kernel that has refused to write it would refuse again
        _set_command(address, wanted)


def _prove_decode(address: str) -> None:
    before = _command(address)
    if before is None:
        raise RefusedError("bind", f"{_folder(address)}/config cannot be read")
    _set_command(address, before & ~_MEMORY)
    after = _command(address)
    _set_command(address, before)
    if after is None or after & _MEMORY:
        raise RefusedError(
            "decode-always-on",
            f"{address}: its memory decoding cannot be turned off: the command register reads"
            f" {after or 0:#06x} after bit 1 was cleared",
        )
