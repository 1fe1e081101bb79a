"""A machine's SSH address, as the real ssh and ssh-keygen read configurations and files."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.machine.transport.keys import KeyPair
from orchestrator.machine.transport.remote import (
    Endpoint,
    _known_keys,
    client_program,
    logged_in,
    resolve_address,
)

NAME = "gpu1.lab"
ONE, TWO = KeyPair.make(), KeyPair.make()


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


def test_alias_has_what_its_configuration_says(config: Path, tmp_path: Path) -> None:
    assert of(config) == Endpoint(
        "gpu1", config, NAME, 2222, "joe", alias="", identities=(tmp_path / "id",),
        known_hosts=(tmp_path / "known", tmp_path / "more"), agent=True,
    )  # fmt: skip


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


def test_machine_whose_name_nobody_knows_is_said(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(address: tuple[str, int], timeout: float) -> socket.socket:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(BenchError) as caught, logged_in(of(config)):
        pass
    assert (caught.value.reason, caught.value.message) == (
        "host-no-name", f"gpu1: there is no machine called {NAME}: Name or service not known",
    )  # fmt: skip


def test_login_may_be_with_the_named_identities_alone(config: Path, tmp_path: Path) -> None:
    found = of(config, "IdentitiesOnly yes", f'IdentityFile "{tmp_path}/my key"')
    assert not found.agent
    assert found.identities == (tmp_path / "id", tmp_path / "my key")
    assert of(config, "IdentityFile none").identities == found.identities


def test_identities_are_ssh_s_own_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "empty").touch()
    found = resolve_address(NAME, tmp_path / "empty")
    assert tmp_path / ".ssh/id_ed25519" in found.identities
    assert [path.name for path in found.known_hosts][:1] == ["known_hosts"]


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ("bastion", ["bastion"]),
        ("joe@[fe80::1]:24", ["-l", "joe", "-p", "24", "fe80::1"]),
        ("joe@dom@[192.0.2.7]:22", ["-l", "joe@dom", "-p", "22", "192.0.2.7"]),
        ("192.0.2.7", ["192.0.2.7"]),
        ("joe@outer:24,inner", ["-J", "joe@outer:24", "inner"]),
        ("one,two,ssh://joe@inner:24", ["-J", "one,two", "-l", "joe", "-p", "24", "inner"]),
    ],
)
def test_jump_is_a_program_that_ssh_reads_as_its_own(
    config: Path, hosts: str, words: list[str]
) -> None:
    proxy = of(config, f"ProxyJump {hosts}").proxy
    assert proxy[:3] == ("ssh", "-F", str(config))
    options = ("-o", "BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=10",
               "ServerAliveCountMax=6", "-W", f"[{NAME}]:2222", "--")  # fmt: skip
    assert [word for word in proxy[3:] if word not in options] == words
    said = subprocess.check_output([proxy[0], "-G", *proxy[1:]], text=True).splitlines()
    assert {"batchmode yes", "connecttimeout 20", "serveraliveinterval 10"} <= set(said)


@pytest.mark.parametrize(
    ("options", "command"),
    [
        (["ProxyCommand nc -X 'a b' %h %p"], f"nc -X 'a b' {NAME} 2222"),
        (["ProxyCommand x %n %r %k %%h"], "x gpu1 joe gpu1 %h"),
        (["ProxyCommand x %k", "HostKeyAlias old"], "x old"),
    ],
)
def test_proxy_command_is_the_user_s_with_its_tokens_replaced(
    config: Path, options: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/bin/its")
    assert of(config, *options).proxy == ("/bin/its", "-c", f"exec {command}")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["ProxyCommand x %y"], "does not know %y in ProxyCommand x %y"),
        (["ProxyCommand x %"], "does not know % in"),
        (["ProxyCommand x", "ProxyUseFdpass yes"], "ProxyUseFdpass, which"),
    ],
)
def test_proxy_command_that_barometer_cannot_use_is_refused(
    config: Path, options: list[str], why: str
) -> None:
    with pytest.raises(ScenarioError, match=why) as caught:
        of(config, *options)
    assert caught.value.reason == "ssh-config"


def test_jump_that_is_taken_back_is_none(config: Path) -> None:
    assert of(config, "ProxyJump none", "ProxyCommand none").proxy == ()


@pytest.mark.parametrize(
    ("command", "reason", "said"),
    [
        ("no-such-program %h", "host-no-proxy", "cannot be started"),
        ("/dev/null", "host-no-proxy", "cannot be started"),
        ("sh -c 'echo no route >&2; exit 3'", "host-no-ssh", "ended with exit code 3: no route"),
        ("sleep 60", "host-no-ssh", "SSH protocol banner"),
        ("sh -c 'trap \"\" HUP PIPE; cat > %d/sent; sleep 60'", "host-no-ssh", "banner"),
        ("yes", "host-no-ssh", "no SSH connection by the proxy command"),
        ("sh -c 'exec >&- 2>&- <&-; sleep 60'", "host-no-ssh", "no SSH connection by"),
        ("sh -c 'yes >&2'", "host-no-ssh", "no SSH connection by"),
    ],
)
def test_proxy_command_that_does_not_connect_is_said_and_ended(
    config: Path, tmp_path: Path, command: str, reason: str, said: str
) -> None:
    pid = tmp_path / "pid"
    shell = tmp_path / "shell"
    command = command.replace("%d", str(tmp_path))
    shell.write_text(f'#!/bin/sh\necho $$ > {pid}\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    endpoint = replace(of(config), proxy=(str(shell), "-c", f"exec {command}"))
    endpoint.known_hosts[0].write_text(f"* {ONE.public_line}\n")
    began = time.monotonic()
    with pytest.raises(BenchError) as caught, logged_in(endpoint, patience=0.5):
        pass
    assert time.monotonic() - began < 20
    assert (caught.value.reason, said in caught.value.message) == (reason, True)
    assert command.split()[0] in caught.value.message
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


def test_shell_of_a_proxy_command_that_is_not_there_is_said(config: Path) -> None:
    endpoint = replace(of(config), proxy=("/no/shell", "-c", "exec x"))
    with (
        pytest.raises(BenchError, match="cannot be started: /no/shell") as caught,
        logged_in(endpoint),
    ):
        pass
    assert (caught.value.reason, "No such file" in caught.value.evidence) == (
        "host-no-proxy", True
    )  # fmt: skip


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


# known hosts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], f"[{NAME}]:2222"),
        (["HostKeyAlias old"], "old"),
    ],
)
def test_machine_is_known_by_its_port_or_its_alias(
    config: Path, options: list[str], name: str
) -> None:
    assert of(config, *options).known_as == name


def test_machine_at_the_usual_port_is_known_by_its_name(config: Path) -> None:
    assert replace(of(config), port=22).known_as == NAME


def known(endpoint: Endpoint, *lines: str, path: int = 0) -> dict[str, set[str]]:
    endpoint.known_hosts[path].write_text("".join(f"{line}\n" for line in lines))
    return _known_keys(endpoint)


def base64_of(key: KeyPair) -> str:
    return key.public_line.split()[1]


def only(*keys: KeyPair) -> dict[str, set[str]]:
    return {"ssh-ed25519": {base64_of(key) for key in keys}}


@pytest.fixture
def endpoint(config: Path) -> Endpoint:
    return of(config)


@pytest.mark.parametrize(
    "names", [f"[{NAME}]:2222", f"other,[{NAME}]:2222,192.0.2.7", "[*.lab]:2222"]
)
def test_key_is_found_under_the_machines_name(endpoint: Endpoint, names: str) -> None:
    assert known(endpoint, f"{names} {ONE.public_line} a comment") == only(ONE)


@pytest.mark.parametrize(
    "names", [NAME, f"[{NAME}]:22", f"[{NAME}]:22222", "[*.lab]:2222,![gpu1*]:*"]
)
def test_key_of_another_machine_is_none(endpoint: Endpoint, names: str) -> None:
    assert known(endpoint, f"{names} {ONE.public_line}") == {}


def test_key_is_found_under_a_hashed_name(endpoint: Endpoint) -> None:
    path = endpoint.known_hosts[0]
    path.write_text(f"other.lab {TWO.public_line}\n{endpoint.known_as} {ONE.public_line}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert NAME not in path.read_text()
    assert path.read_text().count("|1|") == 2
    assert _known_keys(endpoint) == only(ONE)


def test_all_keys_that_are_known_count(endpoint: Endpoint, tmp_path: Path) -> None:
    """Two keys of one kind are in one file, and one of another kind is in another."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "e"], check=True)
    name, line = endpoint.known_as, (tmp_path / "e.pub").read_text()
    known(endpoint, f"{name} {line}", path=1)
    found = known(endpoint, f"{name} {ONE.public_line}", f"{name} {TWO.public_line}")
    assert set(found) == {"ssh-ed25519", "ecdsa-sha2-nistp256"}
    assert found["ssh-ed25519"] == only(ONE, TWO)["ssh-ed25519"]


