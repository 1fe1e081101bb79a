"""Run commands on a host or guest over SSH: the one importer of paramiko.

Host keys are pinned: a connection to anything but the machine that barometer made is refused.
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import paramiko

from orchestrator.bench.keys import KeyPair
from orchestrator.command import tail
from orchestrator.errors import BarometerError, BenchError

log = logging.getLogger("barometer.shell")
logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its errors reach us as exceptions

_HANDSHAKE_SECONDS = 60
_PIECE = 1 << 20
"""Bytes that are sent at once: paramiko's sendall copies all that is left after each packet."""


@dataclass(frozen=True)
class Completed:
    stdout: str
    stderr: str
    code: int


class ConnectionLostError(BenchError):
    """The SSH connection ended or went silent while it was needed."""


class Commands(Protocol):
    """What runs commands: a machine over SSH (Shell), or this one (bench.local)."""

    @property
    def name(self) -> str: ...

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        timeout: float = 120,
        check: bool = True,
        doing: str = "",
    ) -> Completed: ...

    def stream(
        self, argv: Sequence[str], timeout: float
    ) -> contextlib.AbstractContextManager[Dialogue]: ...


class Shell:
    """One authenticated SSH connection."""

    def __init__(
        self, name: str, transport: paramiko.Transport, become: tuple[str, ...] = ()
    ) -> None:
        """`become`: what runs a command, its next argument, as root: sudo."""
        self.name = name
        self._transport = transport
        self._become = become

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        timeout: float = 120,
        check: bool = True,
        doing: str = "",
    ) -> Completed:
        """Run a program (a list) or a shell script (a string) to its end.

        Raises BenchError when it exits with another code than 0 (unless `check` is off), and
        ConnectionLostError when the machine does not answer within `timeout` seconds.
        """
        command = self._command(argv)
        log.debug("%s+ %s", self.name, command if len(command) < 500 else command[:500] + "...")
        errors: list[bytes] = []

        def read_errors() -> None:
            with contextlib.suppress(OSError):  # a timeout: the reader of standard output says so
                errors.extend(_chunks(channel.recv_stderr))

        try:
            with self._session(timeout) as channel:
                channel.exec_command(command)
                reader = threading.Thread(target=read_errors, daemon=True)
                reader.start()
                for start in range(0, len(stdin), _PIECE):
                    channel.sendall(stdin[start : start + _PIECE])
                channel.shutdown_write()
                out = b"".join(_chunks(channel.recv))
                reader.join(timeout)
                # it may have closed its output and still be running
                if not channel.status_event.wait(timeout):
                    raise TimeoutError
                code = channel.recv_exit_status()
                if code < 0 and not self.alive():
                    raise EOFError("the connection ended")
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise self._lost(exc, doing or command) from exc
        done = Completed(
            out.decode(errors="replace"), b"".join(errors).decode(errors="replace"), code
        )
        return succeeded(done, self.name, doing or command) if check else done

    @contextlib.contextmanager
    def stream(self, argv: Sequence[str], timeout: float) -> Iterator[Dialogue]:
        """The lines of a program as they come, and lines to it; its standard input closes when
        the block is left, which is how it knows that it must end. A line may take `timeout`
        seconds: TimeoutError."""
        command = self._command(argv)
        log.debug("%s+ %s &", self.name, command)
        with self._session(timeout) as channel:
            channel.exec_command(command)
            yield Dialogue(channel)

    def _command(self, argv: Sequence[str] | str) -> str:
        command = argv if isinstance(argv, str) else shlex.join(argv)
        return shlex.join([*self._become, command]) if self._become else command

    def read(self, path: str) -> str:
        """A file's text. Raises BenchError when there is none."""
        return self.run(["cat", path], doing=f"reading {path}").stdout

    def write(self, path: str, content: bytes, mode: int = 0o600) -> None:
        self.run(
            f"umask 077; mkdir -p {shlex.quote(str(PurePosixPath(path).parent))}; "
            f"cat > {shlex.quote(path)}; chmod {mode:o} {shlex.quote(path)}",
            stdin=content, doing=f"writing {path}",
        )  # fmt: skip

    def alive(self) -> bool:
        return self._transport.is_active()

    def close(self) -> None:
        """End the connection, and with it whatever waits for an answer, in any thread."""
        self._transport.close()

    def channel_to(self, port: int, timeout: float) -> paramiko.Channel:
        """A TCP connection to 127.0.0.1:`port` as seen from there (`direct-tcpip`).

        Raises ConnectionLostError when nothing listens.
        """
        try:
            return self._transport.open_channel(
                "direct-tcpip", ("127.0.0.1", port), ("127.0.0.1", 0), timeout=timeout
            )
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise self._lost(exc, f"connecting to port {port}") from exc

    @contextlib.contextmanager
    def _session(self, timeout: float) -> Iterator[paramiko.Channel]:
        channel = self._transport.open_session(timeout=timeout)
        try:
            channel.settimeout(timeout)
            yield channel
        finally:
            channel.close()

    def _lost(self, exc: BaseException, doing: str) -> ConnectionLostError:
        what = "took too long" if isinstance(exc, TimeoutError) else f"{type(exc).__name__}: {exc}"
        return ConnectionLostError(
            f"the SSH connection to the {self.name} was lost while it ran: {doing[:80]} ({what})",
            reason=f"{self.name.split()[0]}-ssh-lost",
        )


