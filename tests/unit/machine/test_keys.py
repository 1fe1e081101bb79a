from __future__ import annotations

import base64
import io
import struct

import paramiko
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from orchestrator.machine.transport.keys import KeyPair, RunKeys


def test_private_key_is_read_by_an_ssh_client_as_the_same_key() -> None:
    pair = KeyPair.make()
    read = paramiko.Ed25519Key.from_private_key(io.StringIO(pair.private_openssh.decode()))
    assert read.get_name() == "ssh-ed25519"
    assert read.asbytes() == pair.public_blob
    assert pair.public_line == f"ssh-ed25519 {read.get_base64()}"


def test_dropbears_key_is_the_same_key() -> None:
    pair = KeyPair.make()
    data = pair.private_dropbear
    (name_length,) = struct.unpack_from(">I", data)
    assert data[4 : 4 + name_length] == b"ssh-ed25519"
    (length,) = struct.unpack_from(">I", data, 4 + name_length)
    rest = data[8 + name_length :]
    assert len(rest) == length == 64
    made = Ed25519PrivateKey.from_private_bytes(rest[:32]).public_key()
    assert made == Ed25519PublicKey.from_public_bytes(rest[32:])
    assert base64.b64decode(pair.public_line.split()[1])[-32:] == rest[32:]


def test_keys_of_a_run_are_all_different_and_new() -> None:
    one, two = RunKeys.make(), RunKeys.make()
    lines = {k.public_line for keys in (one, two) for k in (keys.runner, keys.host, keys.guest)}
    assert len(lines) == 6


def test_private_keys_go_only_where_they_belong() -> None:
    keys = RunKeys.make()
    for files, own in ((keys.for_host(), "ssh_host"), (keys.for_guest(), "dropbear")):
        secret = [
            name for name, content in files.items()
            if b"ssh-ed25519 " not in content and name != "barometer/token"
        ]  # fmt: skip
        assert len(secret) == 1
        assert own in secret[0]
        assert keys.runner.private_openssh not in files.values()
        [name] = [name for name in files if name.endswith("authorized_keys")]
        assert files[name] == keys.runner.public_line.encode() + b"\n"