def test_revoked_key_is_not_known_wherever_it_is_revoked(endpoint: Endpoint) -> None:
    name = endpoint.known_as
    known(endpoint, f"@revoked * {ONE.public_line}", path=1)
    lines = [f"{name} {key.public_line}" for key in (ONE, TWO)]
    assert known(endpoint, *lines) == only(TWO)
    assert known(endpoint, lines[0]) == {}


def test_key_of_an_authority_is_none_of_the_machine(endpoint: Endpoint) -> None:
    assert known(endpoint, f"@cert-authority {endpoint.known_as} {ONE.public_line}") == {}


def test_broken_line_of_the_machine_hides_no_other(endpoint: Endpoint) -> None:
    name = endpoint.known_as
    found = known(endpoint, f"{name} ssh-ed25519 !", name, f"{name} {ONE.public_line}")
    assert base64_of(ONE) in found["ssh-ed25519"]


def test_files_that_are_not_there_know_nothing(endpoint: Endpoint) -> None:
    assert _known_keys(endpoint) == {}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Endpoint:
    path = tmp_path_factory.mktemp("known") / "hosts"
    return Endpoint(NAME, None, NAME, 22, "root", alias="", identities=(), known_hosts=(path,),
                    agent=False)  # fmt: skip


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n"), max_size=60)


