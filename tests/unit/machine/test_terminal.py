"""A command's streams over a connection, to a server of paramiko's in this process."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import paramiko
import pytest
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

from orchestrator.base.errors import BenchError
from orchestrator.machine.transport import terminal
from orchestrator.machine.transport.shell import Shell

BLOCK = 1 << 15


class Server(paramiko.ServerInterface):
    """Runs the command of each channel here."""

    def __init__(self) -> None:
        self.ends_at_once = False

    def get_allowed_auths(self, username: str) -> str:
        return "none"

    def check_auth_none(self, username: str) -> int:
        return AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Thread(target=self.run, args=(channel, command), daemon=True).start()
        return True

    def run(self, channel: paramiko.Channel, command: bytes) -> None:
        if self.ends_at_once:
            channel.get_transport().close()
            return
        data = b""
        while chunk := channel.recv(BLOCK):
            data += chunk
        done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False)
        channel.sendall(done.stdout)
        channel.sendall_stderr(done.stderr)
        channel.send_exit_status(done.returncode)
        channel.close()


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def shell(server: Server) -> Iterator[Shell]:
    ours, theirs = socket.socketpair()
    serving = paramiko.Transport(theirs)
    serving.add_server_key(paramiko.ECDSAKey.generate())
    serving.start_server(event=threading.Event(), server=server)  # else it waits for the client
    transport = paramiko.Transport(ours)
    transport.start_client(timeout=20)
    transport.auth_none("root")
    yield Shell("host", transport)
    transport.close()
    serving.close()


class Streams:
    """Pipes in place of the standard streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ends: dict[str, int] = {}
        for name, is_input in (("_INPUT", True), ("_OUTPUT", False), ("_ERRORS", False)):
            reader, writer = os.pipe()
            monkeypatch.setattr(terminal, name, reader if is_input else writer)
            self.ends[name] = writer if is_input else reader
        self.read: dict[str, bytes] = {}

    def run(self, shell: Shell, command: str, data: bytes = b"") -> int:
        def feed() -> None:
            with os.fdopen(self.ends["_INPUT"], "wb") as file:
                file.write(data)

        def drain(name: str) -> None:
            with os.fdopen(self.ends[name], "rb") as file:
                self.read[name] = file.read()

        threads = [threading.Thread(target=feed)]
        threads += [
            threading.Thread(target=drain, args=(name,)) for name in ("_OUTPUT", "_ERRORS")
        ]
        for thread in threads:
            thread.start()
        try:
            return terminal.run_terminal(shell, command)
        finally:
            os.close(terminal._OUTPUT)
            os.close(terminal._ERRORS)
            for thread in threads:
                thread.join(20)
            os.close(terminal._INPUT)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    return Streams(monkeypatch)


@pytest.mark.parametrize("code", [0, 3, 255])
def test_exit_code_and_streams_are_those_of_the_program(
    shell: Shell, streams: Streams, code: int
) -> None:
    assert streams.run(shell, f"echo out; echo err >&2; exit {code}") == code
    assert streams.read == {"_OUTPUT": b"out\n", "_ERRORS": b"err\n"}


def test_all_bytes_go_both_ways(shell: Shell, streams: Streams) -> None:
    data = bytes(range(256)) * 4096
    assert streams.run(shell, "cat", data) == 0
    assert streams.read["_OUTPUT"] == data


def test_a_lost_connection_is_the_benchs(shell: Shell, server: Server, streams: Streams) -> None:
    server.ends_at_once = True
    with pytest.raises(BenchError):
        streams.run(shell, "true")


def test_words_that_make_root_stand_before_the_command(
    shell: Shell, streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    sudo: Any = Shell("host", shell.wire[0], ("env", "A=1", "sh", "-c"))
    assert streams.run(sudo, "echo $A") == 0
    assert streams.read["_OUTPUT"] == b"1\n"
