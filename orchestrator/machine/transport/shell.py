"""Run commands on a host or guest over SSH: the one importer of paramiko.

To machines that barometer made, paramiko connects, and their host keys are pinned. To others,
ssh(1) does (`openssh.py`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol, TypeAlias, cast

import paramiko

from orchestrator.base.bounded import (
    ANSWER_BYTES,
    FACTS_BYTES,
    STREAM_LINE_BYTES,
    Lines,
    TooMuchError,
    gather,
)
from orchestrator.base.errors import BarometerError, BenchError
from orchestrator.base.process import tail
from orchestrator.base.progress import waiting_for
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.calls import Call, in_time
from orchestrator.machine.transport.keys import KeyPair
from orchestrator.machine.transport.openssh import Master, Session

_log = logging.getLogger("barometer.shell")

Channel: TypeAlias = paramiko.Channel | Session
"""A program on a machine, or a connection that a machine makes."""

HANDSHAKE_SECONDS = 60
_CLOSE_SECONDS = 2.0
_PROBE_SECONDS = 25.0
"""Deadline of a sign of life: an emulated host that maps a BAR under load is slow to start a
program."""
A_DAY = 86400.0
"""Deadline of a program that runs as long as something else does. Each of its lines has a deadline
of its own."""
_PIECE = 1 << 15
"""Bytes sent at once: a packet. paramiko's sendall copies the whole rest after each packet."""


class _Reasons(NamedTuple):
    """Reasons of a connection's errors."""

    no_ssh: Reason
    ssh_lost: Reason
    wrong_host_key: Reason


_OF_GUEST = _Reasons(Reason.GUEST_NO_SSH, Reason.GUEST_SSH_LOST, Reason.GUEST_WRONG_HOST_KEY)
_OF_HOST = _Reasons(Reason.HOST_NO_SSH, Reason.HOST_SSH_LOST, Reason.HOST_WRONG_HOST_KEY)


def _reasons(name: str) -> _Reasons:
    """Return the reasons for a machine of this name; it may be longer (`guest 2`)."""
    return _OF_GUEST if name.split(maxsplit=1)[0] == "guest" else _OF_HOST


@dataclass(frozen=True)
class Completed:
    stdout: str
    stderr: str
    code: int


class ConnectionLostError(BenchError):
    """The SSH connection ended or went silent while it was needed."""


class _Deadline:
    """Deadline of a whole exchange, however slowly its bytes arrive."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left. Raises TimeoutError if there are none."""
        if (left := self._end - time.monotonic()) <= 0:
            raise TimeoutError
        return left


class Commands(Protocol):
    """Interface to run commands on a machine: over SSH (Shell), or on this one (local.py)."""

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
        limit: int = ANSWER_BYTES,
    ) -> Completed: ...

    def stream(
        self, argv: Sequence[str], timeout: float, in_all: float = A_DAY
    ) -> contextlib.AbstractContextManager[Dialogue]: ...


