"""`remote` against a real sshd, under a configuration of the real ssh. For an
ordinary user every command goes through a stand-in for sudo, which only sets a variable."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.transport.keys import KeyPair
from orchestrator.machine.transport.remote import (
    Endpoint,
    Link,
    client_program,
    logged_in,
    resolve_address,
)
from orchestrator.machine.transport.shell import ConnectionLostError, Shell
from orchestrator.machine.transport.ssh_client import end_clients
from tests.lab.sshd import SECONDS, USER, Server, free_port, server_in, serving

pytestmark = pytest.mark.ssh

SUDO = """#!/bin/sh
[ "$1" = -n ] || exit 9
shift
[ "$1" != -- ] || shift
exec env BECAME=root "$@"
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys of two kinds, and programs of its own in bin/."""
    folder = tmp_path_factory.mktemp("sshd")
    (folder / "bin").mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", folder / "ecdsa_key"], check=True
    )
    server = server_in(
        folder, f"HostKey {folder}/ecdsa_key", f"SetEnv PATH={folder}/bin:{os.environ['PATH']}"
    )
    with serving(server):
        yield server


@pytest.fixture(autouse=True)
def programs(sshd: Server) -> Iterator[Path]:
    """Folder of the server's programs; for an ordinary user it contains sudo."""
    folder = sshd.folder / "bin"
    if os.geteuid() != 0:
        program(folder / "sudo", SUDO)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@dataclass(frozen=True)
class Runner:
    """A runner's files for "machine", an alias of the server."""

    server: Server
    folder: Path

    def knows(self, *lines: str) -> None:
        (self.folder / "known_hosts").write_text("".join(f"{line}\n" for line in lines))

    def knows_key(self, key: KeyPair) -> None:
        self.knows(f"[127.0.0.1]:{self.server.port} {key.public_line}")

    def has(self, name: str, key: KeyPair) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(key.private_openssh)
        return path

    def endpoint(self, *options: str, port: int = 0, only: bool = True) -> Endpoint:
        config = self.folder / "config"
        config.write_text(
            f"Host machine\n HostName 127.0.0.1\n Port {port or self.server.port}\n User {USER}\n"
            f" IdentityFile {self.folder}/id\n UserKnownHostsFile {self.folder}/known_hosts\n"
            f" GlobalKnownHostsFile none\n IdentitiesOnly {'yes' if only else 'no'}\n"
            + "".join(f" {option}\n" for option in options)
        )
        return resolve_address("machine", config)


@pytest.fixture
def runner(sshd: Server, tmp_path: Path) -> Runner:
    """A runner that knows the server and has a key to log in."""
    made = Runner(sshd, tmp_path)
    made.has("id", sshd.keys.runner)
    made.knows_key(sshd.keys.host)
    return made


def refused(endpoint: Endpoint, *, patience: float = SECONDS) -> BenchError:
    with (
        pytest.raises(BenchError) as caught,
        logged_in(endpoint, patience=patience),
    ):
        pytest.fail("it was let in")
    assert str(endpoint) in caught.value.message
    return caught.value


def test_commands_run_at_a_machine_whose_key_is_known(runner: Runner) -> None:
    with logged_in(runner.endpoint()) as shell:
        assert shell.run(["cat"], stdin=b"in").stdout == "in"
        assert shell.run('echo "$0"; exit 3', check=False).code == 3
    assert not shell.alive()


def test_machine_may_be_known_by_an_alias(runner: Runner) -> None:
    runner.knows(f"old {runner.server.keys.host.public_line}")
    with logged_in(runner.endpoint("HostKeyAlias old")) as shell:
        assert shell.alive()


def test_machine_is_asked_for_the_kind_of_key_that_is_known(runner: Runner) -> None:
    ecdsa = (runner.server.folder / "ecdsa_key.pub").read_text().strip()
    runner.knows(f"[127.0.0.1]:{runner.server.port} {ecdsa}")
    with logged_in(runner.endpoint()) as shell:
        assert shell.alive()


def test_machine_that_was_installed_anew_may_have_both_keys_known(runner: Runner) -> None:
    keys = (KeyPair.make(), runner.server.keys.host)
    runner.knows(*(f"[127.0.0.1]:{runner.server.port} {key.public_line}" for key in keys))
    with logged_in(runner.endpoint()) as shell:
        assert shell.alive()


