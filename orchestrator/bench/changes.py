"""What is changed on a host. One that outlives the run keeps a journal of it; a VM of barometer's
own does not."""

from __future__ import annotations

from typing import Protocol

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
