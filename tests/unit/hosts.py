"""Stand-ins for a host: its shell, and the object through which it is changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.machine.host.host import Host
from orchestrator.machine.metal import staging
from orchestrator.machine.runner.agents import AgentProgram
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Completed, Shell

_PLACES = r"(?<![\w.}*$/-])/(?=(?:sys|proc|etc|lib/modules|var/lib|dev/kvm)\b)"


class HostShell(LocalMachine, Shell):
    """Runs a host's commands here. The host's files are in a folder, and made-up versions of some
    programs are in its `programs`."""

    name = "host"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ran: list[str] = []
        path = f"PATH={root}/programs:/usr/bin:/bin"
        self._before = ("/usr/bin/env", "-i", path, f"ROOT={root}")

    def run(self, argv: Sequence[str] | str, **how: Any) -> Completed:
        self.ran.append(argv if isinstance(argv, str) else " ".join(argv))
        return super().run(argv, **how)

    def alive(self) -> bool:
        return True

    def _words(self, argv: Sequence[str] | str) -> list[str]:
        words = ["sh", "-c", argv] if isinstance(argv, str) else argv
        words = [word.replace(staging._PATH, "") for word in words]
        assert not any("PATH=" in word for word in words), "it would mount on this machine"
        return super()._words([re.sub(_PLACES, f"{self.root}/", word) for word in words])


class AgentHost(SimpleNamespace):
    """A made-up host, with a shell. The command of an agent is its name."""

    shell: Any

    def agent(self, name: str) -> AgentProgram:
        return AgentProgram((name,))

    run_agent = Host.run_agent
    staying_agent = Host.staying_agent


class Recorded:
    """Records changes in `log`, where a test may also record what the host then does."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.written: dict[str, str] = {}

    def write(self, path: str, value: str) -> None:
        self.written[path] = value
        self._note("write", path, value)

    def bind(self, addresses: Sequence[str]) -> None:
        self._note("bind", *addresses)

    def tracing(self, instance: str, group: str) -> None:
        self._note("tracing", instance, group)

    def guest(self, uuid: str) -> None:
        self._note("guest", uuid)

    def files(self, *paths: str) -> None:
        self._note("files", *paths)

    def put_back(self) -> None:
        self._note("put back")

    def _note(self, *words: str) -> None:
        self.log.append(" ".join(["change:", *words]))
