"""The machine: its files, programs, clocks and identity, and the lock that guards all of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STATE = "/var/lib/barometer"
LOCK = "/run/barometer.lock"
"""Lock, in a folder where root alone can make files: anyone could take one in /run/lock."""
LOCK_SECONDS = 30.0
PROGRAM_SECONDS = 120.0
TOKEN_WORD = "barometer.token="
"""Word on the command line of every kernel that barometer boots, and of no other."""


class RefusedError(Exception):
    """A request is refused; the message says why. `reason` is a short stable name, `facts` go into
    the answer."""

    def __init__(self, reason: str, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.reason = reason
        self.facts = facts


@contextlib.contextmanager
def refused_as(reason: str, *former: str) -> Iterator[None]:
    """Replace the reason of refusals that the block raises, if it is one of `former`: the caller
    knows what was refused."""
    try:
        yield
    except RefusedError as exc:
        if exc.reason not in former:
            raise
        raise RefusedError(reason, str(exc), **exc.facts) from exc


def at(path: str) -> Path:
    return Path(os.environ.get("BAROMETER_ROOT", "") + path)


def text(path: str) -> str | None:
    """Return a file's text without white space around it; None if it cannot be read."""
    try:
        return at(path).read_text(errors="replace").strip()
    except OSError:
        return None


def read_plain(path: Path, most: int) -> bytes:
    """Return up to `most` bytes of a plain file. Raises OSError if it is none: the open of
    a named pipe waits for its writer, and a device may have no end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", str(path))
        return file.read(most)


def chosen(content: str) -> str:
    """Return the value of a setting: `madvise` from "always [madvise] never", else all of it."""
    found = re.search(r"\[(\S+)\]", content)
    return found[1] if found else content.strip()


def set_value(path: str, value: str) -> None:
    """Write a value with one write(2), because each is one command to the kernel."""
    with writable(path, os.O_TRUNC) as file:
        os.write(file, value.encode() + b"\n")


@contextlib.contextmanager
def writable(path: str, flags: int = 0) -> Iterator[int]:
    """Open a file for writing while the block runs, and yield its descriptor. If the block raises
    an OSError, the file's name is added to it."""
    file = os.open(at(path), os.O_WRONLY | flags)
    try:
        yield file
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from exc
    finally:
        os.close(file)


def set_value_within(path: str, value: str, seconds: float = 30) -> None:
    """Write a value as `set_value` does, to a file whose write may never return: a driver that is
    in use may wait for its users to go. Then the process that writes hangs in the kernel, and the
    keeper goes on."""
    writer = subprocess.Popen(
        ["tee", str(at(path))], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        errors = writer.communicate(f"{value}\n", timeout=seconds)[1]
    except subprocess.TimeoutExpired as exc:
        raise RefusedError(
            "driver-hangs", f"{path}: the kernel did not take {value} within {seconds:.0f} s"
        ) from exc
    if writer.returncode:
        raise RefusedError("setting-refused", f"{value} is refused: {errors.strip()}")


def beside(path: Path) -> Path:
    """Return the path at which a file is written before it is renamed to `path`."""
    return path.with_name(f".{path.name}.barometer")


def write_whole(file: int, content: bytes) -> None:
    """Write all of the content to the disk. On a full disk write(2) writes less, and fails only
    the next time."""
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
    os.fsync(file)


def replace(path: Path, content: bytes, mode: int = 0o600, owner: Sequence[int] = ()) -> None:
    """Write a file so that there is the old one or the new one, whenever the power fails. Raises
    OSError on a full disk; then the file stays as it was."""
    new = beside(path)
    new.unlink(missing_ok=True)
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        if owner and [os.fstat(file).st_uid, os.fstat(file).st_gid] != [*owner]:
            os.fchown(file, *owner)
        os.fchmod(file, mode)
        write_whole(file, content)
        new.rename(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def remove_tree(path: str) -> None:
    """Remove a folder with all that is in it. Raises RefusedError if something is mounted there:
    its files would be removed, too."""
    for line in (text("/proc/self/mounts") or "").splitlines():
        point = line.split()[1]
        if f"{point}/".startswith(f"{path}/"):
            raise RefusedError("mounted", f"{point} is a mount point: unmount it first")
    if at(path).exists():
        shutil.rmtree(at(path))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: str, staged: str) -> None:
    """Raise RefusedError if a file's sha256 is not `staged`, the one that it was staged with. A
    kernel image that was cut off loads without complaint, and kills the machine."""
    if (found := sha256(at(path))) != staged:
        raise RefusedError(
            "wrong-image", f"{path} is not what was staged: its sha256 is {found}, not {staged}"
        )


def program(*names: str) -> str | None:
    """Return the first of the programs that is installed, or None."""
    return next((name for name in names if shutil.which(name)), None)


def run(*argv: str, accept: Sequence[int] = (0,)) -> str:
    """Run a program and return its standard output. Raises RefusedError if it is missing, too slow
    or fails."""
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace", env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        out, errors = process.communicate(timeout=PROGRAM_SECONDS)
    except FileNotFoundError as exc:
        raise RefusedError("program-missing", f"the machine has no {argv[0]}") from exc
    except subprocess.TimeoutExpired as exc:
        process.kill()  # no wait: a program that hangs in the kernel does not end
        raise RefusedError(
            "program-timeout", f"{' '.join(argv)} took more than {PROGRAM_SECONDS:.0f} s"
        ) from exc
    if process.returncode not in accept:
        said = (errors or out).strip()[-600:]
        raise RefusedError(
            "program-failed",
            f"{' '.join(argv)} failed with exit code {process.returncode}: {said}",
        )
    return out


def boot_id() -> str:
    return text("/proc/sys/kernel/random/boot_id") or ""


def release() -> str:
    return text("/proc/sys/kernel/osrelease") or ""


def version() -> str:
    """Return what `uname -v` prints."""
    return text("/proc/sys/kernel/version") or ""


def cmdline() -> str:
    return text("/proc/cmdline") or ""


def has_systemd() -> bool:
    """True if systemd runs the machine (sd_booted(3))."""
    return at("/run/systemd/system").is_dir()


def token_in(words: str) -> str:
    """Return the token in a command line, or in a text that quotes one; empty if there is none."""
    found = re.search(rf"(?:^|\s){TOKEN_WORD}(\S+)", words)
    return found[1] if found else ""


def is_under_test() -> bool:
    """True if the running kernel is one that barometer booted."""
    return any(word.startswith(TOKEN_WORD) for word in cmdline().split())


def boottime() -> float:
    """Return the seconds since boot, including those in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def realtime_ns() -> int:
    return time.time_ns()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Keep other keepers out while the block runs. If nothing of barometer's is left on the
    machine at the end, the lock's file is removed, too. Raises RefusedError if another keeper has
    the lock for too long."""
    path = at(LOCK)
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _taken(file, path, deadline):
                break
        except BaseException:
            os.close(file)
            raise
        os.close(file)
    try:
        yield
    finally:
        if not at(STATE).exists():
            path.unlink(missing_ok=True)
        os.close(file)


def _taken(file: int, path: Path, deadline: float) -> bool:
    """Wait for the lock. Return False if the keeper that held it has removed the lock's file
    meanwhile."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RefusedError(
                    "machine-busy", f"another keeper has had {LOCK} for {LOCK_SECONDS:.0f} s"
                ) from None
            time.sleep(0.05)
        else:
            return path.exists() and path.stat().st_ino == os.fstat(file).st_ino
