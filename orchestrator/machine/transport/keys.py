"""SSH keys (ed25519) of the runner, the host and the guest. They are made for one boot of a host,
or for the guests of one trial."""

from __future__ import annotations

import base64
import io
import struct
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


@dataclass(frozen=True)
class KeyPair:
    _private: Ed25519PrivateKey

    @classmethod
    def make(cls) -> KeyPair:
        return cls(Ed25519PrivateKey.generate())

    @property
    def private_openssh(self) -> bytes:
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())

    @property
    def public_line(self) -> str:
        """`ssh-ed25519 BASE64`"""
        raw = self._private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        return raw.decode()

    @property
    def public_blob(self) -> bytes:
        return base64.b64decode(self.public_line.split()[1])

    @property
    def private_dropbear(self) -> bytes:
        """Private key in dropbear's format: the string "ssh-ed25519", then a string of 64 bytes
        (32 of the seed, 32 of the public key).

        Source: buf_put_ed25519_priv_key() of dropbear.
        """
        seed = self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        name = b"ssh-ed25519"
        return struct.pack(">I", len(name)) + name + struct.pack(">I", 64) + seed + public


@dataclass(frozen=True)
class RunKeys:
    """Keys that are made anew for every boot of a host, and for the guests of every trial."""

    runner: KeyPair
    host: KeyPair
    guest: KeyPair
    guest_token: str
    """Token in the marks on the guests' consoles. It is on no command line, because a kernel
    prints its command line on the console."""

    @classmethod
    def make(cls) -> RunKeys:
        return cls(KeyPair.make(), KeyPair.make(), KeyPair.make(), uuid.uuid4().hex[:12])

    def for_host(self) -> dict[str, bytes]:
        """Return the files of the host's /etc/barometer."""
        return {
            "ssh_host_ed25519_key": self.host.private_openssh,
            "authorized_keys": self.runner.public_line.encode() + b"\n",
        }

    def for_guest(self) -> dict[str, bytes]:
        """Return the files of the guest's initramfs in /barometer."""
        return {
            "barometer/dropbear_ed25519_host_key": self.guest.private_dropbear,
            "barometer/token": self.guest_token.encode() + b"\n",
            "barometer/authorized_keys": self.runner.public_line.encode() + b"\n",
        }


def make_tar(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive of whole sectors, which can be the content of a raw disk."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
