"""Commands in pages, and what they print: a block of the language `console` behind `<!-- run -->`.

Each command runs in a folder that has a copy of the recorded evidence, so its output is that of
the present version. A command that needs a machine stands in a block without that line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"(?ms)^(<!-- run -->\n```console\n)(.*?)(^```$)")
_COMMAND = re.compile(r"(?m)^\$ (.*)$")
_SECONDS = 120
_HOME = "/home/you/barometer"
"""Where the pages say that the clone is."""


def list_commands(text: str) -> list[str]:
    """Return the commands of a page that need no machine."""
    return [command for block in _BLOCK.finditer(text) for command in _COMMAND.findall(block[2])]


def write_outputs(text: str) -> str:
    """Return the page with what its commands print now. They run in the page's order, in one
    folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(_ROOT / "fixtures/recorded", folder / "fixtures/recorded")
        barometer = folder / "barometer"
        barometer.write_text(f'#!/bin/sh\nexec {sys.executable} -m orchestrator.cli "$@"\n')
        barometer.chmod(0o755)
        return _BLOCK.sub(lambda block: block[1] + _run(block[2], folder) + block[3], text)


def _run(block: str, folder: Path) -> str:
    return "".join(
        f"$ {command}\n{_output(command, folder)}" for command in _COMMAND.findall(block)
    )


def _output(command: str, folder: Path) -> str:
    """Return what a command prints on its standard output. Raises RuntimeError if that is
    nothing."""
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False,
        timeout=_SECONDS, stdin=subprocess.DEVNULL,
        env={
            "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(_ROOT), "COLUMNS": "100",
            "HOME": str(folder), "BAROMETER_STATE": str(folder / "state"),
            "BAROMETER_CACHE": str(folder / "cache"), "LC_ALL": "C.UTF-8",
        },
    )  # fmt: skip
    if not done.stdout:
        raise RuntimeError(f"{command} prints nothing: {done.stderr}")
    return done.stdout.replace(str(folder), _HOME)
