"""Signals at every stage that needs no machine, and outputs that nobody reads. The command ends
within ten seconds with its own exit code, and leaves nothing."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.mirrors import hangs, serving, trickles, works
from tests.faults.place import Fault, Running
from tests.faults.test_folders import DEB

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SHORTER = {"orchestrator.machine.transport.remote._LOGIN_SECONDS": 2.0}
WAY_OUT = 10.0
"""Seconds from a signal to the end of the command, as README promises."""


def interrupted(
    fault: Fault, running: Running, *signals: signal.Signals, pause: float = 0
) -> None:
    begun = time.monotonic()
    for number in signals:
        running.signal(number)
        time.sleep(pause)
    fault.ended(running.ended())
    assert time.monotonic() - begun < WAY_OUT + pause * len(signals)


@contextmanager
def silent() -> Iterator[int]:
    """Keep a port open that takes connections and sends nothing. Yield its number."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("number", SIGNALS, ids=["INT", "TERM", "HUP"])
def test_while_the_mirror_hangs(fault: Fault, number: signal.Signals) -> None:
    scenario = fault.place.scenario(DEB)
    with (
        serving(fault.place.work, hangs) as mirror,
        fault.place.started("plan", scenario, BAROMETER_MIRROR=mirror.url) as running,
    ):
        mirror.until_asked()
        interrupted(fault, running, number)


def test_while_the_mirror_trickles(fault: Fault) -> None:
    scenario = fault.place.scenario(DEB)
    with (
        serving(fault.place.work, trickles) as mirror,
        fault.place.started("plan", scenario, BAROMETER_MIRROR=mirror.url) as running,
    ):
        mirror.until_asked()
        time.sleep(0.5)
        interrupted(fault, running, signal.SIGINT)


@pytest.mark.parametrize(
    "number",
    [SIGNALS[0], *(pytest.param(number, marks=pytest.mark.full) for number in SIGNALS[1:])],
    ids=["INT", "TERM", "HUP"],
)
def test_while_an_image_is_built(fault: Fault, number: signal.Signals) -> None:
    scenario = fault.place.scenario()
    with (
        serving(fault.place.work, hangs) as mirror,
        fault.place.started(
            "run", scenario, "--out", "out", BAROMETER_MIRROR=mirror.url
        ) as running,
    ):
        mirror.until_asked()
        interrupted(fault, running, number)
    assert not (fault.place.work / "out").exists()


def test_while_a_child_does_not_heed_signals(fault: Fault) -> None:
    deaf = "trap '' INT TERM HUP; echo begun > begun; while :; do sleep 0.2; done"
    place = fault.place
    path = place.programs(scripts={"apt-get": f"cd {place.work}; {deaf}"})
    with place.started("plan", place.scenario(DEB), PATH=path) as running:
        until(place.work / "begun")
        interrupted(fault, running, signal.SIGINT)


def until(path: Path, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} was never made"
        time.sleep(0.02)


def test_while_a_run_that_is_stopped_has_the_cache(fault: Fault) -> None:
    """The command prints what it waits for: nobody knows when a stopped process goes on."""
    scenario = fault.place.scenario(DEB)
    with (
        serving(fault.place.work, hangs) as mirror,
        fault.place.started("plan", scenario, BAROMETER_MIRROR=mirror.url) as stopped,
    ):
        mirror.until_asked()
        stopped.signal(signal.SIGSTOP)
        with fault.place.started("plan", scenario, BAROMETER_MIRROR=mirror.url) as running:
            running.until("waiting for another run")
            running.signal(signal.SIGINT)
            ended = running.ended()
        stopped.signal(signal.SIGINT)
        stopped.signal(signal.SIGCONT)
        stopped.ended()
    fault.ended(ended)


def test_second_signal(fault: Fault) -> None:
    """A second signal other than Ctrl-C does not cut the way out short: the run's files are
    removed."""
    scenario = fault.place.scenario()
    with (
        serving(fault.place.work, hangs) as mirror,
        fault.place.started(
            "run", scenario, "--out", "out", BAROMETER_MIRROR=mirror.url
        ) as running,
    ):
        mirror.until_asked()
        interrupted(fault, running, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM, pause=0.1)


def test_while_ssh_does_not_answer(fault: Fault) -> None:
    with silent() as port:
        config = ssh_config(fault, port)
        with fault.place.started("doctor", "--host", "lab", "--ssh-config", config) as running:
            until_connected(port)
            interrupted(fault, running, signal.SIGINT)


