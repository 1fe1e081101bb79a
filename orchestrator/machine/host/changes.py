"""Records of the changes that are made on a host. A host that outlives the run keeps a journal.
What a trial changed on a VM of barometer's own is remembered by the runner."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.base.errors import BenchError
from orchestrator.base.process import tail
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.formats.abi import parse_selected
from orchestrator.machine.runner.agents import run_agent, staged_agent
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import Shell

VFIO = "vfio-pci"
"""Driver of a device that is a guest's, or a program's in user space."""

_MOST_BYTES = "4096"
"""Longest value that is remembered: a file of sysfs has at most a page."""


class ChangeLog(Protocol):
    """Changes of one host. `write` and `bind` make a change; the others announce one that the
    caller is about to make."""

    def write(self, path: str, value: str) -> None:
        """Write a file under /sys or /proc/sys. Raises BenchError with the kernel's reason."""

    def bind(self, addresses: Sequence[str]) -> None:
        """Bind PCI functions to vfio-pci, which is loaded. Raises BenchError: `bind` with the
        reason, `driver-hangs`, `decode-always-on`."""

    def tracing(self, instance: str, group: str) -> None:
        """Announce a tracefs instance and a group of probes."""

    def guest(self, uuid: str) -> None:
        """Announce a domain with that UUID."""

    def files(self, *paths: str) -> None:
        """Announce new files, which have to be removed in the end."""

    def put_back(self) -> None:
        """Undo the changes that the host would not outlive, the latest first. A change that cannot
        be undone stays on record. Raises BenchError if the host does not answer."""


class RememberedChanges:
    """Changes of a VM of barometer's own; guests/agents/sharing.py puts them back."""

    def __init__(self, shell: Shell, payload: str) -> None:
        """`payload`: folder on the host with the agents."""
        self._shell, self._payload = shell, payload
        self.made: list[tuple[str, dict[str, Any]]] = []
        """Changes in order: the kind of each, and the facts that undoing it needs."""

    def write(self, path: str, value: str) -> None:
        former = self._shell.run(["head", "-c", _MOST_BYTES, "--", path], check=False)
        change = ("write", {"path": path, "former": parse_selected(former.stdout.strip())})
        if former.code == 0:
            self.made.append(change)
        # without this test sysfs would refuse to create the file, and not say that it is missing
        script = '[ -e "$1" ] || { echo "no such file" >&2; exit 1; }; exec tee "$1" > /dev/null'
        self._shell.run(
            ["sh", "-c", script, "sh", path], stdin=f"{value}\n".encode(),
            doing=f"writing {value} to {path}",
        )  # fmt: skip
        if former.code:  # its old value is unknown: putting it back will fail, and say so
            self.made.append(change)

    def bind(self, addresses: Sequence[str]) -> None:
        output = run_agent(
            self._shell, staged_agent(self._payload, "bind"), VFIO, *addresses,
            doing=f"binding {', '.join(addresses)} to {VFIO}",
        ).stdout  # fmt: skip
        with parsing("the binder's answer", output):
            answer = json.loads(output)
            refusal = answer.get("message")
            reason = parse_reason(answer["refused"]) if refusal else None
            bound = [] if refusal else [dict(facts) for facts in answer["bound"]]
            if not refusal and [facts["address"] for facts in bound] != [*addresses]:
                raise ValueError("other functions were bound")
        if refusal:
            raise BenchError(f"{self._shell.name}: {refusal}", reason=reason or Reason.BIND)
        self.made += [("bind", facts) for facts in bound]

    def tracing(self, instance: str, group: str) -> None:
        self.made.append(("tracing", {"instance": instance, "group": group}))

    def guest(self, uuid: str) -> None:
        self.made.append(("guest", {"uuid": uuid}))

    def files(self, *paths: str) -> None:
        self.made.append(("claim", {"paths": [*paths]}))

    def put_back(self) -> None:
        failed, _ = put_back_changes(self._shell, self._payload, self.made)
        if not failed:
            self.made.clear()


def put_back_changes(
    shell: Shell, payload: str, changes: Sequence[tuple[str, dict[str, Any]]]
) -> tuple[list[str], dict[str, str]]:
    """Undo changes of a VM of barometer's own, the latest first. Return what could not be undone,
    and the host's state (modules, parameters, probes, processes, mounts). Raises BenchError."""
    output = run_agent(
        shell, staged_agent(payload, "sharing"), request=json.dumps(changes).encode(),
        doing="putting the host back as it was",
    ).stdout  # fmt: skip
    try:
        answer = json.loads(output)
        return answer["failed"], answer["state"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise BenchError(
            "the host does not tell how it is", evidence=tail(output), reason=Reason.HOST_SILENT
        ) from exc
