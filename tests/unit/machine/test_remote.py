"""A machine's SSH address, as the real ssh reads configurations, and what is told of a connection
that ssh does not make."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.machine.transport.remote import (
    Endpoint,
    client_program,
    logged_in,
    resolve_address,
)

NAME = "gpu1.lab"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "lab.conf"
    path.write_text(
        f"Host gpu1\n HostName {NAME}\n Port 2222\n User joe\n IdentityFile {tmp_path}/id\n"
        f" UserKnownHostsFile {tmp_path}/known {tmp_path}/more\n GlobalKnownHostsFile none\n"
    )
    return path


def of(config: Path, *options: str, address: str = "gpu1") -> Endpoint:
    """Resolve an address with further lines of configuration."""
    with config.open("a") as file:
        file.writelines(f" {option}\n" for option in options)
    return resolve_address(address, config)


def test_alias_has_what_its_configuration_says(config: Path) -> None:
    assert of(config) == Endpoint("gpu1", config, NAME, 2222, "joe", is_behind=False)


@pytest.mark.parametrize(
    ("address", "user", "hostname", "port"),
    [
        ("root@gpu1", "root", NAME, 2222),
        ("ssh://root@gpu1:24", "root", NAME, 24),
        ("ssh://gpu2.lab:24", None, "gpu2.lab", 24),
        ("root@gpu2.lab", "root", "gpu2.lab", 22),
        ("root@192.0.2.7", "root", "192.0.2.7", 22),
        ("root@2001:db8::7", "root", "2001:db8::7", 22),
    ],
)
def test_address_is_taken_as_by_ssh(
    config: Path, address: str, user: str | None, hostname: str, port: int
) -> None:
    found = of(config, address=address)
    assert (found.hostname, found.port, str(found)) == (hostname, port, address)
    assert user in (None, found.user)


@pytest.mark.parametrize(
    ("option", "is_behind"),
    [
        ("ProxyJump bastion", True), ("ProxyJump none", False), ("ProxyCommand nc %h %p", True),
        ("ProxyCommand none", False), ("Compression yes", False),
    ],
)  # fmt: skip
def test_another_program_may_make_the_connection(
    config: Path, option: str, is_behind: bool
) -> None:
    assert of(config, option).is_behind == is_behind


def has_ended(pid: int) -> bool:
    """Wait until init has taken an orphan that was killed."""
    deadline = time.monotonic() + 5
    while (process := Path(f"/proc/{pid}")).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not process.exists()


def refused(endpoint: Endpoint) -> BenchError:
    with pytest.raises(BenchError) as caught, logged_in(endpoint, patience=0.5):
        pass
    assert str(endpoint) in caught.value.message
    return caught.value


def test_machine_whose_name_nobody_knows_is_said(config: Path) -> None:
    failure = refused(of(config, address="other.invalid"))
    assert failure.reason == "host-no-name"
    assert "other.invalid" in failure.message


@pytest.mark.parametrize(
    ("command", "reason", "said"),
    [
        ("no-such-program %h", "host-no-proxy", "not found"),
        ("/dev/null", "host-no-proxy", "Permission denied"),
        ("sh -c 'echo no route >&2; exit 3'", "host-no-ssh", "no route"),
        ("sleep 60", "host-no-ssh", "timed out during banner exchange"),
        ("yes", "host-no-ssh", ""),
        ("sh -c 'exec >&- 2>&- <&-; sleep 60'", "host-no-ssh", ""),
        ("sh -c 'yes >&2'", "host-no-ssh", ""),
    ],
)
def test_proxy_command_that_does_not_connect_is_said_and_ended(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str,
    said: str,
) -> None:  # fmt: skip
    pid, shell = tmp_path / "pid", tmp_path / "shell"
    shell.write_text(f'#!/bin/sh\necho $$ > {pid}\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))
    began = time.monotonic()
    failure = refused(of(config, f"ProxyCommand {command}"))
    assert time.monotonic() - began < 20
    assert (failure.reason, said in failure.evidence) == (reason, True)
    assert has_ended(int(pid.read_text()))


def test_shell_of_a_proxy_command_that_is_not_there_is_said(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/no/shell")
    failure = refused(of(config, "ProxyCommand nc %h %p"))
    assert (failure.reason, "No such file" in failure.evidence) == ("host-no-proxy", True)


@pytest.mark.parametrize("address", ["-oProxyCommand=true", "a b", "$(id)", "ssh://a:port"])
def test_address_that_ssh_does_not_take_is_refused(config: Path, address: str) -> None:
    with pytest.raises(ScenarioError, match="ssh does not take the address") as caught:
        of(config, address=address)
    assert caught.value.reason == "ssh-config"


def test_configuration_that_ssh_does_not_take_is_refused_with_its_reason(config: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        of(config, "Prot 22")
    assert "bad configuration option: prot" in caught.value.evidence.lower()


def test_configuration_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file of ssh's configuration"):
        resolve_address("gpu1", tmp_path / "none.conf")


# OpenSSH's client, for libvirt -------------------------------------------------------------------


def call(program: Path, folder: Path) -> list[str]:
    """Return what the program executes when libvirt calls it."""
    fake = folder / "bin"
    fake.mkdir()
    (fake / "setsid").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (fake / "setsid").chmod(0o755)
    return subprocess.check_output(
        [program, "-T", "-e", "none", "--", "barometer-host", "sh", "-c", "a 'b' $c"],
        text=True, env={"PATH": f"{fake}:/usr/bin:/bin"}, stdin=subprocess.DEVNULL,
    ).splitlines()  # fmt: skip


def test_client_means_the_machine_whatever_it_is_called_with(config: Path, tmp_path: Path) -> None:
    endpoint = replace(of(config), identity=Path("/keys/one"))
    words = call(client_program(endpoint, tmp_path), tmp_path)
    assert words[:3] == ["ssh", "-F", str(config)]
    assert words[words.index("-i") + 1] == "/keys/one"
    assert words[-5:] == ["--", "gpu1", "sh", "-c", "a 'b' $c"]
    options = dict(re.findall(r"^(\w+)=(.*)$", "\n".join(words), re.MULTILINE))
    assert (options["BatchMode"], options["StrictHostKeyChecking"]) == ("yes", "yes")
    assert (options["ServerAliveInterval"], options["ServerAliveCountMax"]) == ("10", "6")


def test_client_has_ssh_s_own_configuration_if_no_other_is_named(
    config: Path, tmp_path: Path
) -> None:
    endpoint = replace(of(config), config=None)
    assert "-F" not in call(client_program(endpoint, tmp_path), tmp_path)
