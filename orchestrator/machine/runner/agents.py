"""Programs that are sent to a machine and run there: agents of guests/agents/, and the keeper.
Nothing has to be on the machine but python3, and nothing of them stays there.

`run_agent` sends a program with one request. A `StayingAgent` is sent once and stays: it answers
each line of JSON by a line of JSON, until the connection or the block ends. The hosts of barometer
have their agents in a folder (`Host.agent`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
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


def agent_source(name: str) -> bytes:
    """Return the source of an agent that needs no other file."""
    return (GUESTS / f"agents/{name}.py").read_bytes()


def run_agent(
    machine: Commands,
    program: bytes,
    *arguments: str,
    request: bytes = b"",
    before: Sequence[str] = (),
    **how: Any,
) -> Completed:
    """Run a program, source or a zip archive, on the machine with a request on its standard input.
    `before`: words before the command, such as setarch. `how`: arguments of `Commands.run`, whose
    errors it raises."""
    command = [*before, *_command(program, *arguments)]
    return machine.run(command, stdin=program + request, **how)


def _command(program: bytes, *arguments: str) -> list[str]:
    run = _RUN_ARCHIVE if program.startswith(_ZIP) else _RUN_SOURCE
    return ["python3", "-I", "-c", run, str(len(program)), *arguments]


class StayingAgent:
    """A program that stays on a machine between requests, over one SSH channel. It is sent with
    the first request, and sent again with the first after a failure. Its standard input closes
    with the channel, which ends it: it never outlives its runner."""

    def __init__(self, connect: Callable[[], Commands], program: bytes, *arguments: str) -> None:
        self._connect, self._program, self._arguments = connect, program, arguments
        self._channel = contextlib.ExitStack()
        self._dialogue: Dialogue | None = None

    def ask(self, request: Mapping[str, Any], within: float) -> str:
        """Send a request and return the line that answers it. `within`: seconds for each line.
        Raises ConnectionLostError if there is none."""
        try:
            if self._dialogue is None:
                command = _command(self._program, *self._arguments)
                stream = self._connect().stream(command, timeout=within)
                self._dialogue = self._channel.enter_context(stream)
                self._dialogue.send(self._program)
            self._dialogue.say(json.dumps(request))
            return next(self._dialogue)
        except (OSError, EOFError, StopIteration) as exc:
            self.close()
            raise ConnectionLostError(
                f"an agent was lost: {exc or type(exc).__name__}", reason=Reason.HOST_SSH_LOST
            ) from exc
        except BenchError:
            self.close()
            raise

    def close(self) -> None:
        """End the program, if it runs. The next request sends it again."""
        self._dialogue = None
        self._channel.close()
