"""Programs on the machine."""

from __future__ import annotations

import subprocess
import time

import pytest

from keeper import machine as real
from keeper.machine import RefusedError
from tests.unit.agents.keeper.machines import Machine


def test_program_that_is_killed_and_does_not_end_is_not_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a program may hang in the kernel."""
    machine.file("/fakes/hangs", "#!/bin/sh\nexec /usr/bin/sleep 60\n").chmod(0o755)
    monkeypatch.setattr(real, "PROGRAM_SECONDS", 0.2)
    hanging: list[subprocess.Popen[str]] = []

    def does_not_end(process: subprocess.Popen[str]) -> None:
        hanging.append(process)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "kill", does_not_end)
        began = time.monotonic()
        with pytest.raises(RefusedError, match="hangs took more than 0 s"):
            real.run("hangs")
        assert time.monotonic() - began < 10
    (process,) = hanging
    process.kill()
    process.communicate()


def test_failure_is_told_with_the_programs_words(machine: Machine) -> None:
    machine.file("/fakes/fails", "#!/bin/sh\necho one; echo why >&2; exit 3\n").chmod(0o755)
    assert real.run("fails", accept=(0, 3)) == "one\n"
    with pytest.raises(RefusedError, match="fails -x failed with exit code 3: why"):
        real.run("fails", "-x")
