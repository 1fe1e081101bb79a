"""`Shell` against a real sshd on this machine, as root or as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.base.bounded import ANSWER_BYTES, STREAM_LINE_BYTES
from orchestrator.base.cache import Cache
from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.machine.metal.passthrough import survey_devices
from orchestrator.machine.transport.keys import KeyPair
from orchestrator.machine.transport.openssh import Master
from orchestrator.machine.transport.shell import (
    ConnectionLostError,
    Shell,
    connected,
)
from orchestrator.machine.transport.ssh_client import end_clients, write_client_config
from orchestrator.run.doctor import diagnose
from tests.lab.sshd import SECONDS, USER, Server, free_port, server_in, serving

pytestmark = pytest.mark.ssh

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(server_in(tmp_path_factory.mktemp("sshd"))) as server:
        yield server


@contextlib.contextmanager
def connection(server: Server) -> Iterator[Shell]:
    with connected(
        "host", server.endpoint, key=server.keys.runner, host_key=server.keys.host, user=USER
    ) as shell:
        yield shell


@contextlib.contextmanager
def openssh_connection(server: Server) -> Iterator[Shell]:
    """Connect by ssh(1), as to a machine that barometer did not make. It needs neither root nor
    sudo here."""
    folder = server.folder
    (folder / "key").touch(mode=0o600)
    (folder / "key").write_bytes(server.keys.runner.private_openssh)
    (folder / "known").write_text(f"[127.0.0.1]:{server.port} {server.keys.host.public_line}\n")
    argv = [
        "ssh", "-F", "none", "-i", str(folder / "key"), "-o", "BatchMode=yes",
        "-o", f"UserKnownHostsFile={folder}/known", "-o", "StrictHostKeyChecking=yes",
    ]  # fmt: skip
    master = Master(argv, f"ssh://{USER}@127.0.0.1:{server.port}", SECONDS)
    try:
        yield Shell("host", master)
    finally:
        master.close()


@pytest.fixture(params=[connection, openssh_connection], ids=["paramiko", "openssh"])
def shell(sshd: Server, request: pytest.FixtureRequest) -> Iterator[Shell]:
    with request.param(sshd) as opened:
        yield opened


def soon(condition: Path) -> bool:
    """True if the file appears within SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not condition.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition.exists()


def test_program_runs_with_its_words_as_they_are(shell: Shell) -> None:
    done = shell.run(["printf", "%s|", "a b", "$HOME", "'q'", "", "*", "grüße"])
    assert (done.stdout, done.stderr, done.code) == ("a b|$HOME|'q'||*|grüße|", "", 0)


def test_script_runs_in_a_shell(shell: Shell) -> None:
    assert shell.run("for i in 1 2; do echo $i; done | tac").stdout == "2\n1\n"


def test_standard_input_is_passed_and_ends(shell: Shell) -> None:
    data = os.urandom(300_000)
    done = shell.run(["sha256sum"], stdin=data)
    expected = subprocess.run(["sha256sum"], input=data, capture_output=True, check=True)
    assert done.stdout == expected.stdout.decode()


def test_program_without_input_sees_its_end(shell: Shell) -> None:
    assert shell.run(["cat"], timeout=10).stdout == ""


def test_exit_code_is_an_error_with_the_last_words(shell: Shell) -> None:
    with pytest.raises(BenchError) as caught:
        shell.run("echo no such thing >&2; exit 7", doing="looking for it")
    assert caught.value.message == "host: looking for it failed with exit code 7"
    assert caught.value.evidence == "no such thing"
    assert caught.value.reason == "command-failed"
    assert not isinstance(caught.value, ConnectionLostError)


def test_exit_code_is_returned_where_it_may_be_any(shell: Shell) -> None:
    assert shell.run("exit 7", check=False).code == 7
    assert shell.run(["no-such-program"], check=False).code == 127


def test_large_output_on_both_streams_does_not_block(shell: Shell) -> None:
    done = shell.run(
        "head -c 6000000 /dev/zero | tr '\\0' e >&2; head -c 5000000 /dev/zero | tr '\\0' o",
        timeout=60,
    )
    assert (len(done.stderr), len(done.stdout)) == (6_000_000, 5_000_000)
    assert (set(done.stderr), set(done.stdout)) == ({"e"}, {"o"})


