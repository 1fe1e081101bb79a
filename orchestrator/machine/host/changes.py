"""Records of the changes that are made on a host. A host that outlives the run keeps a journal; a
VM of barometer's own does not. If trials share a VM, the runner remembers what each changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason, parse_reason
from orchestrator.formats.abi import parse_selected
from orchestrator.machine.runner.agents import run_agent, staged_agent
from orchestrator.machine.transport.answers import parsing
from orchestrator.machine.transport.shell import Shell

VFIO = "vfio-pci"
"""Driver of a device that is a guest's, or a program's in user space."""


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


class DirectChanges:
    """Changes of a host that ends with the trial. They end with it, so they are not recorded."""

    def __init__(self, shell: Shell, payload: str) -> None:
        """`payload`: folder on the host with the agents."""
        self._shell, self._payload = shell, payload

    def write(self, path: str, value: str) -> None:
        # without this test sysfs would refuse to create the file, and not say that it is missing
        script = '[ -e "$1" ] || { echo "no such file" >&2; exit 1; }; exec tee "$1" > /dev/null'
        self._shell.run(
            ["sh", "-c", script, "sh", path], stdin=f"{value}\n".encode(),
            doing=f"writing {value} to {path}",
        )  # fmt: skip

    def bind(self, addresses: Sequence[str]) -> None:
        self._bind(addresses)

    def _bind(self, addresses: Sequence[str]) -> list[dict[str, Any]]:
        """Bind the functions, and return the facts that undoing it needs."""
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
        return bound

    def tracing(self, instance: str, group: str) -> None:
        pass

    def guest(self, uuid: str) -> None:
        pass

    def files(self, *paths: str) -> None:
        pass


class RememberedChanges(DirectChanges):
    """Changes of a host that other trials share; guests/agents/sharing.py puts them back."""

    def __init__(self, shell: Shell, payload: str) -> None:
        super().__init__(shell, payload)
        self.made: list[tuple[str, dict[str, Any]]] = []
        """Changes in order: the kind of each, and the facts that undoing it needs."""

    def write(self, path: str, value: str) -> None:
        former = self._shell.run(["cat", path], check=False)
        change = ("write", {"path": path, "former": parse_selected(former.stdout.strip())})
        if former.code == 0:
            self.made.append(change)
        super().write(path, value)
        if former.code:  # its old value is unknown: putting it back will fail, and say so
            self.made.append(change)

    def bind(self, addresses: Sequence[str]) -> None:
        self.made += [("bind", facts) for facts in self._bind(addresses)]

    def tracing(self, instance: str, group: str) -> None:
        self.made.append(("tracing", {"instance": instance, "group": group}))

    def guest(self, uuid: str) -> None:
        self.made.append(("guest", {"uuid": uuid}))

    def files(self, *paths: str) -> None:
        self.made.append(("claim", {"paths": [*paths]}))