def test_unknown_host_key_is_refused(runner: Runner) -> None:
    runner.knows(f"127.0.0.2 {runner.server.keys.host.public_line}")
    failure = refused(runner.endpoint())
    assert failure.reason == "host-unknown-host-key"
    assert "ssh machine" in failure.hint


def test_another_host_key_is_refused(runner: Runner) -> None:
    runner.knows_key(KeyPair.make())
    assert refused(runner.endpoint()).reason == "host-wrong-host-key"


def test_revoked_host_key_is_refused(runner: Runner) -> None:
    line = f"[127.0.0.1]:{runner.server.port} {runner.server.keys.host.public_line}"
    runner.knows(line, f"@revoked {line}")
    assert refused(runner.endpoint()).reason == "host-wrong-host-key"


def test_identity_of_nobody_there_is_refused(runner: Runner) -> None:
    runner.has("id", KeyPair.make())
    failure = refused(runner.endpoint())
    assert failure.reason == "host-no-login"
    assert f"no key lets {USER} in" in failure.message
    assert "ED25519 SHA256:" in failure.evidence
    assert "Permission denied" in failure.evidence


def test_identity_that_is_not_there_is_none(runner: Runner) -> None:
    (runner.folder / "id").unlink()
    assert "there is no key" in refused(runner.endpoint()).evidence


def test_second_identity_is_tried(runner: Runner) -> None:
    runner.has("id", KeyPair.make())
    path = runner.has("my key", runner.server.keys.runner)
    with logged_in(runner.endpoint(f'IdentityFile "{path}"')) as shell:
        assert shell.alive()


def test_identity_with_a_passphrase_is_said_to_be_of_no_use(runner: Runner) -> None:
    path = runner.folder / "id"
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", path], check=True)
    failure = refused(runner.endpoint())
    assert failure.reason == "host-no-login"
    assert str(path) in failure.evidence


@contextlib.contextmanager
def agent(folder: Path, identity: Path) -> Iterator[Path]:
    """Run an ssh-agent with a key while the block runs, and yield its socket."""
    address = folder / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # the agent prints its address once it listens
            subprocess.run(
                ["ssh-add", "-q", identity], check=True,
                env={**os.environ, "SSH_AUTH_SOCK": str(address)},
            )  # fmt: skip
            yield address
        finally:
            process.terminate()


