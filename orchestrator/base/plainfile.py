"""Read files that may have become anything: records and evidence are copied, damaged, or made by
somebody else."""

from __future__ import annotations

import errno
import gzip
import io
import os
import stat
from pathlib import Path
from typing import Literal

_MOST_BYTES = 64 << 20
"""Four times as much as a whole trial may have."""


def open_plain(path: Path) -> io.BufferedReader:
    """Open a plain file to read it. Raises OSError if it is none: the open of a named pipe
    waits for its writer, and a device may have no end."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  # returned
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "it is no plain file", str(path))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_plain(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of a plain file. Raises OSError for anything else, and for a file of more
    than `most` bytes."""
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_plain_text(path: Path, errors: Literal["strict", "replace"] = "strict") -> str:
    """Return the text of a plain file in UTF-8, with all ends of lines as line feeds. Raises as
    `read_plain`, and ValueError for other bytes unless they are replaced."""
    return io.TextIOWrapper(io.BytesIO(read_plain(path)), "utf-8", errors).read()


def unpack_plain(path: Path, most: int = _MOST_BYTES) -> bytes:
    """Return the content of a plain file that gzip packed. Raises as `read_plain`, and EOFError or
    zlib.error if the file is damaged."""
    with open_plain(path) as file, gzip.GzipFile(fileobj=file) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content