def succeeded(done: Completed, name: str, doing: str) -> Completed:
    """Raises BenchError for another exit code than 0."""
    if done.code:
        raise BenchError(
            f"{name}: {doing.splitlines()[0][:80]} failed with exit code {done.code}",
            evidence=tail(done.stderr or done.stdout),
            reason="command-failed",
        )
    return done


def _chunks(receive: object) -> Iterator[bytes]:
    while chunk := receive(1 << 16):  # type: ignore[operator]
        yield chunk


class Dialogue(Iterator[str]):
    """The lines of a program that runs, and a way to answer it."""

    def __init__(self, channel: paramiko.Channel | socket.socket) -> None:
        self._channel = channel
        self._lines = self._read()

    def __next__(self) -> str:
        return next(self._lines)

    def say(self, line: str) -> None:
        self._channel.sendall(line.encode() + b"\n")

    def _read(self) -> Iterator[str]:
        rest = b""
        while chunk := self._channel.recv(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")


@contextlib.contextmanager
def connected(
    name: str,
    endpoint: tuple[str, int] | paramiko.Channel,
    *,
    key: KeyPair,
    host_key: KeyPair,
    user: str = "root",
    error: type[BarometerError] = BenchError,
    keepalive: int = 10,
) -> Iterator[Shell]:
    """An SSH connection to a machine whose host key is `host_key` and no other.

    `endpoint` is an address, or a channel through another connection. Raises `error` when there
    is no SSH server, when the key is another, or when the login is refused. `keepalive`: seconds
    between messages that find out whether it is there; 0: none.
    """
    try:
        if isinstance(endpoint, tuple):
            sock: socket.socket | paramiko.Channel = socket.create_connection(
                endpoint, timeout=_HANDSHAKE_SECONDS
            )
        else:
            sock = endpoint
        transport = paramiko.Transport(sock)
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise error(
            f"no SSH connection to the {name}: {exc}", reason=f"{name.split(maxsplit=1)[0]}-no-ssh"
        ) from exc
    try:
        _log_in(name, transport, key, host_key, user, error)
        transport.set_keepalive(keepalive)
        yield Shell(name, transport)
    finally:
        transport.close()


def _log_in(
    name: str,
    transport: paramiko.Transport,
    key: KeyPair,
    host_key: KeyPair,
    user: str,
    error: type[BarometerError],
) -> None:
    try:
        transport.banner_timeout = transport.auth_timeout = _HANDSHAKE_SECONDS
        transport.start_client(timeout=_HANDSHAKE_SECONDS)
        if transport.get_remote_server_key().asbytes() != host_key.public_blob:
            raise error(
                f"the SSH server of the {name} does not have the host key it was given",
                hint="something else answers on its port",
                reason=f"{name.split(maxsplit=1)[0]}-wrong-host-key",
            )
        private = paramiko.Ed25519Key.from_private_key(io.StringIO(key.private_openssh.decode()))
        transport.auth_publickey(user, private)
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise error(
            f"no SSH connection to the {name}: {exc or type(exc).__name__}",
            reason=f"{name.split(maxsplit=1)[0]}-no-ssh",
        ) from exc


def write_client_config(folder: Path, *, port: int, key: KeyPair, host_key: KeyPair) -> Path:
    """Files for OpenSSH's client, for libvirt's qemu+ssh://; returns a program that calls it.

    The host's key is pinned, nothing of the user's own configuration is read.
    """
    private = folder / "runner_key"
    private.touch(mode=0o600)
    private.write_bytes(key.private_openssh)
    known = folder / "known_hosts"
    known.write_text(f"barometer-host {host_key.public_line}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {private}\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {known}\n GlobalKnownHostsFile /dev/null\n"
        " HostKeyAlias barometer-host\n StrictHostKeyChecking yes\n PasswordAuthentication no\n"
        " BatchMode yes\n ConnectTimeout 60\n ServerAliveInterval 15\n LogLevel ERROR\n"
    )
    program = folder / "ssh"
    program.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F "{config}" "$@"\n')
    program.chmod(0o700)
    return program
