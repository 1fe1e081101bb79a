"""Load kernel modules, and unload exactly those again."""

from __future__ import annotations

import time
from typing import Any

from keeper import machine
from keeper.machine import RefusedError

_IN_USE_SECONDS = 5.0


def loaded() -> list[str]:
    """Return the names of the loaded modules, the latest first, as /proc/modules has them."""
    return [line.split()[0] for line in (machine.text("/proc/modules") or "").splitlines()]


def plan(names: list[str]) -> dict[str, Any]:
    """Plan to load modules. `new` has the modules that are not loaded yet, with their
    dependencies."""
    there, new = loaded(), []
    for name in names:
        for line in _modprobe("--show-depends", name).splitlines():
            # insmod /lib/modules/6.12/kernel/drivers/vfio/vfio.ko.xz [parameter...]
            verb, *rest = line.split()
            if verb == "insmod":
                module = rest[0].rpartition("/")[2].partition(".ko")[0].replace("-", "_")
                if module not in there and module not in new:
                    new.append(module)
    return {"names": names, "new": new}


def load(what: dict[str, Any]) -> None:
    for name in what["names"]:
        _modprobe(name)


def _modprobe(*arguments: str) -> str:
    with machine.refused_as("modules-refused", "program-failed"):
        return machine.run("modprobe", *arguments)


def unload(what: dict[str, Any]) -> str:
    """Unload the new modules with rmmod. modprobe -r would also unload modules that they needed
    and nobody else needs now, even those that were there before."""
    deadline = time.monotonic() + _IN_USE_SECONDS
    while ours := [name for name in loaded() if name in what["new"]]:
        refused = ""
        for name in ours:
            try:
                machine.run("rmmod", name)
            except RefusedError as exc:
                refused = str(exc)
        if refused and time.monotonic() > deadline:
            raise RefusedError("module-in-use", refused)
        if refused:
            time.sleep(0.2)
    return f"modules {' '.join(what['new']) or 'none'}: unloaded"
