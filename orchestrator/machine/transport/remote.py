"""An existing machine over SSH, as ssh(1) reaches it: ssh makes the connection.

Barometer logs in as root, or as a user whom sudo lets do everything without a password. A machine
whose host key is not known is refused: nobody is there to confirm it.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.process import run, tail
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.openssh import Master, NoConnectionError
from orchestrator.machine.transport.shell import Shell, close
from orchestrator.machine.transport.ssh_client import ALIVE_TRIES, write_client

_SECONDS = 20
_CONFIG_SECONDS = 60.0
"""Deadline of `ssh -G`, which may look names up."""
_LOGIN_SECONDS = 60.0
"""Deadline of a login: a busy emulated machine takes long to make a key."""
_ALIVE_SECONDS = 10
_NONE = "none"
_UNATTENDED = {
    "BatchMode": "yes", "StrictHostKeyChecking": "yes",
    # the user's files stay as they are
    "UpdateHostKeys": "no", "AddKeysToAgent": "no",
    # what people want of a terminal, and no program does
    "ClearAllForwardings": "yes", "ForwardAgent": "no", "ForwardX11": "no",
    "PermitLocalCommand": "no", "RemoteCommand": _NONE, "EscapeChar": _NONE,
}  # fmt: skip
"""Options of ssh_config(5) that hold whatever the user's configuration says."""


@dataclass(frozen=True)
class Endpoint:
    """An SSH server."""

    address: str
    """Address as the user wrote it."""
    config: Path | None
    """File for `ssh -F`; None: ssh's own configuration."""
    hostname: str
    """Host, port and user as `ssh -G` prints them, for messages."""
    port: int
    user: str
    is_behind: bool
    """True: another program makes the connection (ProxyJump, ProxyCommand)."""
    identity: Path | None = None
    """File of a key that is tried before those of the configuration."""

    def __str__(self) -> str:
        return self.address


def resolve_address(address: str, config: Path | None = None) -> Endpoint:
    """Resolve an address by ssh's configuration. Raises ScenarioError if ssh refuses the
    configuration."""
    if config is not None and not config.is_file():
        raise ScenarioError(
            f"{config}: no such file of ssh's configuration", reason=Reason.SSH_CONFIG
        )
    try:
        configuration = run(
            [*_ssh(config), "-G", "--", address],
            doing=f"reading ssh's configuration for {address}", timeout=_CONFIG_SECONDS,
        ).stdout  # fmt: skip
    except BenchError as exc:
        if exc.reason != Reason.PROGRAM_FAILED:  # ssh is missing, or hangs
            raise
        raise ScenarioError(
            f"ssh does not take the address {address}",
            evidence=exc.evidence,
            reason=Reason.SSH_CONFIG,
        ) from exc
    options = dict(line.split(" ", 1) for line in configuration.splitlines() if " " in line)
    return Endpoint(
        address, config, options.get("hostname", address), int(options.get("port", "22")),
        options.get("user", ""),
        is_behind=any(options.get(key, _NONE) != _NONE for key in ("proxyjump", "proxycommand")),
    )  # fmt: skip


def _ssh(config: Path | None) -> list[str]:
    return ["ssh", *(["-F", str(config)] if config else [])]