def test_key_of_ssh_agent_lets_in_unless_the_configuration_is_against_it(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runner.folder / "id"
    with agent(runner.folder, path) as address:
        path.unlink()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        with logged_in(runner.endpoint(only=False)) as shell:
            assert shell.alive()
        assert refused(runner.endpoint("IdentityAgent none", only=False)).reason == "host-no-login"


def test_port_that_nobody_serves_is_no_ssh_server(runner: Runner) -> None:
    runner.knows(f"* {runner.server.keys.host.public_line}")
    failure = refused(runner.endpoint(port=free_port()))
    assert failure.reason == "host-no-ssh"
    assert "no SSH server answers at 127.0.0.1 port" in failure.message


def test_machine_that_listens_and_says_nothing_is_waited_for_only_so_long(runner: Runner) -> None:
    """A kernel that hangs may still accept connections."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        runner.knows(f"[127.0.0.1]:{port} {runner.server.keys.host.public_line}")
        assert refused(runner.endpoint(port=port), patience=0.5).reason == "host-no-ssh"


# root ------------------------------------------------------------------------------------------


@pytest.fixture
def ordinary(programs: Path) -> Path:
    """`id -u` prints an ordinary user's number."""
    program(programs / "id", "#!/bin/sh\necho 1000\n")
    return programs


def test_commands_of_an_ordinary_user_go_through_sudo(runner: Runner, ordinary: Path) -> None:
    program(ordinary / "sudo", SUDO)
    with logged_in(runner.endpoint()) as shell:
        script = 'echo "$BECAME"; read -r said; echo "$said"'
        assert shell.run(script, stdin=b"it's $HOME\n").stdout == "root\nit's $HOME\n"
        words = ["printf", "%s|", "a b", "$HOME", "'q'", "", "*"]
        assert shell.run(words).stdout == "a b|$HOME|'q'||*|"
        with shell.stream(["sh", "-c", "echo $BECAME; cat"], timeout=SECONDS) as lines:
            assert next(lines) == "root"
            lines.say("more")
            assert next(lines) == "more"
        shell.write(str(runner.folder / "by root"), b"content")
        assert shell.read(str(runner.folder / "by root")) == "content"


def test_user_whom_sudo_asks_for_a_password_is_refused(runner: Runner, ordinary: Path) -> None:
    program(ordinary / "sudo", "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    failure = refused(runner.endpoint())
    assert failure.reason == "host-no-root"
    assert failure.evidence == "sudo: a password is required"
    assert f"{USER} ALL=(root) NOPASSWD: ALL" in failure.hint


# a connection that is made again ---------------------------------------------------------------


@pytest.fixture
def link(runner: Runner) -> Iterator[Link]:
    made = Link(runner.endpoint(), patience=SECONDS)
    yield made
    made.close()


def kill(shell: Shell) -> None:
    """Kill the sshd process of this one connection: the parent of the user's shell, or of
    sudo's."""
    find = (
        'pid=$PPID; while [ "$(cat /proc/$pid/comm)" != sshd ]; do'
        " pid=$(cut -d' ' -f4 /proc/$pid/stat); done; kill -9 $pid; sleep 5"
    )
    with pytest.raises(ConnectionLostError):
        shell.run(find, timeout=SECONDS)


def test_connection_that_lives_is_kept(link: Link) -> None:
    shell = link.shell()
    shell.run("exit 1", check=False)
    assert link.shell() is shell


def test_connection_that_was_lost_is_made_anew(link: Link) -> None:
    lost = link.shell()
    kill(lost)
    again = link.shell()
    assert again is not lost
    assert again.run(["echo", "on"]).stdout == "on\n"
    assert not lost.alive()


def test_connection_that_was_closed_is_made_anew(link: Link) -> None:
    closed = link.shell()
    link.close()
    assert not closed.alive()
    assert link.shell().run(["echo", "on"]).stdout == "on\n"
    link.close()
    link.close()


def test_machine_that_goes_and_comes_back_is_reached_again(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server/bin").mkdir()
    program(tmp_path / "server/bin/sudo", SUDO)
    server = server_in(
        tmp_path / "server", f"SetEnv PATH={tmp_path}/server/bin:{os.environ['PATH']}"
    )
    runner = Runner(server, tmp_path)
    runner.has("id", server.keys.runner)
    runner.knows_key(server.keys.host)
    link = Link(runner.endpoint(), patience=SECONDS)
    with contextlib.closing(link):
        with serving(server):
            kill(link.shell())
        for _ in range(2):
            with pytest.raises(BenchError) as caught:
                link.shell()
            assert caught.value.reason == "host-no-ssh"
        with serving(server):
            assert link.shell().run(["echo", "back"]).stdout == "back\n"


# a machine behind another ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bastion(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A second server, with keys of its own."""
    with serving(server_in(tmp_path_factory.mktemp("bastion"))) as server:
        yield server


@dataclass(frozen=True)
class Behind:
    """A machine behind a jump host, by each way of ssh's configuration."""

    runner: Runner
    bastion: Server
    option: str

    def endpoint(self, port: int = 0) -> Endpoint:
        at = self.runner.endpoint(self.option, "Host bastion", port=port)
        key = self.runner.has("bastion_id", self.bastion.keys.runner)
        with (self.runner.folder / "config").open("a") as file:
            file.write(
                f" HostName 127.0.0.1\n Port {self.bastion.port}\n User {USER}\n"
                f" IdentityFile {key}\n IdentitiesOnly yes\n"
                f" UserKnownHostsFile {self.runner.folder}/known_hosts\n"
            )
        return resolve_address(at.address, at.config)

    def logins(self) -> int:
        return (self.bastion.folder / "log").read_text().count("Accepted publickey")

    def knows_the_bastion(self, key: KeyPair) -> None:
        with (self.runner.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{self.bastion.port} {key.public_line}\n")


@pytest.fixture(
    params=["ProxyJump bastion", "ProxyCommand ssh -F {} -W %h:%p bastion"],
    ids=["ProxyJump", "ProxyCommand"],
)
def behind(runner: Runner, bastion: Server, request: pytest.FixtureRequest) -> Behind:
    made = Behind(runner, bastion, request.param.format(runner.folder / "config"))
    made.knows_the_bastion(bastion.keys.host)
    return made


def children() -> set[int]:
    return {
        int(pid) for path in Path("/proc/self/task").glob("*/children")
        for pid in path.read_text().split()
    }  # fmt: skip


def test_machine_behind_another_is_reached_and_its_proxy_ends_with_it(behind: Behind) -> None:
    before, logins = children(), behind.logins()
    with logged_in(behind.endpoint()) as shell:
        assert behind.logins() == logins + 1
        content = os.urandom(3_000_000)
        assert shell.run(["cksum"], stdin=content).stdout.endswith(" 3000000\n")
        assert len(shell.run(["head", "-c", "3000000", "/dev/zero"]).stdout) == 3_000_000
        assert len(children() - before) == 1  # a shell, which has ssh, which has the proxy
    assert children() == before
    assert not shell.alive()


def test_link_through_a_jump_host_is_made_anew(behind: Behind) -> None:
    before = children()
    link = Link(behind.endpoint(), patience=SECONDS)
    with contextlib.closing(link):
        lost = link.shell()
        (proxy,) = children() - before
        os.kill(proxy, 9)
        with pytest.raises(ConnectionLostError):
            lost.run(["sleep", "30"], timeout=SECONDS)
        assert link.shell().run(["echo", "on"]).stdout == "on\n"
    assert children() == before


def test_interrupt_of_the_terminal_is_not_the_connections(behind: Behind) -> None:
    before = children()
    with logged_in(behind.endpoint()):
        (ssh,) = children() - before
        assert os.getsid(ssh) == ssh


def test_jump_host_with_another_key_is_said(behind: Behind) -> None:
    behind.runner.knows_key(behind.runner.server.keys.host)
    behind.knows_the_bastion(KeyPair.make())
    failure = refused(behind.endpoint())
    assert failure.reason == "host-no-ssh"
    assert "Host key verification failed" in failure.evidence


def test_port_that_nobody_serves_behind_a_jump_host_is_no_ssh_server(behind: Behind) -> None:
    behind.runner.knows(f"* {behind.runner.server.keys.host.public_line}")
    behind.knows_the_bastion(behind.bastion.keys.host)
    failure = refused(behind.endpoint(port=free_port()))
    assert failure.reason == "host-no-ssh"
    assert "onnection refused" in failure.evidence


def test_machine_behind_another_is_known_by_its_own_key(behind: Behind) -> None:
    behind.runner.knows_key(KeyPair.make())
    behind.knows_the_bastion(behind.bastion.keys.host)
    assert refused(behind.endpoint()).reason == "host-wrong-host-key"


# OpenSSH's client ------------------------------------------------------------------------------


def client(endpoint: Endpoint, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [client_program(endpoint, folder), "-T", "-e", "none", "--", "host", "echo", "in"],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_real_ssh_program_is_let_in_under_another_name(runner: Runner, tmp_path: Path) -> None:
    """The call is the one that libvirt makes."""
    done = client(runner.endpoint(), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")


def test_real_ssh_program_refuses_another_host_key(runner: Runner, tmp_path: Path) -> None:
    runner.knows_key(KeyPair.make())
    done = client(runner.endpoint(), tmp_path)
    assert (done.returncode, done.stdout) == (255, "")
    assert "verification failed" in done.stderr


def test_real_ssh_program_is_let_in_through_a_jump_host(behind: Behind, tmp_path: Path) -> None:
    logins = behind.logins()
    done = client(behind.endpoint(), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")
    assert behind.logins() == logins + 1


def test_proxy_command_of_a_real_ssh_program_ends_with_it(runner: Runner, tmp_path: Path) -> None:
    """A proxy command that hangs heeds no end of its input."""
    pid = tmp_path / "pid"
    hangs = f"ProxyCommand sh -c 'echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 60'"
    program = client_program(runner.endpoint(hangs), tmp_path)
    with subprocess.Popen([program, "--", "host"], stdin=subprocess.DEVNULL) as ssh:
        wait_for(pid.exists)
        proxy = Path(f"/proc/{pid.read_text().strip()}")
        assert proxy.exists()
        end_clients(program)
        assert ssh.wait(SECONDS) == -signal.SIGKILL
        wait_for(lambda: not proxy.exists())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# what ssh reaches, barometer reaches ------------------------------------------------------------


def sign(authority: Path, identity: str, *arguments: str, key: Path) -> Path:
    """Make a certificate by ssh-keygen(1). Return its file."""
    subprocess.run(
        ["ssh-keygen", "-q", "-s", authority, "-I", identity, *arguments, key], check=True
    )
    return key.with_name(f"{key.name.removesuffix('.pub')}-cert.pub")


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose host key has a certificate, and that lets in whom an authority names."""
    folder = tmp_path_factory.mktemp("certified")
    for name in ("host_ca", "user_ca"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    server = server_in(
        folder, f"HostCertificate {folder}/host_key-cert.pub",
        f"TrustedUserCAKeys {folder}/user_ca.pub",
    )  # fmt: skip
    (folder / "host_key.pub").write_text(server.keys.host.public_line + "\n")
    sign(folder / "host_ca", "host", "-h", "-n", "machine.lab", key=folder / "host_key.pub")
    with serving(server):
        yield server


WAYS: dict[str, tuple[str, ...]] = {
    "identity": ("IdentityFile {dir}/id",),
    "identities-only": ("IdentityFile {dir}/id", "IdentitiesOnly yes"),
    "identity-with-a-blank": ('IdentityFile "{dir}/my id"',),
    "identity-by-user-and-host": ("IdentityFile {dir}/%r@%n.id",),
    "identity-by-home": ("IdentityFile %d/.ssh/barometer-test-%L",),
    "identity-by-variable": ("IdentityFile ${{LAB_KEYS}}/id",),
    "second-identity": ("IdentityFile {dir}/other", "IdentityFile {dir}/id"),
    "agent": ("IdentityAgent {dir}/agent",),
    "agent-by-variable": ("IdentityAgent $LAB_AGENT",),
    "agent-of-the-environment": ("IdentityAgent SSH_AUTH_SOCK",),
    "agent-and-public-identity": (
        "IdentityAgent {dir}/agent", "IdentityFile {dir}/public.pub", "IdentitiesOnly yes"),
    "agent-and-identity-without-its-file": (
        "IdentityAgent {dir}/agent", "IdentityFile {dir}/public", "IdentitiesOnly yes"),
    "certificate": ("IdentityFile {dir}/signed", "CertificateFile {dir}/signed-cert.pub"),
    "certificate-beside-its-key": ("IdentityFile {dir}/signed",),
    "known-by-an-alias": ("IdentityFile {dir}/id", "HostKeyAlias m", "UserKnownHostsFile {dir}/m"),
    "known-without-the-port": ("IdentityFile {dir}/id", "UserKnownHostsFile {dir}/no-port"),
    "known-by-tokens": ("IdentityFile {dir}/id", "UserKnownHostsFile {dir}/%n.known"),
    "known-by-a-file-with-a-blank": (
        "IdentityFile {dir}/id", 'UserKnownHostsFile "{dir}/my known"'),
    "known-by-the-second-file": (
        "IdentityFile {dir}/id", "UserKnownHostsFile {dir}/nothing {dir}/m.known"),
    "known-hashed": ("IdentityFile {dir}/id", "UserKnownHostsFile {dir}/hashed"),
    "known-by-a-command": (
        "IdentityFile {dir}/id", "UserKnownHostsFile none",
        "KnownHostsCommand /bin/cat {dir}/m.known"),
    "known-by-an-authority": (
        "IdentityFile {dir}/id", "UserKnownHostsFile {dir}/authority",
        "HostKeyAlias machine.lab"),
    "proxy-command-with-tokens": (
        "IdentityFile {dir}/id", "ProxyCommand python3 {dir}/connect.py %h %p"),
    "proxy-that-passes-the-socket": (
        "IdentityFile {dir}/id", "ProxyCommand python3 {dir}/pass.py %h %p",
        "ProxyUseFdpass yes"),
    "what-people-want-of-a-terminal": (
        "IdentityFile {dir}/id", "RequestTTY force", "RemoteCommand tmux", "ForwardAgent yes",
        "LocalForward 127.0.0.1:1 127.0.0.1:1", "ControlMaster auto", "ControlPath {dir}/mux",
        "PermitLocalCommand yes", "LocalCommand touch {dir}/local", "LogLevel QUIET"),
}  # fmt: skip

CONNECT = """
import os, socket, sys, threading
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def pump():
    while chunk := os.read(0, 65536):
        peer.sendall(chunk)
    peer.shutdown(socket.SHUT_WR)
threading.Thread(target=pump, daemon=True).start()
while chunk := peer.recv(65536):
    os.write(1, chunk)
"""
PASS = """
import socket, sys
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
socket.send_fds(socket.socket(fileno=1), [b"x"], [peer.fileno()])
"""


@pytest.mark.parametrize("way", WAYS)
def test_what_ssh_reaches_is_reached(
    way: str, certified: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh(1) itself is the reference: it gets in by the same configuration."""
    private, place = certified.keys.runner, f"[127.0.0.1]:{certified.port}"
    host_key = certified.keys.host.public_line
    home = Path("~").expanduser()
    identity = home / ".ssh" / f"barometer-test-{socket.gethostname().partition('.')[0]}"
    keys = [tmp_path / name for name in ("id", "my id", f"{USER}@machine.id")]
    with contextlib.ExitStack() as stack:
        if way == "identity-by-home":
            identity.parent.mkdir(mode=0o700, exist_ok=True)
            stack.callback(identity.unlink)
            keys.append(identity)
        for path in keys:
            path.touch(mode=0o600)
            path.write_bytes(private.private_openssh)
        for name in ("public", "public.pub"):
            (tmp_path / name).write_text(private.public_line + "\n")
            (tmp_path / name).chmod(0o600)
        (tmp_path / "public").unlink()
        for name, key in (("other", KeyPair.make()), ("signed", KeyPair.make())):
            (tmp_path / name).touch(mode=0o600)
            (tmp_path / name).write_bytes(key.private_openssh)
            (tmp_path / f"{name}.pub").write_text(key.public_line + "\n")
        sign(certified.folder / "user_ca", "user", "-n", USER, key=tmp_path / "signed.pub")
        known = {
            "m": f"m {host_key}", "no-port": f"127.0.0.1 {host_key}",
            "machine.known": f"{place} {host_key}", "my known": f"{place} {host_key}",
            "m.known": f"{place} {host_key}", "hashed": f"{place} {host_key}",
            "authority": f"@cert-authority *.lab {(certified.folder / 'host_ca.pub').read_text()}",
        }  # fmt: skip
        for name, line in known.items():
            (tmp_path / name).write_text(line + "\n")
        subprocess.run(
            ["ssh-keygen", "-q", "-H", "-f", tmp_path / "hashed"], check=True,
            capture_output=True,
        )  # fmt: skip
        (tmp_path / "connect.py").write_text(CONNECT)
        (tmp_path / "pass.py").write_text(PASS)
        monkeypatch.setenv("LAB_KEYS", str(tmp_path))
        monkeypatch.setenv("LAB_AGENT", str(tmp_path / "agent"))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        if "agent" in way:
            stack.enter_context(agent(tmp_path, tmp_path / "id"))
        options = [option.format(dir=tmp_path) for option in WAYS[way]]
        if not any("KnownHostsFile" in option for option in options):
            options.append(f"UserKnownHostsFile {tmp_path}/m.known")
        config = tmp_path / "config"
        config.write_text(
            f"Host machine\n HostName 127.0.0.1\n Port {certified.port}\n User {USER}\n"
            " GlobalKnownHostsFile none\n" + "".join(f" {option}\n" for option in options)
        )
        plain = ["-o", "RemoteCommand=none", "-o", "BatchMode=yes", "-o", "ControlPath=none"]
        subprocess.run(
            ["ssh", "-F", config, *plain, "machine", "true"], check=True, timeout=SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        (tmp_path / "local").unlink(missing_ok=True)
        endpoint = resolve_address("machine", config)
        with logged_in(endpoint) as shell:
            assert shell.run(["echo", "in"]).stdout == "in\n"
        done = client(endpoint, tmp_path)
        assert (done.returncode, done.stdout) == (0, "in\n")
        assert not (tmp_path / "local").exists()
        assert not (tmp_path / "mux").exists()


_KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.machine.transport.remote import logged_in, resolve_address
with logged_in(resolve_address("machine", Path(sys.argv[1]))) as shell:
    shell.run(["true"])
    print("in", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_of_a_connection_is_left_by_a_runner_that_is_killed(
    behind: Behind, tmp_path: Path
) -> None:
    endpoint = behind.endpoint()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(endpoint.config)], capture_output=True, text=True,
        timeout=SECONDS, check=False, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "in\n")
    wait_for(lambda: not [*temporary.iterdir()])
    wait_for(lambda: not [*running_with(str(endpoint.config))])


def running_with(word: str) -> Iterator[int]:
    """Yield the processes with this word in their command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes():
                yield int(path.parent.name)