@pytest.mark.parametrize("to", ["", " >&2"])
def test_program_that_prints_without_end_is_given_up(shell: Shell, to: str) -> None:
    started = time.monotonic()
    with pytest.raises(BenchError, match=r"more than \d+ bytes") as caught:
        shell.run(f"cat /dev/zero{to}", doing="flooding", timeout=60)
    assert (caught.value.reason, len(caught.value.evidence) < 1000) == ("output-flood", True)
    assert time.monotonic() - started < 20
    assert shell.run(["echo", "on"]).stdout == "on\n"


_FLOODED = """
import pathlib, sys
from orchestrator.machine.transport.shell import connected
from orchestrator.base.errors import BenchError
from tests.lab.sshd import USER, server_in, serving
with (
    serving(server_in(pathlib.Path(sys.argv[1]))) as server,
    connected("host", server.endpoint, key=server.keys.runner, host_key=server.keys.host,
              user=USER) as shell,
):
    for stream in ("", " >&2"):
        try:
            shell.run(f"cat /dev/zero{stream}", timeout=60)
        except BenchError as exc:
            print(exc.reason)
    with shell.stream(["head", "-c", "300000000", "/dev/zero"], timeout=60) as lines:
        print(len(list(lines)))
status = pathlib.Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if "VmHWM" in line))
"""