def test_ssh_does_not_answer(fault: Fault) -> None:
    with silent() as port:
        config = ssh_config(fault, port)
        fault.ends("doctor", "--host", "lab", "--ssh-config", config, shorter=SHORTER)


def test_ssh_trickles(fault: Fault) -> None:
    """The server sends a byte of its greeting every 0.2 s, without end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=trickle, args=(server,), daemon=True).start()
        config = ssh_config(fault, server.getsockname()[1])
        fault.ends("doctor", "--host", "lab", "--ssh-config", config, shorter=SHORTER)


def trickle(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the client has gone
        opened, _ = server.accept()
        with opened:
            while True:
                opened.send(b"x")
                time.sleep(0.2)


def test_nobody_listens_for_ssh(fault: Fault) -> None:
    with silent() as port:
        config = ssh_config(fault, port)
    fault.ends("doctor", "--host", "lab", "--ssh-config", config)


def test_what_listens_is_no_ssh_server(fault: Fault) -> None:
    with serving(fault.place.work, works) as server:
        config = ssh_config(fault, server.server_port)
        fault.ends("doctor", "--host", "lab", "--ssh-config", config)


def ssh_config(fault: Fault, port: int) -> Path:
    """Write an ssh_config(5) for the host `lab` at this port, with a host key that is known."""
    work = fault.place.work
    key = base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(range(32))).decode()
    (work / "known").write_text(f"lab ssh-ed25519 {key}\n")
    (work / "ssh").write_text(
        f"Host lab\nHostName 127.0.0.1\nPort {port}\nHostKeyAlias lab\nUser root\n"
        f"IdentityFile none\nUserKnownHostsFile {work}/known\nGlobalKnownHostsFile none\n"
    )
    return work / "ssh"


def until_connected(port: int, seconds: float = 30.0) -> None:
    """Wait until a connection to the port is in state 01 of proc_net_tcp(5), ESTABLISHED."""
    end = time.monotonic() + seconds
    ours = f":{port:04X} 01 "
    while ours not in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < end, "nobody connected"
        time.sleep(0.02)


def test_while_the_tester_is_asked_for(fault: Fault) -> None:
    """git hangs while a report is made."""
    place = fault.place
    path = place.programs(scripts={"git": f"echo > {place.work}/begun; exec sleep 600"})
    with place.started("report", place.recorded(), PATH=path) as running:
        until(place.work / "begun")
        interrupted(fault, running, signal.SIGINT)


def test_before_anything_has_begun(fault: Fault) -> None:
    """While Python itself still starts, the signal's default action may end it. It is never
    reported as a bug."""
    place = fault.place
    with place.started("plan", place.scenario()) as running:
        running.signal(signal.SIGTERM)
        code = running.ended().code
    assert code in (130, -signal.SIGTERM)
    assert place.left() == []


def test_signals_that_nohup_ignores(fault: Fault) -> None:
    scenario = fault.place.scenario(DEB)
    with (
        serving(fault.place.work, hangs) as mirror,
        fault.place.started(
            "plan", scenario, under=["nohup"], BAROMETER_MIRROR=mirror.url
        ) as running,
    ):
        mirror.until_asked()
        running.signal(signal.SIGHUP)
        time.sleep(0.3)
        assert running.process.poll() is None
        mirror.released.set()
        fault.ended(running.ended())


# outputs -------------------------------------------------------------------------------------


def test_nobody_reads_the_output(fault: Fault) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        fault.ends("report", fault.place.recorded(), stdout=output)


@pytest.mark.parametrize("which", ["1", "2"], ids=["stdout", "stderr"])
def test_output_is_closed(fault: Fault, which: str) -> None:
    under = ["sh", "-c", f'exec "$@" {which}>&-', "sh"]
    fault.ends("plan", fault.place.scenario(), under=under)


def test_nobody_reads_what_goes_wrong(fault: Fault) -> None:
    """The exit code is still that of the error; the one that rich ends with is a regression's."""
    reader, writer = os.pipe()
    os.close(reader)
    under = ["sh", "-c", f'exec "$@" 2>&{writer}', "sh"]
    try:
        fault.ends("plan", "none.toml", under=under, pass_fds=[writer])
    finally:
        os.close(writer)
