"""A real sshd on this machine, with keys of its own and nothing of this machine's
configuration."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.machine.transport.keys import RunKeys

SSHD = Path("/usr/sbin/sshd")
USER = pwd.getpwuid(os.geteuid()).pw_name
SECONDS = 20.0


@dataclass(frozen=True)
class Server:
    port: int
    keys: RunKeys
    folder: Path

    @property
    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self.port


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def server_in(folder: Path, *options: str) -> Server:
    """Write the server's files. `options` are further lines of its configuration."""
    server = Server(free_port(), RunKeys.make(), folder)
    host_key = folder / "host_key"
    host_key.touch(mode=0o600)
    host_key.write_bytes(server.keys.host.private_openssh)
    (folder / "authorized_keys").write_text(server.keys.runner.public_line + "\n")
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {host_key}\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
        "PermitRootLogin prohibit-password\n" + "".join(f"{option}\n" for option in options)
    )
    return server


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Keep the server running while the block runs."""
    if not SSHD.exists():
        pytest.fail(f"the ssh lane needs {SSHD}; ci/setup.sh --tests installs openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's privilege separation needs it
    with (server.folder / "log").open("w") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", server.folder / "sshd_config"],
            stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        _wait_for_banner(process, server.port, server.folder / "log")
        yield server
    finally:
        process.terminate()
        process.wait(SECONDS)


def _wait_for_banner(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), 5) as connection,
        ):
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(0.05)
    pytest.fail(f"{SSHD} does not serve:\n{log.read_text()}")