class Shell:
    """One authenticated SSH connection."""

    def __init__(
        self, name: str, transport: paramiko.Transport | Master, become: tuple[str, ...] = ()
    ) -> None:
        """`become`: words that run the next argument, a command, as root (sudo)."""
        self.name = name
        self._transport = transport
        self._become = become
        self._is_unanswered = False

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        stdin: bytes = b"",
        timeout: float = 120,
        check: bool = True,
        doing: str = "",
        limit: int = ANSWER_BYTES,
    ) -> Completed:
        """Run a program (a list) or a shell script (a string) to its end.

        Raises BenchError if its exit code is not 0 (unless `check` is off) or if it prints more
        than `limit` bytes (`output-flood`), and ConnectionLostError if it has not ended within
        `timeout` seconds in all.
        """
        command = self._command(argv)
        _log.debug("%s+ %s", self.name, command if len(command) < 500 else command[:500] + "...")
        if self._is_unanswered:
            self.prove_alive()
        try:
            with waiting_for(doing or command):
                completed = self._exchange(command, stdin, timeout, limit)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            self._is_unanswered = True
            if isinstance(exc, EOFError):
                self.drop()  # so that `alive` is false from now on
            raise self._lost(exc, doing or command) from exc
        except TooMuchError as exc:
            raise make_flood_error(self.name, doing or command, exc) from exc
        return check_success(completed, self.name, doing or command) if check else completed

    def prove_alive(self) -> None:
        """Prove that the machine answers a command soon. If not, drop the connection, so that
        later calls fail at once, and raise ConnectionLostError. `run` begins with this after a
        command that was not answered."""
        try:
            self._exchange("true", b"", _PROBE_SECONDS, FACTS_BYTES)
        except (OSError, EOFError, paramiko.SSHException, TooMuchError) as exc:
            self.drop()
            raise self._lost(exc, "true") from exc
        self._is_unanswered = False

    def _exchange(self, command: str, stdin: bytes, timeout: float, limit: int) -> Completed:
        deadline = _Deadline(timeout)
        errors: list[bytearray] = []
        too_much: list[TooMuchError] = []

        def read_errors() -> None:
            try:
                errors.append(gather(_chunks(channel, channel.recv_stderr, deadline), limit))
            except TooMuchError as exc:
                too_much.append(exc)
                channel.close()  # ends the reading of standard output, too
            except OSError:
                pass  # a timeout, which the reader of standard output reports

        def exchange() -> Completed:
            channel.exec_command(command)
            reader = threading.Thread(target=read_errors, daemon=True)
            reader.start()
            try:
                for start in range(0, len(stdin), _PIECE):
                    channel.settimeout(deadline.left())
                    channel.sendall(stdin[start : start + _PIECE])
                channel.shutdown_write()
                out = gather(_chunks(channel, channel.recv, deadline), limit)
                reader.join(deadline.left())
            except OSError:
                if too_much:
                    raise too_much[0] from None
                raise
            if too_much:
                raise too_much[0]
            # the program may have closed its output and still be running
            if not _has_exited(channel, deadline.left()):
                raise TimeoutError
            code = channel.recv_exit_status()
            if code < 0 and self._has_ended():
                raise EOFError("the connection ended")
            return Completed(
                out.decode(errors="replace"), b"".join(errors).decode(errors="replace"), code
            )

        with self._session(timeout) as channel:
            channel.settimeout(deadline.left())
            return in_time(exchange, deadline.left())

    @contextlib.contextmanager
    def stream(
        self, argv: Sequence[str], timeout: float, in_all: float = A_DAY
    ) -> Iterator[Dialogue]:
        """Run a program while the block runs; yield its lines as they come, and a way to send it
        lines. Its standard input closes when the block ends, which tells it to end. A line that
        takes more than `timeout` seconds raises TimeoutError; so does the program if it takes more
        than `in_all` seconds."""
        command = self._command(argv)
        _log.debug("%s+ %s &", self.name, command)
        with contextlib.ExitStack() as stack:
            try:
                channel = stack.enter_context(self._session(timeout))
                in_time(lambda: channel.exec_command(command), timeout)
            except (OSError, EOFError, paramiko.SSHException) as exc:
                raise self._lost(exc, command) from exc
            yield Dialogue(channel, timeout, in_all)

    def _command(self, argv: Sequence[str] | str) -> str:
        return self.as_root(argv if isinstance(argv, str) else shlex.join(argv))

    def as_root(self, command: str) -> str:
        """Return the command that runs `command` as root."""
        return shlex.join([*self._become, command]) if self._become else command

    @property
    def wire(self) -> tuple[paramiko.Transport | Master, tuple[str, ...]]:
        """The connection, and the words that run a command as root."""
        return self._transport, self._become

    def read(self, path: str) -> str:
        """Return a file's text. Raises BenchError if the file is missing or has more than
        FACTS_BYTES."""
        return self.run(["cat", path], doing=f"reading {path}", limit=FACTS_BYTES).stdout

    def write(self, path: str, content: bytes, mode: int = 0o600) -> None:
        self.run(
            f"umask 077; mkdir -p {shlex.quote(str(PurePosixPath(path).parent))}; "
            f"cat > {shlex.quote(path)}; chmod {mode:o} {shlex.quote(path)}",
            stdin=content, doing=f"writing {path}",
        )  # fmt: skip

    def alive(self) -> bool:
        return self._transport.is_active()

    def _has_ended(self) -> bool:
        """True if the connection ended, or ends now: paramiko's thread closes the channels just
        before it marks the connection as inactive, and then returns."""
        self._transport.join(1)
        return not self.alive()

    def channel_to(self, port: int, timeout: float) -> Channel:
        """Open a TCP connection from the machine to its 127.0.0.1:`port`, where an SSH server
        listens.

        Raises ConnectionLostError if nothing listens.
        """
        transport, ends = self._transport, (("127.0.0.1", port), ("127.0.0.1", 0))

        def connect() -> Channel:
            if isinstance(transport, Master):
                return transport.open_tcp(port, timeout)
            return transport.open_channel("direct-tcpip", *ends, timeout=timeout)

        try:
            return self._open(connect, timeout)
        except (OSError, EOFError, paramiko.SSHException) as exc:
            raise self._lost(exc, f"connecting to port {port}") from exc

    @contextlib.contextmanager
    def _session(self, timeout: float) -> Iterator[Channel]:
        transport = self._transport

        def connect() -> Channel:
            if isinstance(transport, Master):
                return transport.open_session()
            return transport.open_session(timeout=timeout)

        channel = self._open(connect, timeout)
        try:
            channel.settimeout(timeout)
            yield channel
        finally:
            # close() sends a message. If the other side takes no messages any more, drop the
            # connection.
            try:
                in_time(channel.close, _CLOSE_SECONDS)
            except TimeoutError:
                self.drop()

    def _open(self, open_one: Callable[[], Channel], timeout: float) -> Channel:
        """Open a channel; one that arrives too late is closed. Raises TimeoutError."""
        return Call(open_one, undo=lambda channel: channel.close()).result(timeout)

    def drop(self) -> None:
        """End the connection, from any thread: whoever waits for an answer loses it."""
        close(self._transport)

    def _lost(self, exc: BaseException, doing: str) -> ConnectionLostError:
        cause = (
            "took too long" if isinstance(exc, TimeoutError) else f"{type(exc).__name__}: {exc}"
        )
        return ConnectionLostError(
            f"the SSH connection to the {self.name} was lost while it ran: {doing[:80]} ({cause})",
            reason=_reasons(self.name).ssh_lost,
        )


