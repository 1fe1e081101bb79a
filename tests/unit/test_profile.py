"""Recording a profile, with a made-up host, libvirt and tracer; the real ones are for the lane
with machines."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.base.errors import BarometerError, BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.reasons import Reason
from orchestrator.base.waiting import until
from orchestrator.evidence.surveys.host_report import parse_host_report
from orchestrator.evidence.surveys.profile_facts import (
    TRACER_FILES,
    ProfileFacts,
    QemuProcess,
    load_profile,
)
from orchestrator.machine.tracing import armer, collecting, profiler
from orchestrator.machine.tracing.armer import ProbeSpec
from orchestrator.machine.transport import remote
from orchestrator.machine.transport.local import LocalShell
from orchestrator.machine.transport.shell import Completed
from orchestrator.machine.vm import hypervisor
from orchestrator.run import profile
from orchestrator.run.profile import ProfileRequest, WaitRequest, record, record_next
from tests.unit.machine.test_definition import XML
from tests.unit.slowboots import print_sections

GIB = 1 << 30
DEVICES = ("0000:3b:00.1", "0001:af:1f.7")
RESOURCE = "\n".join(
    [
        "0x00000000fb000000 0x00000000fbffffff 0x0000000000040200",
        "0x0000380000000000 0x00003807ffffffff 0x000000000014220c",
        "0x0000000000000000 0x0000000000000000 0x0000000000000000",
        "0x000000000000e000 0x000000000000e07f 0x0000000000040101",
    ]
)


PROCESS = QemuProcess(pid=7, threads=(7, 9), page_table_bytes=4096, maps="")


class Host:
    """A host that answers each command by its purpose, with its domain, libvirt and tracer."""

    name = "gpu1"
    uri = "qemu+ssh://gpu1/system"

    def __init__(self) -> None:
        self.xml, self.running = XML, False
        self.happened: set[hypervisor.Happening] = set()
        self.counts = [4, 9, 9, 9]
        self.process_found: QemuProcess | None = PROCESS
        self.answers = {
            "reading facts": "release\t6.12.0\nclocksource\ttsc\ncmdline\tquiet\n",
            "asking QEMU's version": "QEMU emulator version 8.2.2 (Debian 1:8.2.2)\n",
            "listing PCI devices": "".join(
                f"device {a} 0x10de 0x2330 \n{RESOURCE}\n"
                for a in ("0000:3b:00.1", "0001:af:1f.7")
            ),
            "reading QEMU's process id": "7\n",
            "looking for leases": "",
        }
        self.marks: list[str] = []
        self.cleared = False
        self.focused = 0

    def run(self, argv: object, *, doing: str = "", **_: object) -> Completed:
        return Completed(self.answers.get(doing, "1"), "", 0)

    # its libvirt

    def lookup(self, _name: str) -> Host:
        return self

    def version(self) -> dict[str, str]:
        return {"libvirt": "11.3.0", "qemu": "9.9.9"}

    def active(self) -> bool:
        return self.running

    def definition(self) -> str:
        return self.xml

    def start(self) -> None:
        self.running = True

    def reboot(self) -> None:
        self.happened.add("reset")

    @contextlib.contextmanager
    def watched(self) -> Iterator[set[hypervisor.Happening]]:
        yield self.happened

    # its tracer

    @contextlib.contextmanager
    def armed(self, _shell: object, spec: ProbeSpec) -> Iterator[Host]:
        self.spec = spec
        try:
            yield self
        finally:
            self.cleared = True

    def mark(self, event: str) -> None:
        self.marks.append(event)

    def focus(self, pid: int) -> None:
        self.focused = pid

    def records(self, _pid: int) -> int | None:
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def process(self, _pid: int) -> QemuProcess | None:
        return self.process_found

    def files(self) -> dict[str, str]:
        return {**dict.fromkeys(TRACER_FILES, "[mono]\n"), "trace.txt": "# nothing\n"}


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()

    @contextlib.contextmanager
    def reached(_uri: object, _config: object) -> Iterator[tuple[Any, Host]]:
        yield SimpleNamespace(shell=made), made

    monkeypatch.setattr(profile, "connected_host", reached)
    monkeypatch.setattr(armer, "armed_probes", made.armed)
    monkeypatch.setattr(profile, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(
        profile, "until", lambda check, **how: until(check, **how | {"every": 0.01})
    )
    return made


def recorded(host: Host, **asked: Any) -> ProfileFacts:
    return record(ProfileRequest("gpu vm", **{"until": 0.05, **asked}), Progress()).facts


def test_a_start_is_recorded_until_nothing_is_mapped_any_more(host: Host) -> None:
    facts = recorded(host)
    assert (facts.ended, facts.boot, host.marks) == ("quiet", "start", ["start", "run"])
    assert host.running
    assert host.cleared
    assert (facts.qemu, facts.release, facts.pid) == ("8.2.2", "6.12.0", 7)
    assert host.focused == 7
    assert facts.settings.to_json() == {
        "clocksource": "tsc", "cmdline": "quiet"
    }  # fmt: skip
    assert facts.process == PROCESS
    assert not facts.definition_changed
    # memory BARs only, without the I/O port BAR
    assert [(bar.device, bar.number, bar.start, bar.size) for bar in facts.bars[:2]] == [
        ("0000:3b:00.1", 0, 0xFB000000, 16 << 20),
        ("0000:3b:00.1", 1, 0x380000000000, 32 * GIB),
    ]
    assert len(facts.bars) == 4
    assert host.spec.filters["baroprofile/imap_in"] == f"size == {32 * GIB:#x}"
    assert host.spec.filters["sched/sched_process_exec"] == 'filename ~ "/usr/libexec/qemu-kvm"'


def test_quiet_before_the_first_map_may_be_slow_firmware(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "_LONGEST", 0.4)
    host.counts = [4]
    assert recorded(host).ended == "limit"
    monkeypatch.setattr(profile, "_UNTOUCHED_SECONDS", 0.1)
    host.running = False
    assert recorded(host).ended == "quiet"


def test_the_agents_connection_is_marked_and_may_be_the_end(host: Host) -> None:
    host.happened.add("agent")
    assert recorded(host).ended == "quiet"
    host.running = False
    assert recorded(host, until="agent").ended == "agent"
    assert host.marks == ["start", "run", "agent"] * 2


def test_a_domain_that_ends_is_no_error(host: Host) -> None:
    host.counts, host.process_found = [4, None], None  # type: ignore[list-item]
    facts = recorded(host)
    assert (facts.ended, facts.process) == ("domain-ended", None)


def test_a_reboot_begins_with_the_reset(host: Host) -> None:
    host.running = True
    assert recorded(host, reboot=True).boot == "reboot"
    assert host.marks == ["reset"]


def test_a_guest_that_does_not_reboot_is_said(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.running = True
    monkeypatch.setattr(profile, "_LONGEST", 0.05)
    monkeypatch.setattr(Host, "reboot", lambda self: None)
    with pytest.raises(BenchError, match="no reboot of gpu vm's guest"):
        recorded(host, reboot=True)
    assert host.cleared
    monkeypatch.setattr(Host, "reboot", lambda self: setattr(self, "running", False))
    with pytest.raises(BenchError, match="ended instead"):
        recorded(host, reboot=True)


def test_older_kernels_are_traced_without_parts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler, "can_take_return_arguments", lambda _shell: False)
    assert not recorded(host).parts
    assert "baroprofile/imap_in" not in host.spec.enable


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({"running": True}, {}, "gpu vm is running"),
        ({}, {"reboot": True}, "not running"),
        ({"xml": "<domain><memory>1</memory></domain>"}, {}, "no PCI device"),
        ({"xml": XML.replace("guest_agent", "other")}, {"until": "agent"}, "no channel"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_anything(
    host: Host, change: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    for name, value in change.items():
        setattr(host, name, value)
    with pytest.raises(ScenarioError, match=message):
        recorded(host, **asked)
    assert host.marks == []
    assert not host.cleared


@pytest.mark.parametrize(
    ("listing", "message"),
    [("device 0000:00:01.0 0x1 0x2 \n", "0000:3b:00.1 is not there"),
     ("".join(f"device {a} 0x1 0x2 \n" for a in DEVICES), "no memory")],
)  # fmt: skip
def test_devices_that_cannot_map_are_said(host: Host, listing: str, message: str) -> None:
    host.answers["listing PCI devices"] = listing
    with pytest.raises(BenchError, match=message):
        recorded(host)
    assert not host.running


def test_a_definition_that_somebody_changes_is_told(host: Host) -> None:
    versions = [XML, XML, XML.replace("gpu vm", "gpu")]
    host.definition = lambda: versions.pop(0) if len(versions) > 1 else versions[0]  # type: ignore[method-assign]
    versions.pop(0)
    assert recorded(host).definition_changed


def test_machine_that_a_run_has_leased_is_refused(host: Host) -> None:
    host.answers["looking for leases"] = "/var/lib/barometer/lease-7.json\n"
    with pytest.raises(BenchError, match="is leased to a run") as caught:
        record(ProfileRequest("vm"), Progress())
    assert caught.value.reason == "lease-held"
    assert not host.running


def test_an_interrupt_leaves_the_domain_running_and_says_so(
    host: Host, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Host, "records", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recorded(host)
    assert host.cleared
    assert host.running
    assert "gpu vm is left as it is: running" in capsys.readouterr().err


def test_a_start_that_fails_keeps_its_trace_and_what_was_said(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_self: Host) -> None:
        raise BenchError(
            "libvirt could not start gpu vm: monitor closed", reason=Reason.LIBVIRT_START
        )

    monkeypatch.setattr(Host, "start", start)
    host.answers["reading what the host says"] = "==== barometer dmesg\n[ 1.0] vfio: no\n"
    evidence = record(ProfileRequest("gpu vm", until=0.05), Progress())
    assert (evidence.facts.ended, evidence.facts.process) == ("start-failed", None)
    assert host.cleared
    assert host.marks == ["start"]
    report = parse_host_report(evidence.files["host.txt"], evidence.files["after.txt"])
    assert report.text("after/error").startswith("libvirt could not start gpu vm")
    assert "vfio: no" in report.text("after/dmesg")


def test_another_failure_of_libvirts_is_no_failed_start(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_self: Host) -> None:
        raise BenchError("the connection is lost", reason=Reason.LIBVIRT_FAILED)

    monkeypatch.setattr(Host, "start", start)
    with pytest.raises(BenchError, match="the connection is lost"):
        recorded(host)
    assert host.cleared


def test_the_next_qemu_is_recorded_whoever_starts_it(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def connected(uri: str, _config: object) -> Iterator[tuple[Any, None]]:
        assert uri == "qemu:///system"
        yield SimpleNamespace(shell=host), None

    found = iter([None, None, 7])
    monkeypatch.setattr(profile, "_connected_machine", connected)
    monkeypatch.setattr(collecting, "list_bar_devices", lambda _shell: [DEVICES[0]])
    monkeypatch.setattr(collecting, "list_qemus", lambda _shell: ["3"])
    asked: list[tuple[str, list[str]]] = []

    def find(_shell: object, name: str, known: list[str]) -> int | None:
        asked.append((name, known))
        return next(found)

    monkeypatch.setattr(collecting, "find_qemu", find)
    monkeypatch.setattr(collecting, "has_failed_start", lambda _shell, _trace: False)
    monkeypatch.setattr(
        collecting, "read_host_report",
        lambda _shell, devices: print_sections(
            {"release": "6.12.0", f"device/{DEVICES[0]}/resource": RESOURCE}
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        collecting, "read_after_report",
        lambda _shell, pid, ended, _domain: print_sections(
            {"pid": str(pid), "ended": ended, "devices": DEVICES[0]}
        ),
    )  # fmt: skip
    evidence = record_next(WaitRequest("gpu", until=0.05), Progress())
    assert asked == [("gpu", ["3"])] * 3
    assert host.focused == 7
    assert host.cleared
    assert (evidence.facts.pid, evidence.facts.ended) == (7, "quiet")
    assert (evidence.facts.boot, evidence.facts.uri) == ("wait", "")
    assert [bar.size for bar in evidence.facts.bars] == [16 << 20, 32 * GIB]
    assert '"*/kvm"' in host.spec.filters["sched/sched_process_exec"]


@pytest.mark.parametrize("seen", [None, 7])
@pytest.mark.parametrize(
    ("has_failed", "refusals"), [(True, [0]), (False, [2, 2, 3])], ids=["a map", "the device"]
)
def test_a_next_qemu_that_fails_is_recorded_too(
    host: Host, monkeypatch: pytest.MonkeyPatch, has_failed: bool, refusals: list[int],
    seen: int | None,
) -> None:  # fmt: skip
    """Whether it was seen before it ended changes nothing."""

    @contextlib.contextmanager
    def connected(_uri: str, _config: object) -> Iterator[tuple[Any, None]]:
        yield SimpleNamespace(shell=host), None

    monkeypatch.setattr(profile, "_connected_machine", connected)
    monkeypatch.setattr(collecting, "list_bar_devices", lambda _shell: [DEVICES[0]])
    monkeypatch.setattr(collecting, "find_qemu", lambda _shell, _name, _known: seen)
    monkeypatch.setattr(collecting, "has_failed_start", lambda _shell, _trace: has_failed)
    counts = [refusals[0], refusals[-1]] if seen else [*refusals]
    monkeypatch.setattr(collecting, "count_refused", lambda _shell: counts.pop(0))
    monkeypatch.setattr(Host, "records", lambda _host, _pid: None)
    host.answers["reading what the host says"] = print_sections(
        {"release": "6.12.0", f"device/{DEVICES[0]}/resource": RESOURCE, "ended": "start-failed"}
    )
    evidence = record_next(WaitRequest(), Progress())
    assert evidence.facts.ended == "start-failed"
    assert host.focused == (seen or 0)
    assert host.cleared


def test_what_is_recorded_is_saved(host: Host, tmp_path: Path) -> None:
    found = record(ProfileRequest("gpu vm", until=0.05), Progress())
    found.save(tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["schema"], facts["domain"]) == (1, "gpu vm")
    assert facts["settings"] == {"clocksource": "tsc", "cmdline": "quiet"}
    assert gzip.decompress((folder / "trace.txt.gz").read_bytes()) == b"# nothing\n"
    assert (folder / "clock.txt").read_text() == "[mono]\n"
    assert (folder / "domain.xml").read_text() == XML
    assert load_profile(folder) == found


def test_a_host_that_does_not_say_its_release_is_the_benchs_failure(host: Host) -> None:
    host.answers["reading facts"] = "Welcome!\n"
    with pytest.raises(BenchError) as caught:
        recorded(host)
    assert caught.value.reason == "answer-garbled"
    assert not host.running


# the connection ----------------------------------------------------------------------------------


class Remote(LocalShell):
    pass


class Ways:
    def __init__(self) -> None:
        self.opened: list[str | None] = []
        self.endpoint: remote.Endpoint | None = None
        self.default = "qemu:///system"

    @contextlib.contextmanager
    def at(self, uri: str | None) -> Iterator[Any]:
        self.opened.append(uri)
        connection = Host()
        connection.uri = uri or self.default
        yield connection

    @contextlib.contextmanager
    def logged_in(self, endpoint: remote.Endpoint) -> Iterator[Remote]:
        self.endpoint = endpoint
        yield Remote()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> Ways:
    made = Ways()
    monkeypatch.setattr(hypervisor, "at", made.at)
    monkeypatch.setattr(remote, "logged_in", made.logged_in)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


def test_this_machines_libvirt_has_this_machines_shell(ways: Ways) -> None:
    with profile.connected_host(None) as (machine, connection):
        assert isinstance(machine.shell, LocalShell)
        assert connection.uri == "qemu:///system"
    with profile.connected_host("qemu:///system") as (machine, _):
        assert isinstance(machine.shell, LocalShell)
    assert ways.opened == [None, "qemu:///system"]


def test_a_remote_libvirt_has_a_shell_by_the_same_address(ways: Ways) -> None:
    uri = "qemu+ssh://operator@localhost:2222/system?keyfile=/keys/one&no_verify=1"
    with profile.connected_host(uri) as (machine, _):
        assert isinstance(machine.shell, Remote)
    assert ways.endpoint is not None
    assert (ways.endpoint.user, ways.endpoint.port) == ("operator", 2222)
    assert ways.endpoint.identity == Path("/keys/one")
    assert ways.opened == [uri]


def test_an_ssh_configuration_is_libvirts_too(ways: Ways, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host lab\n HostName 192.0.2.7\n Port 29\n User root\n")
    with profile.connected_host("qemu+ssh://lab/system", config):
        (uri,) = ways.opened
        assert uri is not None
        program = uri.partition("command=")[2].partition("&")[0]
        assert f"-F {config}" in Path(program).read_text()
    assert not Path(program).exists()


@pytest.mark.parametrize(
    "uri", ["qemu:///session", "test:///default", "xen+ssh://h/system", "qemu+tcp://h/system", ""]
)
def test_other_hypervisors_are_refused(ways: Ways, uri: str) -> None:
    with pytest.raises(ScenarioError, match="profiles domains of"), profile.connected_host(uri):
        pass
    assert ways.opened == []


def test_a_default_that_is_another_hypervisor_is_refused(ways: Ways) -> None:
    ways.default = "test:///default"
    with pytest.raises(BarometerError, match="test:///default"), profile.connected_host(None):
        pass
