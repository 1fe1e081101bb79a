"""An existing machine over SSH, as ssh(1) knows it: its configuration, keys and known hosts.

Barometer logs in as root, or as a user whom sudo lets do everything without a password. A machine
whose host key is not known is refused: nobody is there to confirm it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm

from orchestrator.base.bounded import Excerpt
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.process import drain, end_group, run, start_on_socket, tail
from orchestrator.base.reasons import Reason
from orchestrator.machine.transport.calls import in_time
from orchestrator.machine.transport.shell import Shell, close
from orchestrator.machine.transport.ssh_client import ALIVE_TRIES, write_client

_SECONDS = 20
_CONFIG_SECONDS = 60.0
"""Deadline of `ssh -G`, which may look names up."""
_LOGIN_SECONDS = 60
"""Deadline of a login: a busy emulated machine takes long to make a key."""
_NONE = "none"
_NOT_STARTED = (126, 127)
"""Exit codes of a shell for a program that it cannot run or does not find."""
_ENDING_SECONDS = 1.0
"""Wait for the exit of a proxy command that has closed its connection."""
_ERRORS_BYTES = 16 << 10
_ALIVE = {"ServerAliveInterval": "10", "ServerAliveCountMax": str(ALIVE_TRIES)}
# exceptions for a key with a passphrase, a security key or a key in an older format
_UNUSABLE = (OSError, paramiko.SSHException, ValueError, TypeError, UnsupportedAlgorithm)


@dataclass(frozen=True)
class Endpoint:
    """An SSH server, as `ssh -G` prints it for an address."""

    address: str
    """Address as the user wrote it."""
    config: Path | None
    """File for `ssh -F`; None: ssh's own configuration."""
    hostname: str
    port: int
    user: str
    alias: str
    """Name under which the machine's key is known, if that is not its host name; else empty."""
    identities: tuple[Path, ...]
    known_hosts: tuple[Path, ...]
    agent: bool
    """True: keys of ssh-agent are tried, too."""
    proxy: tuple[str, ...] = ()
    """Program whose standard input and output are the connection to the server (ProxyJump,
    ProxyCommand); empty: a connection of our own."""

    def __str__(self) -> str:
        return self.address

    @property
    def known_as(self) -> str:
        """Name of the machine in known_hosts(5)."""
        if self.alias or self.port == 22:
            return self.alias or self.hostname
        return f"[{self.hostname}]:{self.port}"