def check_success(completed: Completed, name: str, doing: str) -> Completed:
    """Return `completed`. Raises BenchError if its exit code is not 0."""
    if completed.code:
        raise BenchError(
            f"{name}: {doing.splitlines()[0][:80]} failed with exit code {completed.code}",
            evidence=tail(completed.stderr or completed.stdout),
            reason=Reason.COMMAND_FAILED,
        )
    return completed


def make_flood_error(name: str, doing: str, exc: TooMuchError) -> BenchError:
    """Return the error for a program that printed too much."""
    return BenchError(
        f"{name}: {doing.splitlines()[0][:80]}: it printed {exc}", evidence=tail(exc.last),
        reason=Reason.OUTPUT_FLOOD,
    )  # fmt: skip


def _has_exited(channel: Channel, timeout: float) -> bool:
    """Wait for the end of the channel's program."""
    if isinstance(channel, Session):
        return channel.has_exited(timeout)
    return channel.status_event.wait(timeout)


def _chunks(
    channel: Channel, receive: Callable[[int], bytes], deadline: _Deadline
) -> Iterator[bytes]:
    """Yield what `receive` returns, until its end. Raises TimeoutError."""
    while True:
        channel.settimeout(deadline.left())
        if not (chunk := receive(1 << 16)):
            return
        yield chunk


