"""A kernel's source pared down to a second of compiling. It is configured, built and installed by
the same commands as a whole one, and reports its release in the same way."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from orchestrator.kernels.source.buildroot import KERNEL_FILES
from orchestrator.kernels.source.config import parse_config

PARED_SERIES = Path(__file__).parent / "series"
_SOURCE = Path(__file__).parent / "source"


def pared_tarball(folder: Path) -> Path:
    """Pack the source. Its Kconfig has the options that barometer requires, and PARED, a
    module's."""
    shutil.copytree(_SOURCE, folder / "linux-7.3")
    asked = [name for path in sorted(KERNEL_FILES.glob("*.config"))
             for name in parse_config(path.read_text())]  # fmt: skip
    known = "".join(f"config {name}\n" for name in [*asked, "PARED"])
    (folder / "linux-7.3/Kconfig").write_text(known)
    path = folder / "linux-7.3.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "linux-7.3", "linux-7.3")
    return path
