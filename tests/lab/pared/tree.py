"""A kernel's source pared down to a second of compiling: it is configured, built and installed by
the same commands as a whole one, and says its release as that does."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from orchestrator.kernels.buildroot import KERNEL_FILES
from orchestrator.kernels.config import parsed

PARED_SERIES = Path(__file__).parent / "series"
_SOURCE = Path(__file__).parent / "source"


def pared_tarball(folder: Path) -> Path:
    """It knows the options that barometer asks for, and PARED, a module's."""
    shutil.copytree(_SOURCE, folder / "linux-7.3")
    asked = [name for path in sorted(KERNEL_FILES.glob("*.config"))
             for name in parsed(path.read_text())]  # fmt: skip
    known = "".join(f"config {name}\n" for name in [*asked, "PARED"])
    (folder / "linux-7.3/Kconfig").write_text(known)
    path = folder / "linux-7.3.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "linux-7.3", "linux-7.3")
    return path
