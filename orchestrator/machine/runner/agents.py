"""Programs that run on a machine: agents of guests/agents/, and the keeper. The machine needs
python3, and keeps nothing of a program that is sent to it.

There are two ways to run one. `run_agent` runs a program once, with one request. A `StayingAgent`
stays: it is told lines and tells lines, until the connection or the block ends. Either takes an
`AgentProgram`, which is sent to the machine, or is there already: barometer's hosts have the
agents in a folder.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.runner.images import GUESTS
from orchestrator.machine.transport.shell import Commands, Completed, ConnectionLostError, Dialogue

_READ = "import sys; program = sys.stdin.buffer.read(int(sys.argv.pop(1)));"
"""Reads the program from standard input; the rest of the input is the program's own. The first
argument is the program's size in bytes."""
_RUN_SOURCE = f"{_READ} exec(compile(program, 'agent', 'exec'))"
_RUN_ARCHIVE = (
    f"{_READ} import os, runpy; file = os.memfd_create('agent');"  # Python 3.8
    "open(file, 'wb', closefd=False).write(program);"
    "runpy.run_path(f'/proc/self/fd/{file}', run_name='__main__')"
)
_ZIP = b"PK"


@dataclass(frozen=True)
class AgentProgram:
    command: tuple[str, ...]
    """Command line that starts it; its arguments follow."""
    content: bytes = b""
    """The program itself, if it is not on the machine: what the command reads first from its
    standard input."""

    def under(self, *words: str) -> AgentProgram:
        """Return the program, started by other words, such as setarch."""
        return replace(self, command=(*words, *self.command))


def staged_agent(payload: str, name: str) -> AgentProgram:
    """Return an agent that is in the folder `payload` on the machine."""
    return AgentProgram(("python3", "-I", f"{payload}/agents/{name}.py"))


def sent_agent(name: str) -> AgentProgram:
    """Return an agent that needs no other file, to be sent."""
    return sent_program((GUESTS / f"agents/{name}.py").read_bytes())


def sent_program(content: bytes) -> AgentProgram:
    """Return a program to be sent: source, or a zip archive."""
    run = _RUN_ARCHIVE if content.startswith(_ZIP) else _RUN_SOURCE
    return AgentProgram(("python3", "-I", "-c", run, str(len(content))), content)


def run_agent(
    machine: Commands, program: AgentProgram, *arguments: str, request: bytes = b"", **how: Any
) -> Completed:
    """Run a program to its end, with a request on its standard input. `how`: arguments of
    `Commands.run`, whose errors it raises."""
    return machine.run([*program.command, *arguments], stdin=program.content + request, **how)


class StayingAgent:
    """A program that stays on a machine, over one SSH channel. It is started when it is needed
    first, and again after a failure. Its standard input closes with the channel, which ends it: it
    never outlives its runner."""

    def __init__(
        self, connect: Callable[[], Commands], program: AgentProgram, *arguments: str
    ) -> None:
        self._connect, self._program, self._arguments = connect, program, arguments
        self._channel = contextlib.ExitStack()
        self._dialogue: Dialogue | None = None

    def __enter__(self) -> StayingAgent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def dialogue(self, within: float) -> Dialogue:
        """Return its lines, and the way to send it lines; start it, if it does not run. `within`:
        seconds for each line."""
        if self._dialogue is None:
            command = [*self._program.command, *self._arguments]
            stream = self._connect().stream(command, timeout=within)
            self._dialogue = self._channel.enter_context(stream)
            if self._program.content:
                self._dialogue.send(self._program.content)
        return self._dialogue

    def ask(self, request: Mapping[str, Any], within: float) -> str:
        """Send a request and return the line that answers it. `within`: seconds for each line.
        Raises ConnectionLostError if there is none."""
        try:
            dialogue = self.dialogue(within)
            dialogue.say(json.dumps(request))
            return next(dialogue)
        except (OSError, EOFError, StopIteration) as exc:
            self.close()
            raise ConnectionLostError(
                f"an agent was lost: {exc or type(exc).__name__}", reason=Reason.HOST_SSH_LOST
            ) from exc
        except BenchError:
            self.close()
            raise

    def close(self) -> None:
        """End the program, if it runs. The next request starts it again."""
        self._dialogue = None
        self._channel.close()
