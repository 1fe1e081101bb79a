"""A connection that ssh(1) makes and keeps, and sessions over it (ControlMaster in ssh_config(5)).

The user's configuration holds as it does for `ssh HOST`: identities and certificates, agents,
tokens, known hosts and their authorities, jump hosts, security keys. None of it is read here.
"""

from __future__ import annotations

import contextlib
import secrets
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from orchestrator.base.bounded import Excerpt
from orchestrator.base.process import drain, end_group, start_on_socket

_ERRORS_BYTES = 64 << 10
_READ = 1 << 12
_LOOK_SECONDS = 0.2
"""Longest wait for a greeting before a look whether ssh has ended."""
_LAST_WORDS_SECONDS = 1.0
"""Wait for ssh's exit, and for the end of its standard error, once its output has ended."""
_ENDED = 255
"""Exit code of ssh(1) if an error occurred in it, or in its connection."""
_ROOM = 80
"""Longest path of a folder for the socket: sun_path has 108 bytes (unix(7)), of which ssh needs
some for a name of its own while it makes the socket."""


_KEEPING = '"$@"; rm -rf -- "$0"'
"""Script that runs ssh and removes the socket's folder, even if this process is killed."""


class NoConnectionError(OSError):
    """ssh(1) made no connection."""

    def __init__(self, why: str, log: str) -> None:
        super().__init__(why)
        self.log = log
        """What ssh printed, with LogLevel DEBUG1."""


