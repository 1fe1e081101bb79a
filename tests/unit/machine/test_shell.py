"""A shell's use of an SSH connection; tests/lab has the tests with a real server."""

from __future__ import annotations

import threading
from typing import Any, cast

import paramiko

from orchestrator.machine.transport.shell import Shell


class Channel:
    """The channel of a program that reads everything and prints how much that was."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self._said = [b""]
        self.status_event = threading.Event()

    def sendall(self, content: bytes) -> None:
        self.sent.append(content)

    def shutdown_write(self) -> None:
        self._said.insert(0, str(sum(map(len, self.sent))).encode())
        self.status_event.set()

    def recv(self, size: int) -> bytes:
        return self._said.pop(0)

    def recv_stderr(self, size: int) -> bytes:
        return b""

    def recv_exit_status(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Transport:
    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def open_session(self, timeout: float) -> Channel:
        return self._channel


def test_much_input_is_sent_in_pieces() -> None:
    """paramiko's sendall copies the rest each time, which is quadratic."""
    channel = Channel()
    shell = Shell("host", cast(paramiko.Transport, Transport(channel)))
    content = bytes(range(256)) * 20_000 + b"the end"
    assert shell.run(["wc", "-c"], stdin=content).stdout == str(len(content))
    assert b"".join(channel.sent) == content
    assert max(map(len, channel.sent)) <= 1 << 20