def _client(endpoint: Endpoint, seconds: float, tries: int) -> list[str]:
    """Return ssh's command line without the address. `seconds`: limit of the connection and the
    server's banner; `tries`: messages without an answer after which the connection is given up."""
    options = {
        **_UNATTENDED, "ConnectTimeout": str(math.ceil(seconds)),
        "ServerAliveInterval": str(_ALIVE_SECONDS), "ServerAliveCountMax": str(tries),
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    identity = ["-i", str(endpoint.identity)] if endpoint.identity else []
    return [*_ssh(endpoint.config), *words, *identity]


@contextlib.contextmanager
def logged_in(endpoint: Endpoint, *, patience: float = _SECONDS) -> Iterator[Shell]:
    """Log in and yield a shell whose commands run as root. `patience`: seconds for the connection,
    and as many for the server's banner.

    Raises BenchError if nothing answers, if the proxy command cannot be started, if the machine's
    key is unknown or differs from the known one, if the login is refused, or if the user may not
    become root without a password.
    """
    try:
        master = Master(
            # a machine that is busy is given a while: commands have deadlines of their own
            _client(endpoint, 2 * patience, 3 * ALIVE_TRIES),
            endpoint.address, 2 * patience + _LOGIN_SECONDS,
        )  # fmt: skip
    except NoConnectionError as exc:
        raise _explain(endpoint, str(exc), exc.log) from exc
    try:
        shell = Shell("host", master)
        if shell.run("id -u", timeout=_LOGIN_SECONDS).stdout.strip() == "0":
            yield shell
            return
        sudo = shell.run("sudo -n true", check=False, timeout=_LOGIN_SECONDS)
        if sudo.code:
            raise BenchError(
                f"{endpoint}: {endpoint.user} may not become root without a password",
                evidence=sudo.stderr.strip(), reason=Reason.HOST_NO_ROOT,
                hint=f"log in as root, or let sudo: {endpoint.user} ALL=(root) NOPASSWD: ALL",
            )  # fmt: skip
        yield Shell("host", master, become=("sudo", "-n", "--", "sh", "-c"))
    finally:
        close(master)


class _Failure(NamedTuple):
    """What ssh(1) prints, and what it tells."""

    pattern: str
    reason: Reason
    message: str
    hint: str = ""


_FAILURES = (
    # of a proxy command or a jump host: the connection that they are has ended
    _Failure(r"UNKNOWN port 65535|Connection to UNKNOWN", Reason.HOST_NO_SSH, ""),
    _Failure(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|REVOKED HOST KEY", Reason.HOST_WRONG_HOST_KEY,
        "it shows another host key than the one that is known, or a revoked one",
        "was it installed anew? Compare the fingerprint, then ssh-keygen -R",
    ),
    _Failure(
        r"Host key verification failed|host key is known for", Reason.HOST_UNKNOWN_HOST_KEY,
        "its host key is not known",
        "connect once by hand and compare the fingerprint: ssh {endpoint}",
    ),
    _Failure(
        r"Permission denied \(|Too many authentication failures", Reason.HOST_NO_LOGIN,
        "no key lets {user} in",
        "IdentityFile in ssh's configuration names one; it must have no passphrase",
    ),
    _Failure(
        r"Could not resolve hostname", Reason.HOST_NO_NAME, "there is no machine called {host}"
    ),
)  # fmt: skip
"""The first whose pattern is found holds."""
_NO_PROXY = _Failure(
    r"(?m)^\S+: (?:.*: )?(?:(?:command )?not found|Permission denied|No such file or directory)$",
    Reason.HOST_NO_PROXY, "the proxy command cannot be started",
    "ssh's configuration has it: ProxyCommand or ProxyJump",
)  # fmt: skip
"""A shell's message about a program that it cannot start."""
_NO_SSH = _Failure(
    "", Reason.HOST_NO_SSH, "no SSH server answers at {host} port {port}: {last}"
)  # fmt: skip


def _explain(endpoint: Endpoint, why: str, log: str) -> BenchError:
    """Return the error for a connection that ssh(1) did not make."""
    lines = [line.rstrip() for line in log.splitlines() if not line.startswith("debug")]
    text = "\n".join(lines)
    failure = next((one for one in _FAILURES if re.search(one.pattern, text)), _NO_SSH)
    evidence = tail(text)
    if failure.reason == Reason.HOST_NO_SSH:
        is_missing = endpoint.is_behind and re.search(_NO_PROXY.pattern, text)
        failure = _NO_PROXY if is_missing else _NO_SSH
    elif failure.reason == Reason.HOST_NO_LOGIN:
        evidence = "\n".join([*_list_keys(log), evidence])
    words = {
        "endpoint": endpoint, "user": endpoint.user, "host": endpoint.hostname,
        "port": endpoint.port, "last": lines[-1] if lines else why,
    }  # fmt: skip
    return BenchError(
        f"{endpoint}: {failure.message.format(**words)}", evidence=evidence,
        hint=failure.hint.format(**words), reason=failure.reason,
    )  # fmt: skip


def _list_keys(log: str) -> list[str]:
    """Return the keys that ssh(1) tried. It names files that are not there, too."""
    offered = re.findall(r"debug1: Offering public key: (.*)", log)
    files = re.findall(r"debug1: Trying private key: (.*)", log)
    keys = [*offered, *(file for file in files if Path(file.strip()).exists())]
    return [f"tried {key.strip()}" for key in keys] or [
        "there is no key: neither in ssh-agent nor in a file"
    ]


def client_program(endpoint: Endpoint, folder: Path) -> Path:
    """Write a program that runs OpenSSH's client for libvirt's qemu+ssh://. The client connects to
    `endpoint`, whatever host name libvirt passes."""
    return write_client(
        folder, _client(endpoint, _SECONDS, ALIVE_TRIES), destination=endpoint.address
    )


class Link:
    """A connection to a machine. It is made when it is first needed, and made again if it was
    lost."""

    def __init__(self, endpoint: Endpoint, *, patience: float = _SECONDS) -> None:
        """`patience` is that of `logged_in`."""
        self._endpoint, self._patience = endpoint, patience
        self._stack: contextlib.ExitStack | None = None
        self._shell: Shell | None = None

    def shell(self) -> Shell:
        """Return a shell, over a new connection if there is none. Raises the errors of
        `logged_in`."""
        if self._shell is None or not self._shell.alive():
            self.close()
            self._stack = contextlib.ExitStack()
            self._shell = self._stack.enter_context(
                logged_in(self._endpoint, patience=self._patience)
            )
        return self._shell

    def close(self) -> None:
        """Close the connection. The next use connects anew."""
        if self._stack is not None:
            self._stack.close()
        self._stack = self._shell = None