def test_flood_does_not_fill_the_memory(tmp_path: Path) -> None:
    """The memory is measured in a process that does nothing else."""
    done = subprocess.run(
        [sys.executable, "-c", _FLOODED, tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    *told, most = done.stdout.split()
    assert told == ["output-flood", "output-flood", "0"]
    assert int(most) << 10 < 150_000_000


def test_more_is_taken_where_more_is_expected(shell: Shell) -> None:
    size = ANSWER_BYTES + 1
    done = shell.run(["head", "-c", str(size), "/dev/zero"], timeout=60, limit=size)
    assert len(done.stdout) == size


def test_line_of_a_stream_is_cut(shell: Shell) -> None:
    script = "head -c 10000000 /dev/zero; echo; echo next"
    with shell.stream(["sh", "-c", script], timeout=SECONDS) as lines:
        long, following = list(lines)
    assert long.startswith("\0" * STREAM_LINE_BYTES + " ... ")
    assert len(long) < STREAM_LINE_BYTES + 100
    assert following == "next"


def test_output_of_a_stream_comes_as_bytes_too(shell: Shell) -> None:
    script = "head -c 3000000 /dev/zero; printf '\\377\\r\\n'"
    with shell.stream(["sh", "-c", script], timeout=SECONDS) as output:
        assert b"".join(output.chunks()) == bytes(3_000_000) + b"\xff\r\n"


def test_output_that_is_no_text_is_replaced(shell: Shell) -> None:
    assert shell.run(["printf", r"\377x"]).stdout == "\ufffdx"


def test_silent_program_is_a_lost_connection(shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="took too long") as caught:
        shell.run(["sleep", "30"], timeout=1, doing="sleeping")
    assert time.monotonic() - started < 10
    assert caught.value.reason == "host-ssh-lost"
    assert "sleeping" in caught.value.message
    assert shell.run(["echo", "on"]).stdout == "on\n"


def test_program_that_closes_its_output_but_goes_on_is_a_lost_connection(shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError):
        shell.run("exec >&- 2>&-; sleep 8", timeout=1)
    assert time.monotonic() - started < 6


def test_program_that_trickles_is_a_lost_connection_when_its_time_is_over(shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="took too long"):
        shell.run("while echo; do sleep 0.1; done", timeout=1)
    assert time.monotonic() - started < 6
    assert shell.run(["echo", "on"]).stdout == "on\n"


def test_input_that_nobody_reads_is_a_lost_connection(shell: Shell) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionLostError, match="took too long"):
        shell.run(["sleep", "30"], stdin=bytes(20_000_000), timeout=1)
    assert time.monotonic() - started < 6


@contextlib.contextmanager
def stopped(shell: Shell) -> Iterator[None]:
    """Stop the server of this one connection: it accepts input and sends nothing."""
    # OpenSSH 9.8 has a process for each session, and its parent runs as root beside it
    pids = shell.run("ps -o ppid= -p $PPID; echo $PPID").stdout.split()
    servers = [
        int(pid) for pid in pids
        if Path(f"/proc/{pid}/comm").read_text().startswith("sshd-session")
        or pid == pids[-1]
    ]  # fmt: skip
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def test_server_that_is_stopped_is_found_once(
    sshd: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.machine.transport.shell._PROBE_SECONDS", 2.0)
    with contextlib.ExitStack() as stack:
        shell = stack.enter_context(connection(sshd))
        stack.enter_context(stopped(shell))
        started = time.monotonic()
        with pytest.raises(ConnectionLostError):
            shell.run(["true"], stdin=bytes(50_000_000), timeout=1)
        with pytest.raises(ConnectionLostError):  # the shell checks the connection and drops it
            shell.run(["true"], timeout=60)
        assert not shell.alive()
        with pytest.raises(ConnectionLostError), shell.stream(["true"], timeout=60):
            pytest.fail("it answers")
    assert time.monotonic() - started < 12


def test_line_that_trickles_is_a_timeout(shell: Shell) -> None:
    script = "while printf .; do sleep 0.1; done"
    with shell.stream(["sh", "-c", script], timeout=0.5) as lines, pytest.raises(TimeoutError):
        next(lines)


def test_lines_without_an_end_are_a_timeout(shell: Shell) -> None:
    script = "while echo; do sleep 0.1; done"
    with (
        shell.stream(["sh", "-c", script], timeout=SECONDS, in_all=0.5) as lines,
        pytest.raises(TimeoutError),
    ):
        for _ in lines:
            pass


def test_connection_killed_while_a_program_runs_is_lost(shell: Shell) -> None:
    # the parent of the user's shell is the sshd process of this one connection
    with pytest.raises(ConnectionLostError) as caught:
        shell.run("kill -9 $PPID; sleep 5", doing="being killed", timeout=SECONDS)
    assert "being killed" in caught.value.message
    assert caught.value.reason == "host-ssh-lost"
    assert not shell.alive()
    with pytest.raises(ConnectionLostError):
        shell.run(["true"])


def test_connection_killed_while_any_exit_code_is_accepted_is_lost_too(shell: Shell) -> None:
    with pytest.raises(ConnectionLostError):
        shell.run("kill -9 $PPID; sleep 5", check=False, timeout=SECONDS)


def test_file_is_written_and_read(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "a folder/it's"
    shell.write(str(path), b"content\n", 0o640)
    assert shell.read(str(path)) == "content\n"
    assert path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(BenchError, match="reading /no/such/file failed"):
        shell.read("/no/such/file")


def test_stream_gives_lines_as_they_come(shell: Shell) -> None:
    script = "echo one; echo two; read -r _; echo three"
    with shell.stream(["sh", "-c", script], timeout=SECONDS) as lines:
        assert next(lines) == "one"
        assert next(lines) == "two"


def test_program_of_a_stream_ends_when_the_block_is_left(shell: Shell, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    script = f"echo $$; trap '' HUP PIPE; cat > /dev/null; touch {ended}"
    with shell.stream(["sh", "-c", script], timeout=SECONDS) as lines:
        pid = int(next(lines))
        assert not ended.exists()
    assert soon(ended)
    deadline = time.monotonic() + SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_stream_of_a_program_that_ends_ends(shell: Shell) -> None:
    with shell.stream(["printf", r"a\nb\n"], timeout=SECONDS) as lines:
        assert list(lines) == ["a", "b"]


def test_silent_stream_is_a_timeout(shell: Shell) -> None:
    with shell.stream(["cat"], timeout=0.5) as lines, pytest.raises(TimeoutError):
        next(lines)


def test_stream_ends_when_the_connection_is_killed(shell: Shell) -> None:
    with shell.stream(["sh", "-c", "echo $PPID; sleep 30"], timeout=SECONDS) as lines:
        daemon = int(next(lines))
        os.kill(daemon, 9)
        with contextlib.suppress(OSError, EOFError):
            assert list(lines) == []
    assert not shell.alive()


def test_commands_run_side_by_side(shell: Shell, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo ready; while [ ! -e {go} ]; do sleep 0.02; done; echo went"
    with shell.stream(["sh", "-c", script], timeout=SECONDS) as lines:
        assert next(lines) == "ready"
        shell.run(["touch", str(go)])
        assert next(lines) == "went"


def test_channel_reaches_a_port_of_the_other_side(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)

        def echo() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"who?")
                peer.sendall(peer.recv(100).upper())

        thread = threading.Thread(target=echo)
        thread.start()
        channel = shell.channel_to(server.getsockname()[1], SECONDS)
        channel.settimeout(SECONDS)
        assert channel.recv(100) == b"who?"
        channel.sendall(b"hello")
        assert channel.recv(100) == b"HELLO"
        thread.join()
        channel.close()


def test_channel_to_a_port_that_nobody_serves_is_an_error(shell: Shell) -> None:
    with pytest.raises(ConnectionLostError, match="connecting to port"):
        shell.channel_to(free_port(), SECONDS)
    assert shell.alive()


def test_machine_behind_the_machine_is_reached_through_it(shell: Shell, sshd: Server) -> None:
    with connected(
        "guest", shell.channel_to(sshd.port, SECONDS), key=sshd.keys.runner,
        host_key=sshd.keys.host, user=USER, error=ArmFailedError,
    ) as inner:  # fmt: skip
        assert inner.run(["echo", "deep"]).stdout == "deep\n"
    assert shell.run(["echo", "still"]).stdout == "still\n"


def test_the_key_of_a_lab_may_do_all_that_is_needed_and_open_no_other_port(sshd: Server) -> None:
    """The options are those that ci/README.md recommends for a key of barometer's own."""
    line = next(
        line for line in (ROOT / "ci/README.md").read_text().splitlines() if "restrict," in line
    )
    options, _, key = line.strip().partition(" ")
    assert key.startswith("ssh-ed25519 ")
    options = re.sub('from="[^"]*"', 'from="127.0.0.1"', options)
    file = sshd.folder / "authorized_keys"
    before = file.read_text()
    file.write_text(f"{options} {before}")
    try:
        with connection(sshd) as shell:
            assert shell.run(["cat"], stdin=b"said").stdout == "said"
            channel = shell.channel_to(sshd.port, SECONDS)
            channel.settimeout(SECONDS)
            assert channel.recv(4) == b"SSH-"
        key_file = sshd.folder / "key"
        key_file.touch(mode=0o600)
        key_file.write_bytes(sshd.keys.runner.private_openssh)
        client = [
            "ssh", "-F", "none", "-i", str(key_file), "-p", str(sshd.port),
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
        ]  # fmt: skip
        elsewhere = subprocess.run(
            [*client, "-W", f"127.0.0.2:{sshd.port}", f"{USER}@127.0.0.1"],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert "administratively prohibited" in elsewhere.stderr
        terminal = subprocess.run(
            [*client, "-tt", f"{USER}@127.0.0.1", "tty"],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        assert "PTY allocation request failed" in terminal.stderr
    finally:
        file.write_text(before)


def test_another_host_key_is_refused(sshd: Server) -> None:
    with (
        pytest.raises(ArmFailedError, match="does not have the host key") as caught,
        connected("guest", sshd.endpoint, key=sshd.keys.runner, host_key=KeyPair.make(),
                  user=USER, error=ArmFailedError),
    ):  # fmt: skip
        pytest.fail("it was let in")
    assert caught.value.reason == "guest-wrong-host-key"


def test_another_users_key_is_refused(sshd: Server) -> None:
    with (
        pytest.raises(BenchError) as caught,
        connected("host", sshd.endpoint, key=KeyPair.make(), host_key=sshd.keys.host, user=USER),
    ):
        pytest.fail("it was let in")
    assert caught.value.reason == "host-no-ssh"


def test_port_that_nobody_serves_is_no_ssh_connection(sshd: Server) -> None:
    with (
        pytest.raises(BenchError) as caught,
        connected(
            "host", ("127.0.0.1", free_port()), key=sshd.keys.runner, host_key=sshd.keys.host
        ),
    ):
        pytest.fail("it was let in")
    assert caught.value.reason == "host-no-ssh"


def test_server_that_speaks_something_else_is_no_ssh_connection(sshd: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(SECONDS)

        def web() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=web)
        thread.start()
        with (
            pytest.raises(BenchError) as caught,
            connected("host", ("127.0.0.1", server.getsockname()[1]), key=sshd.keys.runner,
                      host_key=sshd.keys.host),
        ):  # fmt: skip
            pytest.fail("it was let in")
        thread.join()
    assert caught.value.reason == "host-no-ssh"


def test_error_of_the_block_is_not_taken_for_one_of_the_connection(sshd: Server) -> None:
    with pytest.raises(FileNotFoundError), connection(sshd):
        Path("/no/such/file").read_text()


def client(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, "-l", USER, "barometer-host", *arguments],
        capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_real_ssh_program_is_let_in_with_the_written_configuration(
    sshd: Server, tmp_path: Path
) -> None:
    program = write_client_config(
        tmp_path, port=sshd.port, key=sshd.keys.runner, host_key=sshd.keys.host
    )
    done = client(program, "echo", "in")
    assert (done.returncode, done.stdout, done.stderr) == (0, "in\n", "")
    assert (tmp_path / "runner_key").stat().st_mode & 0o777 == 0o600


def test_real_ssh_program_that_is_at_work_is_ended(sshd: Server, tmp_path: Path) -> None:
    program = write_client_config(
        tmp_path, port=sshd.port, key=sshd.keys.runner, host_key=sshd.keys.host
    )
    argv = [str(program), "-l", USER, "barometer-host", "echo in; sleep 60"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as ssh:
        assert ssh.stdout is not None
        assert ssh.stdout.readline() == b"in\n"
        end_clients(program)
        assert ssh.wait(SECONDS) == -signal.SIGKILL


def test_real_ssh_program_refuses_another_host_key(sshd: Server, tmp_path: Path) -> None:
    program = write_client_config(
        tmp_path, port=sshd.port, key=sshd.keys.runner, host_key=KeyPair.make()
    )
    done = client(program, "echo", "in")
    assert done.returncode == 255
    assert done.stdout == ""
    assert "verification failed" in done.stderr


def test_real_ssh_program_does_not_ask_for_a_password(sshd: Server, tmp_path: Path) -> None:
    program = write_client_config(
        tmp_path, port=sshd.port, key=KeyPair.make(), host_key=sshd.keys.host
    )
    done = client(program, "echo", "in")
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_machine_is_surveyed(shell: Shell) -> None:
    survey = survey_devices(shell)
    there = Path("/sys/bus/pci/devices")
    assert sorted(survey.functions) == sorted(at.name for at in there.glob("*"))


def test_machine_is_examined_within_its_figure(sshd: Server, tmp_path: Path) -> None:
    key, known, config = (tmp_path / name for name in ("key", "known_hosts", "config"))
    key.touch(mode=0o600)
    key.write_bytes(sshd.keys.runner.private_openssh)
    known.write_text(f"[127.0.0.1]:{sshd.port} {sshd.keys.host.public_line}\n")
    config.write_text(
        f"Host lab\n HostName 127.0.0.1\n Port {sshd.port}\n User {USER}\n IdentityFile {key}\n"
        f" UserKnownHostsFile {known}\n"
    )
    started = time.monotonic()
    found = diagnose(None, "lab", config, Cache(tmp_path))
    assert time.monotonic() - started < 10
    assert found.system == f"Linux {os.uname().release}, {os.uname().machine}"
    names = {finding.name for finding in found.findings}
    assert names >= {"root", "series", "iommu"}
    assert names & {"kvm", "kvm-unanswered"}
