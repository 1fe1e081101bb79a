"""Programs that run OpenSSH's client, for the connections that libvirt makes by itself."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from orchestrator.machine.transport.keys import KeyPair
from orchestrator.machine.transport.shell import HANDSHAKE_SECONDS

ALIVE_TRIES = 6
"""Messages without an answer after which OpenSSH's client takes the server for gone."""


def write_client_config(
    folder: Path, *, port: int, key: KeyPair, host_key: KeyPair, keepalive: int = 10
) -> Path:
    """Write the files of an OpenSSH client for libvirt's qemu+ssh://. Return a program that runs
    the client with them.

    The host's key is pinned, and nothing of the user's own configuration is read. `keepalive` is
    that of `shell.connected`.
    """
    private = folder / "runner_key"
    private.touch(mode=0o600)
    private.write_bytes(key.private_openssh)
    hosts = folder / "known_hosts"
    hosts.write_text(f"barometer-host {host_key.public_line}\n")
    config = folder / "ssh_config"
    config.write_text(
        f"Host *\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {private}\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {hosts}\n GlobalKnownHostsFile /dev/null\n"
        " HostKeyAlias barometer-host\n StrictHostKeyChecking yes\n PasswordAuthentication no\n"
        f" BatchMode yes\n ConnectTimeout {HANDSHAKE_SECONDS}\n LogLevel ERROR\n"
        f" ServerAliveInterval {keepalive}\n ServerAliveCountMax {ALIVE_TRIES}\n"
    )
    return write_client(folder, ["/usr/bin/ssh", "-F", str(config)])


def write_client(folder: Path, argv: Sequence[str], destination: str = "") -> Path:
    """Write a program for `qemu+ssh://?command=`, which executes `argv` with its own arguments
    appended. It leads a session, and records its process id, by which `end_clients` ends it.

    `destination`: address in place of the host's name, which libvirt passes after `--`.
    """
    program = folder / "ssh"
    pids = shlex.quote(str(_pids(program)))
    words = shlex.join(argv)
    if destination:
        words += f" -T -e none -- {shlex.quote(destination)}"
    skip = 'while [ "$1" != -- ]; do shift; done\nshift 2\n' if destination else ""
    program.write_text(f'#!/bin/sh\necho $$ >> {pids}\n{skip}exec setsid {words} "$@"\n')
    program.chmod(0o700)
    return program


def end_clients(program: Path) -> None:
    """End the children of this process that run `program` (of `write_client`), with the programs
    that they started, and so the connections through them."""
    with contextlib.suppress(FileNotFoundError):
        for pid in map(int, _pids(program).read_text().split()):
            if _parent(pid) == os.getpid():
                for end in (os.killpg, os.kill):  # it leads no session before setsid(1)
                    with contextlib.suppress(ProcessLookupError):
                        end(pid, signal.SIGKILL)


def _pids(program: Path) -> Path:
    return program.with_name(f"{program.name}.pids")


def _parent(pid: int) -> int | None:
    """Return a process's parent (proc_pid_stat(5), field 4); None if the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