class Dialogue(Iterator[str]):
    """The lines of a running program, each cut at STREAM_LINE_BYTES, or its output as bytes, and a
    way to answer it. Raises TimeoutError."""

    def __init__(
        self, channel: Channel | socket.socket, line_seconds: float, in_all: float
    ) -> None:
        self._channel = channel
        self._line_seconds, self._deadline = line_seconds, _Deadline(in_all)
        self._lines = self._read()

    def __next__(self) -> str:
        return next(self._lines)

    def chunks(self) -> Iterator[bytes]:
        """Yield the program's output as bytes, in place of its lines. A chunk has the deadline of
        a line."""
        while True:
            self._channel.settimeout(min(self._line_seconds, self._deadline.left()))
            if not (chunk := self._channel.recv(1 << 16)):
                return
            yield chunk

    def say(self, line: str) -> None:
        self.send(line.encode() + b"\n")

    def send(self, content: bytes) -> None:
        """Send bytes to the program. Raises OSError if it takes none any more."""
        try:
            in_time(lambda: self._channel.sendall(content), self._line_seconds)
        except paramiko.SSHException as exc:
            raise OSError(f"{type(exc).__name__}: {exc}") from exc

    def _read(self) -> Iterator[str]:
        begun, line_deadline = Lines(STREAM_LINE_BYTES), _Deadline(self._line_seconds)
        while True:
            self._channel.settimeout(min(line_deadline.left(), self._deadline.left()))
            if not (chunk := self._channel.recv(1 << 16)):
                return
            for line in (lines := begun.feed(chunk)):
                yield line.decode(errors="replace")
            if lines:
                line_deadline = _Deadline(self._line_seconds)


def close(transport: paramiko.Transport | Master) -> None:
    """End a connection, without waiting for one that does not end."""

    def end() -> None:
        transport.close()
        if not isinstance(transport, Master):
            transport.sock.close()  # transport.close() leaves it open if no handshake has begun

    with contextlib.suppress(TimeoutError):
        in_time(end, _CLOSE_SECONDS)


@contextlib.contextmanager
def connected(
    name: str,
    endpoint: tuple[str, int] | Channel,
    *,
    key: KeyPair,
    host_key: KeyPair,
    user: str = "root",
    error: type[BarometerError] = BenchError,
    keepalive: int = 10,
) -> Iterator[Shell]:
    """Keep an SSH connection, to a machine whose host key is `host_key`, while the block runs.

    `endpoint` is an address, or a channel through another connection. Raises `error` if there is
    no SSH server, if the server has another host key, or if the login is refused. `keepalive`:
    seconds between messages that check whether the machine is there; 0 sends none.
    """
    try:
        if isinstance(endpoint, tuple):
            sock: socket.socket | Channel = socket.create_connection(
                endpoint, timeout=HANDSHAKE_SECONDS
            )
        else:
            sock = endpoint
        transport = paramiko.Transport(cast(socket.socket, sock))
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise error(
            f"no SSH connection to the {name}: {exc}", reason=_reasons(name).no_ssh
        ) from exc
    try:
        _log_in(name, transport, key, host_key, user, error)
        transport.set_keepalive(keepalive)
        yield Shell(name, transport)
    finally:
        close(transport)


def _log_in(
    name: str,
    transport: paramiko.Transport,
    key: KeyPair,
    host_key: KeyPair,
    user: str,
    error: type[BarometerError],
) -> None:
    def shake_hands() -> None:
        transport.banner_timeout = transport.auth_timeout = HANDSHAKE_SECONDS
        transport.start_client(timeout=HANDSHAKE_SECONDS)
        if transport.get_remote_server_key().asbytes() != host_key.public_blob:
            raise error(
                f"the SSH server of the {name} does not have the host key it was given",
                hint="something else answers on its port",
                reason=_reasons(name).wrong_host_key,
            )
        private = paramiko.Ed25519Key.from_private_key(io.StringIO(key.private_openssh.decode()))
        transport.auth_publickey(user, private)

    try:
        in_time(shake_hands, 3 * HANDSHAKE_SECONDS)  # a send has no deadline of its own
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise error(
            f"no SSH connection to the {name}: {str(exc) or type(exc).__name__}",
            reason=_reasons(name).no_ssh,
        ) from exc
