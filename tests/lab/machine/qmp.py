"""Talk to QEMU's monitor (QEMU Machine Protocol).

From a command line: qmp.py SOCKET COMMAND, for a machine's power button.
"""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until

_SECONDS = 20


def ask(monitor: Path, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Return QEMU's answer to the command at the socket `monitor`. Raises BenchError for an
    error."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(_SECONDS)
        until(partial(_connect, channel, monitor), within=_SECONDS, waiting_for="QEMU's monitor")
        with channel.makefile("rw", encoding="utf-8") as lines:
            lines.readline()  # the greeting
            answer: dict[str, Any] = {}
            for name, given in (("qmp_capabilities", {}), (command, arguments or {})):
                lines.write(json.dumps({"execute": name, "arguments": given}) + "\n")
                lines.flush()
                answer = _answer(lines)
                if "error" in answer:
                    raise BenchError(
                        f"QEMU: {name}: {answer['error']['desc']}", reason=Reason.MONITOR
                    )
            return answer["return"]


def _connect(channel: socket.socket, monitor: Path) -> bool | None:
    """Return True if connected, and None while the socket has its name, but does not listen
    yet."""
    try:
        channel.connect(str(monitor))
    except ConnectionRefusedError:
        return None
    return True


def _answer(lines: TextIO) -> dict[str, Any]:
    """Return the next line that is no event."""
    while "event" in (said := dict(json.loads(lines.readline()))):
        pass
    return said


if __name__ == "__main__":
    ask(Path(sys.argv[1]), sys.argv[2])
