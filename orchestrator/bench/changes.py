"""What is changed on a host. One that outlives the run keeps a journal of it; a VM of barometer's
own does not. The runner remembers what a trial changed on a VM that the next one shares."""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.abi import chosen
from orchestrator.bench.shell import Shell


class Changes(Protocol):
    """Each is to be asked before the change that it is about."""

    def write(self, path: str, value: str) -> None:
        """Write a file under /sys or /proc/sys. Raises BenchError, with the kernel's reason."""

    def tracing(self, instance: str, group: str) -> None:
        """A tracefs instance and a group of probes are going to be made."""

    def guest(self, uuid: str) -> None:
        """A domain with that UUID is going to be started."""

    def files(self, *paths: str) -> None:
        """Files are going to be made, and are to be gone in the end."""


class Unrecorded:
    """Of a host that is gone with all its changes when the trial ends."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    def write(self, path: str, value: str) -> None:
        # sysfs refuses to make a file, in words of its own
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


class Remembered(Unrecorded):
    """Of a host that other trials share: guests/agents/sharing.py is to put back what is made."""

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell)
        self.made: list[tuple[str, dict[str, Any]]] = []
        """In their order: the kind, and what it takes to undo it."""

    def write(self, path: str, value: str) -> None:
        former = self._shell.run(["cat", path], check=False)
        change = ("write", {"path": path, "former": chosen(former.stdout.strip())})
        if former.code == 0:
            self.made.append(change)
        super().write(path, value)
        if former.code:  # it cannot be put back, and that is found then
            self.made.append(change)

    def tracing(self, instance: str, group: str) -> None:
        self.made.append(("tracing", {"instance": instance, "group": group}))

    def guest(self, uuid: str) -> None:
        self.made.append(("guest", {"uuid": uuid}))

    def files(self, *paths: str) -> None:
        self.made.append(("claim", {"paths": [*paths]}))
