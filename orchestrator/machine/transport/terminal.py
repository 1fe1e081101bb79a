"""A person's terminal on a machine, or a command of theirs whose streams are those of this
process, over a connection that is there already."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator

import paramiko

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.shell import Shell

_CHUNK = 1 << 15
_LOOK_SECONDS = 0.2
"""Longest time until the end of the program is noticed if its output does not tell."""
_INPUT, _OUTPUT, _ERRORS = 0, 1, 2


def run_terminal(shell: Shell, command: str = "") -> int:
    """Run a login shell, or `command`, with this process's standard streams; return its exit code.
    If standard input is a terminal, the program gets one, too, of the same size.

    Raises BenchError if the connection is lost."""
    is_terminal = os.isatty(_INPUT) and os.isatty(_OUTPUT)
    transport, become = shell.wire
    words = shell.as_root(command) if command else shell.as_root("exec $SHELL -l") * bool(become)
    if not isinstance(transport, paramiko.Transport):
        options = ["-tt"] if is_terminal else []
        client = [word for word in transport.client() if word != "-T" or not is_terminal]
        argv = [*client, *options, "--", "machine", *([words] if words else [])]
        with _interrupts_for_the_program():
            return subprocess.run(argv, check=False).returncode
    try:
        with contextlib.closing(transport.open_session()) as channel:
            if is_terminal:
                size = shutil.get_terminal_size()
                channel.get_pty(os.environ.get("TERM", "dumb"), size.columns, size.lines)
            if words:
                channel.exec_command(words)
            else:
                channel.invoke_shell()
            with _raw_input() if is_terminal else contextlib.nullcontext():
                _pump(channel, is_terminal=is_terminal)
            return channel.recv_exit_status()
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise BenchError(
            f"the connection to the {shell.name} was lost: {exc}", reason=Reason.HOST_SSH_LOST
        ) from exc


def _pump(channel: paramiko.Channel, *, is_terminal: bool) -> None:
    """Carry bytes both ways until the program has ended and all its output is written."""
    size, reads = shutil.get_terminal_size(), [_INPUT]
    while True:
        ready, _, _ = select.select([channel.fileno(), *reads], [], [], _LOOK_SECONDS)
        if _INPUT in ready:
            data = os.read(_INPUT, _CHUNK)
            if data:
                channel.sendall(data)
            else:
                channel.shutdown_write()
                reads = []
        while channel.recv_ready():
            _write(_OUTPUT, channel.recv(_CHUNK))
        while channel.recv_stderr_ready():
            _write(_ERRORS, channel.recv_stderr(_CHUNK))
        if is_terminal and size != (size := shutil.get_terminal_size()):
            channel.resize_pty(size.columns, size.lines)
        is_over = channel.exit_status_ready() or channel.closed
        if is_over and not channel.recv_ready() and not channel.recv_stderr_ready():
            return


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


@contextlib.contextmanager
def _raw_input() -> Iterator[None]:
    """Pass each key on as it is, Ctrl-C, too, while the block runs."""
    before = termios.tcgetattr(_INPUT)
    try:
        tty.setraw(_INPUT)
        yield
    finally:
        termios.tcsetattr(_INPUT, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _interrupts_for_the_program() -> Iterator[None]:
    """Leave Ctrl-C to the program in the foreground while the block runs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def can_ask() -> bool:
    """True if a person is at this process's terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and os.isatty(_OUTPUT)
