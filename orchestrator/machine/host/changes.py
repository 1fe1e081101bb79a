"""Records of the changes that are made on a host. A host that outlives the run keeps a journal; a
VM of barometer's own does not. If trials share a VM, the runner remembers what each changed."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.formats.abi import parse_selected
from orchestrator.machine.transport.shell import Shell


class ChangeLog(Protocol):
    """Changes of one host. `write` makes a change; the others announce one that the caller is
    about to make."""

    def write(self, path: str, value: str) -> None:
        """Write a file under /sys or /proc/sys. Raises BenchError with the kernel's reason."""

    def tracing(self, instance: str, group: str) -> None:
        """Announce a tracefs instance and a group of probes."""

    def guest(self, uuid: str) -> None:
        """Announce a domain with that UUID."""

    def files(self, *paths: str) -> None:
        """Announce new files, which have to be removed in the end."""


class DirectChanges:
    """Changes of a host that ends with the trial. They end with it, so they are not recorded."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def write(self, path: str, value: str) -> None:
        # without this test sysfs would refuse to create the file, and not say that it is missing
        script = '[ -e "$1" ] || { echo "no such file" >&2; exit 1; }; exec tee "$1" > /dev/null'
        self._shell.run(
            ["sh", "-c", script, "sh", path], stdin=f"{value}\n".encode(),
            doing=f"writing {value} to {path}",
        )  # fmt: skip

    def tracing(self, instance: str, group: str) -> None:
        pass

    def guest(self, uuid: str) -> None:
        pass

    def files(self, *paths: str) -> None:
        pass


class RememberedChanges(DirectChanges):
    """Changes of a host that other trials share; guests/agents/sharing.py puts them back."""

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell)
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

    def tracing(self, instance: str, group: str) -> None:
        self.made.append(("tracing", {"instance": instance, "group": group}))

    def guest(self, uuid: str) -> None:
        self.made.append(("guest", {"uuid": uuid}))

    def files(self, *paths: str) -> None:
        self.made.append(("claim", {"paths": [*paths]}))
