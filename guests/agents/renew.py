"""On a host that may be saved: wait for the disk with the keys, then renew what hosts that are
restored from one boot may not share. Plain Python 3 standard library.

The host's init starts this before sshd, so a saved host has no keys and no connection. It is
started before the host is saved, so that a restored host need not start it. On the disk is a tar
archive, which is unpacked to /etc/barometer. Two of its files are used here:

seed    random bytes, which are mixed into the kernel's random state
time    seconds since 1970, for the wall clock; missing if the clock is to go on as it was saved
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import struct
import tarfile
import time
from pathlib import Path

SERIAL = "keys"
FOLDER = "etc/barometer"
# include/uapi/linux/random.h: _IOW('R', 3, int[2]) and _IO('R', 7)
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_POLL_SECONDS = 0.05
_NEXT = ("usr/sbin/sshd", "usr/lib/openssh/sshd-*", "usr/lib/*/libcrypto.so.3", "usr/bin/kmod")
"""Files that the host reads next. A restored host has in memory what was read before. Modules are
left out: those of the arm that is restored may be others."""


def read_next(root: Path) -> None:
    """Read what the host will need after its keys."""
    for pattern in _NEXT:
        for path in root.glob(pattern):
            with contextlib.suppress(OSError):
                path.read_bytes()


def read_disk(root: Path) -> bytes | None:
    """Return the content of the disk with the keys; None while the host has none."""
    for serial in root.glob("sys/block/vd*/serial"):
        with contextlib.suppress(OSError):  # the disk is being probed
            if serial.read_text().strip() == SERIAL:
                return (root / "dev" / serial.parent.name).read_bytes()
    return None


def unpack(archive: bytes, folder: Path) -> None:
    """Unpack the files of a tar archive. Only their owner may read them."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, f"{member.name} is no file"
            path = folder / Path(member.name).name
            path.touch(mode=0o600)
            path.write_bytes(file.read())


def pool_info(seed: bytes) -> bytes:
    """Return struct rand_pool_info, which credits every bit of the seed."""
    return struct.pack("ii", len(seed) * 8, len(seed)) + seed


def renew(root: Path) -> None:
    """Mix the seed into the random state, and set the wall clock and the machine's id."""
    seed = root / FOLDER / "seed"
    with (root / "dev/urandom").open("wb") as random:
        fcntl.ioctl(random, _RNDADDENTROPY, pool_info(seed.read_bytes()))
        # else what getrandom(2) returns would stay the same for up to a minute
        fcntl.ioctl(random, _RNDRESEEDCRNG)
    seed.unlink()
    now = root / FOLDER / "time"
    if now.exists():
        time.clock_settime(time.CLOCK_REALTIME, float(now.read_text()))
    (root / "etc/machine-id").write_text(f"{os.urandom(16).hex()}\n")


def main() -> None:
    root = Path("/")
    read_next(root)
    # reading it makes it: hosts that are restored from one boot share it
    boot_id = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    with (root / "dev/console").open("w") as console:
        token = os.environ["token"]  # noqa: SIM112 - the first program exports it
        print(f"barometer: may be saved {token} {boot_id}", file=console)
    while (archive := read_disk(root)) is None:
        time.sleep(_POLL_SECONDS)
    unpack(archive, root / FOLDER)
    renew(root)


if __name__ == "__main__":
    main()