def resolve_address(address: str, config: Path | None = None) -> Endpoint:
    """Resolve an address by ssh's configuration. Raises ScenarioError if ssh refuses the
    configuration, or if the configuration needs what only ssh itself can do (ProxyUseFdpass)."""
    argv = [*_ssh(config), "-G", "--", address]
    if config is not None and not config.is_file():
        raise ScenarioError(
            f"{config}: no such file of ssh's configuration", reason=Reason.SSH_CONFIG
        )
    try:
        configuration = run(
            argv, doing=f"reading ssh's configuration for {address}", timeout=_CONFIG_SECONDS
        ).stdout
    except BenchError as exc:
        if exc.reason != Reason.PROGRAM_FAILED:  # ssh is missing, or hangs
            raise
        raise ScenarioError(
            f"ssh does not take the address {address}",
            evidence=exc.evidence,
            reason=Reason.SSH_CONFIG,
        ) from exc
    options: dict[str, list[str]] = {}
    for line in configuration.splitlines():
        key, _, value = line.partition(" ")
        options.setdefault(key, []).append(value)

    def option(key: str, default: str = "") -> str:
        return (options.get(key) or [default])[0]

    proxy: tuple[str, ...] = ()
    if (jump := option("proxyjump", _NONE)) != _NONE:
        proxy = _jump(jump, f"[{option('hostname')}]:{option('port')}", config)
    elif (command := option("proxycommand", _NONE)) != _NONE:
        if option("proxyusefdpass", "no") != "no":
            raise ScenarioError(
                f"{address}: ssh's configuration has ProxyUseFdpass, which barometer cannot use",
                hint="give a ProxyCommand that passes the data itself", reason=Reason.SSH_CONFIG,
            )  # fmt: skip
        tokens = {
            "%": "%", "h": option("hostname"), "k": option("hostkeyalias") or option("host"),
            "n": option("host"), "p": option("port"), "r": option("user"),
        }  # fmt: skip
        try:
            command = re.sub("%(.?)", lambda token: tokens[token[1]], command)
        except KeyError as exc:
            raise ScenarioError(
                f"{address}: ssh does not know %{exc.args[0]} in ProxyCommand {command}",
                reason=Reason.SSH_CONFIG,
            ) from exc
        proxy = (os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {command}")  # as ssh runs it
    files = [*_files(option("userknownhostsfile")), *_files(option("globalknownhostsfile"))]
    # `ssh -G` prints each on a line of its own, without quotes even if the path has a blank
    identities = [
        Path(name).expanduser() for name in options.get("identityfile", []) if name != _NONE
    ]
    return Endpoint(
        address, config, option("hostname"), int(option("port", "22")), option("user"),
        alias=option("hostkeyalias"), identities=tuple(identities), known_hosts=tuple(files),
        agent=option("identitiesonly", "no") != "yes", proxy=proxy,
    )  # fmt: skip


def _ssh(config: Path | None) -> list[str]:
    return ["ssh", *(["-F", str(config)] if config else [])]


def _jump(hosts: str, target: str, config: Path | None) -> tuple[str, ...]:
    """Return the program that connects to `target` through jump hosts, as ssh's own ProxyJump
    does. It never prompts, and ends by itself once the last jump host is gone."""
    before, _, last = hosts.rpartition(",")
    user, _, place = last.rpartition("@")
    # `ssh -G` puts addresses into brackets; ssh:// takes no IPv6 address
    host, port = re.findall(r"\[?([^]]*?)]?(?::(\d+))?$", place)[0]
    options = {"BatchMode": "yes", "ConnectTimeout": str(_SECONDS), **_ALIVE}
    flags = {"-J": before, "-l": user, "-p": port}
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    return (*_ssh(config), *_words(options), *words, "-W", target, "--", host)


def _words(options: dict[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _files(names: str) -> list[Path]:
    return [Path(name).expanduser() for name in names.split() if name not in ("", _NONE)]


@contextlib.contextmanager
def logged_in(
    endpoint: Endpoint, *, keepalive: int = 5, patience: float = _SECONDS
) -> Iterator[Shell]:
    """Log in and yield a shell whose commands run as root. `patience`: seconds for the connection,
    and as many for the server's banner.

    Raises BenchError if nothing answers, if the proxy command cannot be started, if the machine's
    key is unknown or differs from the known one, if the login is refused, or if the user may not
    become root without a password.
    """
    with _proxy(endpoint) as proxy, _connected(endpoint, proxy, patience) as transport:
        transport.set_keepalive(keepalive)
        shell = Shell("host", transport)
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
        yield Shell("host", transport, become=("sudo", "-n", "--", "sh", "-c"))


class _Proxy:
    """A proxy command that runs.

    paramiko.ProxyCommand would not do. It runs in the terminal's session, so that Ctrl-C ends the
    connection by which a machine is put back. After the program's end it goes on reading in a busy
    loop, as if the program were only silent. It never reads the program's standard error, and
    never waits for its exit.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self._command = shlex.join(argv)
        self._process, self.socket = start_on_socket(argv, stderr=subprocess.PIPE)
        assert self._process.stderr is not None
        self._errors = Excerpt(_ERRORS_BYTES)
        self._reader = drain(self._process.stderr, self._errors.feed)

    def error(self, endpoint: Endpoint, why: str) -> BenchError:
        """Return the error for a failed connection through the program."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_SECONDS)
            self._reader.join(_ENDING_SECONDS)
        code, errors = self._process.returncode, self._errors.text()
        if code in _NOT_STARTED:
            return _no_proxy(endpoint, self._command, errors)
        if code is not None:
            why = f"it ended with exit code {code}: {tail(errors, 1)}"
        return BenchError(
            f"{endpoint}: no SSH connection by the proxy command {self._command}: {why}",
            evidence=tail(errors), reason=Reason.HOST_NO_SSH,
        )  # fmt: skip

    def end(self) -> None:
        self.socket.close()
        end_group(self._process)


def _no_proxy(endpoint: Endpoint, command: str, errors: str) -> BenchError:
    return BenchError(
        f"{endpoint}: the proxy command cannot be started: {command}", evidence=tail(errors),
        hint="ssh's configuration has it: ProxyCommand or ProxyJump", reason=Reason.HOST_NO_PROXY,
    )  # fmt: skip


@contextlib.contextmanager
def _proxy(endpoint: Endpoint) -> Iterator[_Proxy | None]:
    """Run the proxy command, if there is one, while the block runs."""
    if not endpoint.proxy:
        yield None
        return
    try:
        proxy = _Proxy(endpoint.proxy)
    except OSError as exc:
        raise _no_proxy(endpoint, shlex.join(endpoint.proxy), str(exc)) from exc
    try:
        yield proxy
    finally:
        proxy.end()


@contextlib.contextmanager
def _connected(
    endpoint: Endpoint, proxy: _Proxy | None, patience: float
) -> Iterator[paramiko.Transport]:
    """Keep a connection that is logged in while the block runs."""
    transport = _transport(endpoint, proxy, patience)
    try:
        _log_in(endpoint, transport, proxy)
        yield transport
    finally:
        close(transport)


def _transport(endpoint: Endpoint, proxy: _Proxy | None, patience: float) -> paramiko.Transport:
    try:
        place = (endpoint.hostname, endpoint.port)
        # to look up the name takes as long as the name servers take, whatever the timeout is
        sock = (
            proxy.socket
            if proxy
            else in_time(lambda: socket.create_connection(place, timeout=patience), 2 * patience)
        )
        transport = paramiko.Transport(sock)
        transport.auth_timeout = _LOGIN_SECONDS
        # a proxy command makes its own connection while we wait for the banner
        transport.banner_timeout = 2 * patience if proxy else patience
    except socket.gaierror as exc:
        raise BenchError(
            f"{endpoint}: there is no machine called {endpoint.hostname}: {exc.strerror}",
            reason=Reason.HOST_NO_NAME,
        ) from exc
    except (OSError, EOFError, paramiko.SSHException) as exc:
        raise BenchError(
            f"{endpoint}: no SSH server answers at {endpoint.hostname} port {endpoint.port}:"
            f" {exc}",
            reason=Reason.HOST_NO_SSH,
        ) from exc
    return transport


def _log_in(endpoint: Endpoint, transport: paramiko.Transport, proxy: _Proxy | None) -> None:
    known_keys = _known_keys(endpoint)
    if not known_keys:
        raise BenchError(
            f"{endpoint}: its host key is in none of"
            f" {', '.join(map(str, endpoint.known_hosts)) or 'no file'}",
            hint=f"connect once by hand and compare the fingerprint: ssh {endpoint}",
            reason=Reason.HOST_UNKNOWN_HOST_KEY,
        )

    def shake_hands() -> None:
        options = transport.get_security_options()
        # request a key that is known: a server has several
        offered = [kind for kind in options.key_types if _family(kind) in known_keys]
        options.key_types = tuple(offered) or options.key_types
        transport.start_client(timeout=_LOGIN_SECONDS)
        key = transport.get_remote_server_key()
        if key.get_base64() not in known_keys.get(key.get_name(), set()):
            raise BenchError(
                f"{endpoint}: it shows another host key than the one that is known",
                hint="was it installed anew? Compare the fingerprint, then ssh-keygen -R",
                reason=Reason.HOST_WRONG_HOST_KEY,
            )
        _authenticate(endpoint, transport)

    try:
        # neither ssh-agent nor a send has a deadline of its own
        in_time(shake_hands, 3 * _LOGIN_SECONDS)
    except (OSError, EOFError, paramiko.SSHException) as exc:
        why = str(exc) or type(exc).__name__
        if proxy:
            raise proxy.error(endpoint, why) from exc
        raise BenchError(
            f"{endpoint}: no SSH connection: {why}", reason=Reason.HOST_NO_SSH
        ) from exc


def _family(kind: str) -> str:
    """Return the kind of key that makes a kind of signature: ssh-rsa for rsa-sha2-512."""
    return "ssh-rsa" if kind.startswith("rsa-sha2") else kind


def _known_keys(endpoint: Endpoint) -> dict[str, set[str]]:
    """Return the machine's keys that are known and not revoked: kind of key -> keys in base64.

    ssh-keygen(1) looks up the lines: it knows hashed names, patterns and several keys of one kind.
    """
    lookups: list[tuple[str, str]] = []
    revoked: set[str] = set()
    for path in endpoint.known_hosts:
        # the file may be root's, and unreadable for this user
        if not path.is_file() or not os.access(path, os.R_OK):
            continue
        output = run(
            ["ssh-keygen", "-F", endpoint.known_as, "-f", path],
            doing=f"looking for {endpoint.known_as} in {path}", accept=(0, 1),
        ).stdout  # fmt: skip
        for line in output.splitlines():
            match line.split():
                case ["@revoked", _, _, key, *_]:
                    revoked.add(key)
                case [names, kind, key, *_] if names[0] not in "#@":
                    lookups.append((kind, key))
    keys: dict[str, set[str]] = {}
    for kind, key in lookups:
        if key not in revoked:
            keys.setdefault(kind, set()).add(key)
    return keys


def _authenticate(endpoint: Endpoint, transport: paramiko.Transport) -> None:
    tried: list[str] = []
    keys: list[paramiko.PKey] = []
    for path in endpoint.identities:
        if path.is_file():
            try:
                keys.append(paramiko.PKey.from_path(path))
            except _UNUSABLE as exc:
                tried.append(f"{path}: {exc or type(exc).__name__}")
    with _agent_keys(endpoint) as more:
        for key in (*more, *keys):
            try:
                transport.auth_publickey(endpoint.user, key)
            except paramiko.AuthenticationException:
                tried.append(f"{key.get_name()} {key.fingerprint}: refused")
            else:
                if transport.is_authenticated():
                    return
                tried.append(f"{key.get_name()} {key.fingerprint}: not enough by itself")
    raise BenchError(
        f"{endpoint}: no key lets {endpoint.user} in",
        evidence="\n".join(tried) or "there is no key: neither in ssh-agent nor in a file",
        hint="IdentityFile in ssh's configuration names one; it must have no passphrase",
        reason=Reason.HOST_NO_LOGIN,
    )


@contextlib.contextmanager
def _agent_keys(endpoint: Endpoint) -> Iterator[Sequence[paramiko.PKey]]:
    """Yield the keys of ssh-agent, which can sign while the block runs."""
    if not endpoint.agent:
        yield ()
        return
    with contextlib.closing(paramiko.Agent()) as agent:  # no keys without SSH_AUTH_SOCK
        yield agent.get_keys()


def client_program(endpoint: Endpoint, folder: Path) -> Path:
    """Write a program that runs OpenSSH's client for libvirt's qemu+ssh://. The client connects to
    `endpoint`, whatever host name libvirt passes."""
    options = {
        "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": str(_SECONDS),
        "HostName": endpoint.hostname, "Port": str(endpoint.port), "User": endpoint.user,
        "UserKnownHostsFile": " ".join(map(str, endpoint.known_hosts)),
        "HostKeyAlias": endpoint.known_as,
        # ssh would look up these for the name that libvirt passes, not for the address
        "IdentitiesOnly": "no" if endpoint.agent else "yes",
        "ProxyCommand": _NONE,
        **_ALIVE,
    }  # fmt: skip
    if endpoint.proxy:
        # a client that is killed (end_clients) does not end its proxy command
        words = ("setpriv", "--pdeathsig", "TERM", *endpoint.proxy)
        options["ProxyCommand"] = shlex.join(words).replace("%", "%%")
    argv = [*_ssh(endpoint.config), *_words(options)]
    argv += [word for path in endpoint.identities if path.is_file() for word in ("-i", str(path))]
    return write_client(folder, argv)


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
