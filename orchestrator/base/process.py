"""Run a program on this machine: the one place that does."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import logging
import os
import select
import selectors
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from orchestrator.base.bounded import TooMuchError, cut_line
from orchestrator.base.errors import BenchError
from orchestrator.base.progress import waiting_for
from orchestrator.base.reasons import Reason

_TERM_SECONDS, _KILL_SECONDS = 5.0, 2.0
"""Seconds to wait after SIGTERM and after SIGKILL. A program that is stuck in the kernel does not
even heed SIGKILL."""
_MOST_BYTES = 256 << 20
"""Most bytes of one output. A list of all files of a kernel's tree has 10 MiB."""
_log = logging.getLogger("barometer.command")


@dataclass(frozen=True)
class Finished:
    """A program that has ended."""

    returncode: int
    content: bytes
    """Standard output, unchanged."""
    stderr: str

    @cached_property
    def stdout(self) -> str:
        """Standard output as text. Every line ends with a line feed only."""
        return _text(self.content)


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    doing: str,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str | bytes = "",
    timeout: float = 600,
    accept: Sequence[int] = (0,),
    limit: int = _MOST_BYTES,
) -> Finished:
    """Run `argv` and return its output. `env` is added to this process's environment; None unsets
    a variable.

    If the call is cut short, the program and everything it started are ended. Raises BenchError
    (`doing` names the purpose) if the program is missing, takes more than `timeout` seconds, exits
    with a code that is not in `accept`, or prints more than `limit` bytes on one output.
    """
    words = [os.fspath(a) for a in argv]
    _log.debug("+ %s", shlex.join(words))
    with (
        _running(
            words, doing, cwd=cwd, env=_environment(env) if env else None,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process,
        waiting_for(doing),
    ):  # fmt: skip
        try:
            out, errors = _communicate(process, stdin, timeout, limit)
        except subprocess.TimeoutExpired as exc:
            raise _too_slow(words, doing, timeout) from exc
        except TooMuchError as exc:
            raise BenchError(
                f"{doing}: {words[0]} printed {exc}", evidence=tail(exc.last),
                reason=Reason.OUTPUT_FLOOD,
            ) from exc  # fmt: skip
    done = Finished(process.returncode, out, _text(errors))
    if done.returncode in accept:
        return done
    if os.strerror(errno.ENOSPC) in done.stderr:
        raise BenchError(
            f"{doing}: no space left on the disk",
            evidence=tail(done.stderr),
            hint="make room there; BAROMETER_CACHE and TMPDIR can be on a larger disk",
            reason=Reason.DISK_FULL,
        )
    raise BenchError(
        f"{doing}: {words[0]} {_ended(done.returncode)}",
        evidence=f"{shlex.join(words)}\n{tail(done.stderr or done.stdout)}",
        reason=Reason.PROGRAM_FAILED,
    )


def _text(output: bytes) -> str:
    return output.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


def _communicate(
    process: subprocess.Popen[bytes], stdin: str | bytes, timeout: float, limit: int
) -> tuple[bytes, bytes]:
    """Exchange data like Popen.communicate(), but with a limit. Raises TooMuchError and
    TimeoutExpired."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    end = time.monotonic() + timeout
    rest = memoryview(stdin.encode() if isinstance(stdin, str) else stdin)
    received = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for number in received:
            selector.register(number, selectors.EVENT_READ)
        if rest:
            selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            if (left := end - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired(process.args, timeout)
            for key, _ in selector.select(left):
                if (answer := received.get(key.fd)) is not None:
                    chunk = os.read(key.fd, 1 << 16)
                    answer += chunk
                    if len(answer) > limit:
                        raise TooMuchError(limit, answer)
                    is_over = not chunk
                else:
                    try:
                        rest = rest[os.write(key.fd, rest[: select.PIPE_BUF]) :]
                    except BrokenPipeError:  # it has read enough
                        rest = rest[:0]
                    is_over = not rest
                if is_over:
                    selector.unregister(key.fd)
                    if key.fd not in received:
                        process.stdin.close()
    process.wait(max(0.0, end - time.monotonic()))
    out, errors = map(bytes, received.values())
    return out, errors


def run_logged(
    argv: Sequence[str | os.PathLike[str]],
    *,
    doing: str,
    log: Path,
    on_line: Callable[[str], None] = lambda _line: None,
    timeout: float = 7200,
) -> int:
    """Run `argv` for a long time and return its exit code. Its output goes to the file `log`, and
    each line to `on_line` as it arrives. Ends and raises like `run`, except for exit codes."""
    words = [os.fspath(a) for a in argv]
    with (
        log.open("w", encoding="utf-8") as file,
        _running(
            words, doing, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process,
        waiting_for(doing),
    ):  # fmt: skip
        end = time.monotonic() + timeout
        try:
            for line in _lines(process, end):
                file.write(line)
                on_line(line.rstrip())
            process.wait(end - time.monotonic())
        except (TimeoutError, subprocess.TimeoutExpired) as exc:
            raise _too_slow(words, doing, timeout) from exc
    return process.returncode


@contextlib.contextmanager
def _running(words: list[str], doing: str, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """Keep the program running while the block runs. An exception ends it with everything it
    started; a program that cannot be ended is left."""
    try:
        process = subprocess.Popen(words, start_new_session=True, **how)
    except (FileNotFoundError, PermissionError) as exc:  # the latter for a folder in PATH, too
        raise _missing(words[0], doing) from exc
    try:
        yield process
    except BaseException:
        end_group(process)
        raise
    finally:
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with contextlib.suppress(OSError):
                pipe.close()


def start_on_socket(
    argv: Sequence[str], *, stderr: int = subprocess.DEVNULL
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a program. Return it, and a socket that is its standard input and output. The program
    has a session of its own, so that a terminal's Ctrl-C reaches only barometer, which ends it."""
    ours, its = socket.socketpair()
    with contextlib.ExitStack() as on_error, its:
        on_error.enter_context(ours)
        process = subprocess.Popen(
            argv, stdin=its.fileno(), stdout=its.fileno(), stderr=stderr, start_new_session=True
        )
        on_error.pop_all()
    return process, ours


def drain(pipe: IO[bytes], take: Callable[[bytes], None]) -> threading.Thread:
    """Start a thread that hands the output of a pipe to `take`, until the pipe's end."""

    def read() -> None:
        # A full disk ends the thread, too. So does a file that was closed because the machine is
        # no longer used.
        with pipe, contextlib.suppress(OSError, ValueError):
            while chunk := os.read(pipe.fileno(), 1 << 16):
                take(chunk)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _lines(process: subprocess.Popen[bytes], end: float) -> Iterator[str]:
    """Yield the lines of the process's output as they arrive. Raises TimeoutError at `end`, on the
    clock of time.monotonic()."""
    assert process.stdout is not None
    text = codecs.getincrementaldecoder("utf-8")("replace")
    # "\r" alone also ends a line: programs show their progress that way
    decoder = io.IncrementalNewlineDecoder(text, translate=True)
    output, rest = process.stdout.fileno(), ""
    while True:
        if not select.select([output], [], [], max(0.0, end - time.monotonic()))[0]:
            raise TimeoutError
        chunk = os.read(output, 1 << 16)
        *lines, rest = (rest + decoder.decode(chunk, final=not chunk)).split("\n")
        yield from (f"{line}\n" for line in lines)
        if not chunk:
            if rest:
                yield rest
            return


def _ended(code: int) -> str:
    """Describe how a program failed. A negative exit code is a signal's (subprocess)."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"failed with exit code {code}"


def _too_slow(words: list[str], doing: str, timeout: float) -> BenchError:
    return BenchError(
        f"{doing}: {words[0]} took more than {timeout:.0f} s",
        evidence=shlex.join(words),
        reason=Reason.PROGRAM_TIMEOUT,
    )


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    return {k: v for k, v in {**os.environ, **changes}.items() if v is not None}


def _missing(program: str, doing: str) -> BenchError:
    return BenchError(
        f"{doing}: the program {program} is not installed",
        hint="barometer doctor names the packages that are missing",
        reason=Reason.PROGRAM_MISSING,
    )


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a program that leads a session, and what it started. It has `_TERM_SECONDS` to clean up
    after itself. Processes of another user (sudo's) cannot be ended and are left."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)


def tail(text: str, lines: int = 15) -> str:
    """Return the last lines of a program's output or a console, for an error's evidence."""
    return "\n".join(map(cut_line, text.rstrip().splitlines()[-lines:]))
