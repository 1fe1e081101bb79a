"""Stop a running domain, plug devices into it, write its state to a file, and read it back.

The state goes through QEMU's monitor, by migration to a file. libvirt's own words do not fit: save
ends the domain, and restore gives the new one the name and the UUID of the saved one. Two hosts
could not be restored from one file at a time, and `barometer clean`, which knows a QEMU by the
UUID of its domain, would end a host of another run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import libvirt

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.machine.vm.hypervisor import Domain

_STATE_SECONDS = 300.0
"""Deadline to write or read the state: 200 MiB, on a busy machine."""
_UNLIMITED = 1 << 40
"""Bytes per second; QEMU's default is 128 MiB/s."""


def suspend(domain: Domain) -> None:
    """Stop the domain's CPUs and its clocks until `resume`. Both raise BenchError."""
    domain.ask("libvirt could not suspend", "suspend")


def resume(domain: Domain) -> None:
    domain.ask("libvirt could not resume", "resume")


def plug(domain: Domain, xml: str) -> None:
    """Plug a device into the domain. Raises BenchError."""
    live = libvirt.VIR_DOMAIN_AFFECT_LIVE
    domain.ask("libvirt could not plug a device into", "attachDeviceFlags", xml, live)


def write_state(domain: Domain, path: Path) -> None:
    """Write the state of a domain that is suspended to a new file, which only its owner can read.
    The domain can go on after that. Raises BenchError."""
    path.touch(mode=0o600)
    execute(domain, "migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
    execute(domain, "migrate", uri=f"file:{path}")
    _wait_for_migration(domain, "written")


def read_state(domain: Domain, path: Path) -> None:
    """Read the state of a domain that was started for it and is suspended. Raises BenchError."""
    execute(domain, "migrate-incoming", uri=f"file:{path}")
    _wait_for_migration(domain, "read")


def _wait_for_migration(domain: Domain, done: str) -> None:
    def has_ended() -> bool | None:
        answer = execute(domain, "query-migrate")
        if answer.get("status") in ("failed", "cancelled"):
            raise BenchError(
                f"the state of {domain.name} could not be {done}",
                evidence=str(answer.get("error-desc", "")), reason=Reason.MONITOR,
            )  # fmt: skip
        return True if answer.get("status") == "completed" else None

    until(has_ended, within=_STATE_SECONDS, waiting_for=f"host's state to be {done}", every=0.02)


def execute(domain: Domain, command: str, **arguments: object) -> Any:
    """Execute a command of QEMU's machine protocol and return what it returns. Raises BenchError,
    with QEMU's reason, if QEMU refuses it."""
    request = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(domain.monitor(request, qmp=True))
    if "error" in answer:
        raise BenchError(
            f"QEMU refused {command!r}: {answer['error'].get('desc')}", reason=Reason.MONITOR
        )
    return answer["return"]
