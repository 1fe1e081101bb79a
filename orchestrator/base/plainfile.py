"""Read and replace files that may have become anything: records and evidence are copied, damaged,
or made by somebody else."""

from __future__ import annotations

import errno
import gzip
import io
import os
import secrets
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


def find_below(folder: Path, name: str) -> Path:
    """Return FOLDER/NAME, which need not exist. Raises OSError if a part of the name is a symbolic
    link: whoever made the folder could name any file of this machine."""
    path = folder
    for part in Path(name).parts:
        path /= part
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed", str(path))
    return path


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file beside `path` and rename it to that, so that a reader sees either the old file
    or the new one. A link or a pipe of that name is replaced, not written to. Raises OSError."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    try:
        with beside.open("xb") as file:  # x: never through a link
            file.write(data)
        beside.rename(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


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
