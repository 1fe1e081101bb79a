"""Run commands on this machine, as `bench.shell` does over SSH."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence

from orchestrator.base.bounded import ANSWER_BYTES
from orchestrator.base.errors import BenchError
from orchestrator.base.process import end_group, run, start_on_socket
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.shell import A_DAY, Completed, Dialogue, check_success

_EVERY_CODE = range(-64, 256)
_LAST_SECONDS = 30.0
_log = logging.getLogger("barometer.shell")


class LocalMachine:
    """Runs commands on this machine as the current user."""

    name = "this machine"
    _before: tuple[str, ...] = ()

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

        Raises BenchError if its exit code is not 0 (unless `check` is off), if it takes more than
        `timeout` seconds, or if it prints more than `limit` bytes (`output-flood`).
        """
        ran = run(
            # a shell runs it, so that a missing program has exit code 127, as over SSH
            ["/bin/sh", "-c", 'exec "$@"', "sh", *self._words(argv)], stdin=stdin,
            doing=doing or self.name, timeout=timeout, accept=_EVERY_CODE, limit=limit,
        )  # fmt: skip
        completed = Completed(ran.stdout, ran.stderr, ran.returncode)
        work = doing or (argv if isinstance(argv, str) else shlex.join(argv))
        return check_success(completed, self.name, work) if check else completed

    @contextlib.contextmanager
    def stream(
        self, argv: Sequence[str], timeout: float, in_all: float = A_DAY
    ) -> Iterator[Dialogue]:
        """Run a program while the block runs; yield a dialogue that reads its lines as they come
        and sends it lines. Its standard input closes when the block ends, which tells the program
        to end. Raises TimeoutError if one line takes more than `timeout` seconds, or all lines
        together take more than `in_all`."""
        words = self._words(argv)
        _log.debug("%s+ %s &", self.name, shlex.join(words))
        process, ours = start_on_socket(words)
        try:
            yield Dialogue(ours, timeout, in_all)
        finally:
            ours.close()
            _wait(process)

    def _words(self, argv: Sequence[str] | str) -> list[str]:
        return [*self._before, *(["sh", "-c", argv] if isinstance(argv, str) else argv)]


class LocalShell(LocalMachine):
    """Runs commands on this machine as root, with `sudo -n` if this process is not root's."""

    def __init__(self) -> None:
        self._before = () if os.geteuid() == 0 else ("sudo", "-n", "--")


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_LAST_SECONDS)
    except subprocess.TimeoutExpired as exc:
        end_group(process)
        raise BenchError(
            f"a program did not end within {_LAST_SECONDS:.0f} s of being told to",
            evidence=shlex.join(map(str, process.args))[:500],  # type: ignore[arg-type]
            reason=Reason.PROGRAM_TIMEOUT,
        ) from exc