@given(st.lists(TEXTS, max_size=4))
def test_spoilt_lines_hide_no_key(spoilt: Endpoint, lines: list[str]) -> None:
    lines = [line for line in lines if not line.strip().startswith("@")]
    found = known(spoilt, *lines, f"{NAME} {ONE.public_line}")
    assert base64_of(ONE) in found["ssh-ed25519"]


# OpenSSH's client ------------------------------------------------------------------------------


def words_of(program: Path) -> list[str]:
    assert program.stat().st_mode & 0o777 == 0o700
    first, recorded, command = program.read_text().splitlines()
    assert first == "#!/bin/sh"
    assert recorded.startswith("echo $$ >> ")
    return shlex.split(command)


def test_client_is_told_all_that_was_found(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "id").touch()
    words = words_of(client_program(replace(endpoint, agent=False), tmp_path))
    assert words[:4] == ["exec", "ssh", "-F", str(endpoint.config)]
    assert words[-3:] == ["-i", str(tmp_path / "id"), "$@"]
    options = words[4:-3]
    assert set(options[::2]) == {"-o"}
    assert dict(option.split("=", 1) for option in options[1::2]) == {
        "BatchMode": "yes", "StrictHostKeyChecking": "yes", "ConnectTimeout": "20",
        "HostName": NAME, "Port": "2222", "User": "joe", "HostKeyAlias": f"[{NAME}]:2222",
        "UserKnownHostsFile": f"{tmp_path}/known {tmp_path}/more", "IdentitiesOnly": "yes",
        "ServerAliveInterval": "10", "ServerAliveCountMax": "6", "ProxyCommand": "none",
    }  # fmt: skip


def test_client_is_given_no_file_that_is_not_there(endpoint: Endpoint, tmp_path: Path) -> None:
    words = words_of(client_program(replace(endpoint, config=None), tmp_path))
    assert not {"-F", "-i"} & set(words)
    assert "IdentitiesOnly=no" in words


def test_client_means_the_machine_whatever_it_is_called_with(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    """ssh itself evaluates the program's options."""
    (tmp_path / "id").touch()
    program = client_program(endpoint, tmp_path)
    asked = [str(program), "-G", "-l", "root", "anything"]
    said = subprocess.check_output(asked, text=True, stdin=subprocess.DEVNULL)
    for line in (f"hostname {NAME}", "port 2222", "user joe", "batchmode yes",
                 "stricthostkeychecking true", f"hostkeyalias [{NAME}]:2222",
                 f"identityfile {tmp_path}/id"):  # fmt: skip
        assert line in said.splitlines()


@pytest.mark.parametrize(
    "option", ["ProxyJump bastion", "ProxyJump none", "ProxyCommand it's %h 100%% '%p"]
)
def test_client_has_the_same_proxy_command_and_no_other(
    config: Path, tmp_path: Path, option: str
) -> None:
    """The configuration has a jump host for the name that the client is called with."""
    endpoint = of(config, option)
    with config.open("a") as file:
        file.write("Host *\n ProxyJump another\n")
    program = client_program(endpoint, tmp_path)
    said = subprocess.check_output([str(program), "-G", "host"], text=True).splitlines()
    assert not any(line.startswith("proxyjump") for line in said)
    found = [line.partition(" ")[2] for line in said if line.startswith("proxycommand")]
    words = [shlex.split(line.replace("%%", "%")) for line in found]
    assert words == ([["setpriv", "--pdeathsig", "TERM", *endpoint.proxy]] * bool(endpoint.proxy))