class Master:
    """An ssh(1) that keeps a connection, by which other ssh(1) run programs.

    It ends with this process, even if that is killed: its standard input is this process's, and
    what it runs on the machine is `cat`.
    """

    def __init__(self, argv: Sequence[str], destination: str, patience: float) -> None:
        """`argv`: ssh with its options. Raises NoConnectionError if there is no session within
        `patience` seconds, and OSError if ssh cannot be started."""
        self._folder = _make_folder()
        self._control = self._folder / "s"
        try:
            self._process, self._greeting = start_on_socket(
                [
                    "sh", "-c", _KEEPING, str(self._folder),
                    *argv, "-M", "-S", self._socket_words(), "-o", "ControlPersist=no",
                    "-o", "LogLevel=DEBUG1", "-T", "--", destination, "exec cat",
                ],
                stderr=subprocess.PIPE,
            )  # fmt: skip
        except OSError:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        assert self._process.stderr is not None
        self._log = Excerpt(_ERRORS_BYTES)
        self._reader = drain(self._process.stderr, self._log.feed)
        try:
            self._await_greeting(time.monotonic() + patience)
        except BaseException:
            self.close()
            raise

    def _await_greeting(self, end: float) -> None:
        """Wait for the echo of a line, which a session's `cat` sends back. A login shell may print
        something before."""
        token = secrets.token_hex(8).encode()
        output = b""
        with contextlib.suppress(OSError):
            self._greeting.sendall(token + b"\n")
        while token not in output:
            left = end - time.monotonic()
            if left <= 0:
                raise self._no_connection("it took too long")
            if select.select([self._greeting], [], [], min(left, _LOOK_SECONDS))[0]:
                chunk = b""
                with contextlib.suppress(OSError):
                    chunk = self._greeting.recv(_READ)
                if not chunk:
                    raise self._no_connection("it ended")
                output = output[-_READ:] + chunk

    def _no_connection(self, why: str) -> NoConnectionError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_SECONDS)
        self._reader.join(_LAST_WORDS_SECONDS)
        return NoConnectionError(why, self._log.text())

    def is_active(self) -> bool:
        return self._process.poll() is None

    def join(self, timeout: float) -> None:
        """Wait for the end of the connection."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def open_session(self) -> Session:
        return Session(self)

    def open_tcp(self, port: int, timeout: float) -> Session:
        """Connect the machine to its 127.0.0.1:`port`, where a server has to speak first, as one
        of SSH does. Raises OSError if there is none, TimeoutError if it says nothing."""
        session = Session(self)
        session.start(("-W", f"127.0.0.1:{port}", "--", "machine"))
        try:
            session.await_output(timeout)
        except BaseException:
            session.close()
            raise
        return session

    def client(self) -> list[str]:
        """Return the start of a command line that works over this connection, or not at all: ssh
        would make one of its own if this one had ended."""
        return [
            "ssh", "-F", "/dev/null", "-S", self._socket_words(), "-o", "ControlMaster=no",
            "-o", "ProxyCommand=exit 1", "-o", "LogLevel=ERROR", "-T",
        ]  # fmt: skip

    def _socket_words(self) -> str:
        return str(self._control).replace("%", "%%")  # ssh expands tokens in it

    def close(self) -> None:
        """End the connection, and its sessions."""
        self._greeting.close()
        end_group(self._process)  # a proxy command may outlive its ssh
        self._reader.join(_LAST_WORDS_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)


class Session:
    """A program on the machine: its output, errors and input, as paramiko.Channel has them."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._errors: socket.socket | None = None
        self._timeout: float | None = None

    @property
    def _closed(self) -> bool:
        """What paramiko asks of a socket."""
        return self._socket is None or self._socket.fileno() < 0

    def exec_command(self, command: str) -> None:
        self.start(("--", "machine", command))

    def start(self, words: Sequence[str]) -> None:
        ours, its = socket.socketpair()
        with its:
            try:
                process, connection = start_on_socket(
                    [*self._master.client(), *words], stderr=its.fileno()
                )
            except BaseException:
                ours.close()
                raise
        self._process, self._socket, self._errors = process, connection, ours
        self.settimeout(self._timeout)

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout
        for end in (self._socket, self._errors):
            if end is not None:
                end.settimeout(timeout)

    def await_output(self, timeout: float) -> None:
        """Wait for the first byte of output. Raises EOFError if there is none, TimeoutError."""
        assert self._socket is not None
        self._socket.settimeout(timeout)
        if not self._socket.recv(1, socket.MSG_PEEK):
            raise EOFError(self._last_words() or "the connection ended")

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.settimeout(_LAST_WORDS_SECONDS)
        with contextlib.suppress(OSError):
            return self._errors.recv(_READ).decode(errors="replace").strip()
        return ""

    def recv(self, size: int) -> bytes:
        chunk = self._receive(self._socket, size)
        if not chunk and self.has_exited(_LOOK_SECONDS):
            self.recv_exit_status()  # whoever looks next finds a connection that ended as ended
        return chunk

    def recv_stderr(self, size: int) -> bytes:
        return self._receive(self._errors, size)

    @staticmethod
    def _receive(end: socket.socket | None, size: int) -> bytes:
        assert end is not None
        try:
            return end.recv(size)
        except ConnectionResetError:  # ssh ended with input that it had not read
            return b""

    def send(self, content: bytes) -> int:
        assert self._socket is not None
        return self._socket.send(content)

    def sendall(self, content: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(content)

    def shutdown_write(self) -> None:
        assert self._socket is not None
        self._socket.shutdown(socket.SHUT_WR)

    def has_exited(self, timeout: float) -> bool:
        """Wait for the program's exit."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode is not None

    def recv_exit_status(self) -> int:
        """Return the exit code of a program that has exited; -1 if the connection ended first."""
        assert self._process is not None
        code = self._process.returncode
        if code == _ENDED:
            self._master.join(_LAST_WORDS_SECONDS)
        return code if self._master.is_active() or code != _ENDED else -1

    def close(self) -> None:
        """End the local ssh(1), which closes the channel: the program loses its input and output.
        SIGKILL, since ssh would hand on other signals to the master."""
        for end in (self._socket, self._errors):
            if end is not None:
                end.close()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _make_folder() -> Path:
    """Return a new folder of this user's alone, with a path that is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="barometer-ssh-"))
    if len(str(folder)) > _ROOM:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="barometer-ssh-", dir="/tmp"))
    return folder
