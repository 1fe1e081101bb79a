"""Run a program on this machine: the one place that does."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.bounded import TooMuchError, cut_line
from orchestrator.errors import BenchError
from orchestrator.progress import waiting_for

_LAST_SECONDS = 5
_MOST_BYTES = 256 << 20
"""A list of all files of a kernel's tree has 10 MiB."""
log = logging.getLogger("barometer.command")


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    doing: str,
    cwd: Path | None = None,
    env: Mapping[str, str | None] | None = None,
    stdin: str = "",
    timeout: float = 600,
    accept: Sequence[int] = (0,),
    limit: int = _MOST_BYTES,
) -> subprocess.CompletedProcess[str]:
    """Run `argv`; its output comes back as text. `env` is on top of this process's; None: unset.

    The program and all it started end with this call, whatever ends it. Raises BenchError
    (`doing` says what for) when it is missing, too slow, exits otherwise or prints more than
    `limit` bytes.
    """
    words = [os.fspath(a) for a in argv]
    log.debug("+ %s", shlex.join(words))
    try:
        process = subprocess.Popen(
            words, cwd=cwd, env=_environment(env) if env else None, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True, errors="replace",
        )  # fmt: skip
    except (FileNotFoundError, PermissionError) as exc:  # the latter of a folder in PATH, too
        raise _missing(words[0], doing) from exc
    with process, waiting_for(doing):
        try:
            out, err = _communicate(process, stdin, timeout, limit)
        except subprocess.TimeoutExpired as exc:
            end_group(process)
            raise BenchError(
                f"{doing}: {words[0]} took more than {timeout:.0f} s",
                evidence=shlex.join(words),
                reason="program-timeout",
            ) from exc
        except TooMuchError as exc:
            end_group(process)
            raise BenchError(
                f"{doing}: {words[0]} printed {exc}", evidence=tail(exc.last),
                reason="output-flood",
            ) from exc  # fmt: skip
        except BaseException:
            end_group(process)
            raise
    if process.returncode not in accept and os.strerror(errno.ENOSPC) in err:
        raise BenchError(
            f"{doing}: no space left on the disk",
            evidence=tail(err),
            hint="make room there; BAROMETER_CACHE and TMPDIR can be on a larger disk",
            reason="disk-full",
        )
    if process.returncode not in accept:
        raise BenchError(
            f"{doing}: {words[0]} failed with exit code {process.returncode}",
            evidence=f"{shlex.join(words)}\n{tail(err or out)}",
            reason="program-failed",
        )
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _communicate(
    process: subprocess.Popen[str], stdin: str, timeout: float, limit: int
) -> tuple[str, str]:
    """As Popen.communicate(), which takes in whatever comes. Raises TooMuchError."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    end, rest = time.monotonic() + timeout, memoryview(stdin.encode())
    said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    with selectors.DefaultSelector() as selector:
        for number in said:
            selector.register(number, selectors.EVENT_READ)
        if rest:
            selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)
        else:
            process.stdin.close()
        while selector.get_map():
            if (left := end - time.monotonic()) <= 0:
                raise subprocess.TimeoutExpired(process.args, timeout)
            for key, _ in selector.select(left):
                if (answer := said.get(key.fd)) is not None:
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
                    if key.fd not in said:
                        process.stdin.close()
    process.wait(max(0.0, end - time.monotonic()))
    out, err = (
        text.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        for text in said.values()
    )
    return out, err


def run_logged(
    argv: Sequence[str | os.PathLike[str]],
    *,
    doing: str,
    log: Path,
    on_line: Callable[[str], None] = lambda _line: None,
    timeout: float = 7200,
) -> int:
    """Run `argv` for long: its output goes to the file `log`, each line to `on_line` as it comes;
    the exit code comes back. Ends and raises as `run`, but for exit codes."""
    words = [os.fspath(a) for a in argv]
    with log.open("w", encoding="utf-8") as file:
        try:
            process = subprocess.Popen(
                words, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, start_new_session=True, errors="replace",
            )  # fmt: skip
        except (FileNotFoundError, PermissionError) as exc:
            raise _missing(words[0], doing) from exc
        expired = threading.Event()

        def end() -> None:
            expired.set()
            end_group(process)

        late = threading.Timer(timeout, end)
        late.start()
        try:
            with process, waiting_for(doing):
                for line in process.stdout or ():
                    file.write(line)
                    on_line(line.rstrip())
        except BaseException:
            end_group(process)
            raise
        finally:
            late.cancel()
    if expired.is_set():
        raise BenchError(
            f"{doing}: {words[0]} took more than {timeout:.0f} s",
            evidence=shlex.join(words),
            reason="program-timeout",
        )
    return process.returncode


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    return {k: v for k, v in {**os.environ, **changes}.items() if v is not None}


def _missing(program: str, doing: str) -> BenchError:
    return BenchError(
        f"{doing}: the program {program} is not installed",
        hint="ci/setup.sh installs what barometer needs",
        reason="program-missing",
    )


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a program that leads a session, and what it started; it has a moment to clean up after
    itself. What is another user's (sudo's) cannot be ended, and is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAST_SECONDS)


def tail(text: str, lines: int = 15) -> str:
    """The last lines of a program's output or a console, for an error's evidence."""
    return "\n".join(map(cut_line, text.rstrip().splitlines()[-lines:]))
