"""A profile of a domain that existed before, on a host that is known by its SSH address."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.progress import Progress
from orchestrator.base.waiting import until
from orchestrator.formats.units import GIB
from orchestrator.machine.guest.guest import stage_guest
from orchestrator.machine.host.device import BoundDevice
from orchestrator.machine.host.host import Host
from orchestrator.machine.tracing import armer, profiler
from orchestrator.machine.transport.keys import RunKeys
from orchestrator.machine.vm.domain import GuestDomain
from orchestrator.machine.vm.hypervisor import Connection, Domain
from orchestrator.run import trial as one_trial
from orchestrator.run.profile import ProfileRequest, record
from orchestrator.scenario.machines import Guest
from tests.lab.conftest import RunOne
from tests.lab.domains import define

pytestmark = pytest.mark.nested

NAME = "slow vm"
URI = "qemu+ssh://barometer-host/system"


def defined(host: Host, libvirt: Connection, devices: Sequence[BoundDevice]) -> Domain:
    guest = GuestDomain(
        name=NAME, uuid=str(uuid.uuid4()), kvm=host.kvm, memory=GIB // 2, cpus=1,
        kernel=f"{host.payload}/guest/vmlinuz", initramfs="/run/barometer/guest.initramfs",
        cmdline="console=ttyS0", console_port=1, ssh_port=2222,
        devices=tuple(d.address for d in devices), pinned=(1,),
    )  # fmt: skip
    return define(libvirt, guest, "/run/barometer/serial.log", managed=False)


def left(host: Host) -> str:
    """List what a profile left on the host."""
    return host.shell.run(
        f"ls -d {armer.TRACEFS}/instances/{profiler.INSTANCE} 2> /dev/null;"
        f" grep {profiler.GROUP} {armer.TRACEFS}/kprobe_events; :"
    ).stdout


def barometer(host: Host, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "profile", NAME, "--connect", URI,
         "--ssh-config", str(host.scratch / "ssh_config"), *arguments],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def on_a_host(
    trial: RunOne,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Host, Domain], None],
    *overrides: str,
) -> None:
    """Run `check` on a real host with a domain defined, and remove the domain and its log
    if it passes."""

    def boots(
        host: Host, devices: Sequence[BoundDevice], guest: Guest, *_: Any, keys: RunKeys,
        **_more: Any,
    ) -> None:  # fmt: skip
        stage_guest(host, guest, keys)
        with host.libvirt() as libvirt:
            domain = defined(host, libvirt, devices)
            # after a failure the host is ended, and a second error would hide the first
            check(host, domain)
            domain.destroy()
            domain._raw.undefine()
            host.shell.run(["rm", "-f", f"/var/log/libvirt/qemu/{NAME}.log"])

    monkeypatch.setattr(one_trial, "run_guest_boots", boots)
    outcome = trial('trace.passes=["plain"]', "device.bar=1GiB", *overrides)
    stages = {stage.name: stage.outcome for stage in outcome.evidence.manifest.stages}
    assert stages == {"host-boot": "ok", "device": "ok"}


def test_a_domain_that_is_there_is_profiled_and_left_as_it_was(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(host: Host, domain: Domain) -> None:
        before = domain.definition()
        asked = ProfileRequest(NAME, URI, host.scratch / "ssh_config")

        first = barometer(host, "--save", str(tmp_path / "saved"))
        out, err = first.communicate(timeout=600)
        print(out, err)
        assert first.returncode == 0
        assert "maps of 1GiB BARs" in out
        assert "no-series" in out
        assert domain.active()
        assert domain.definition() == before
        assert not left(host)

        with pytest.raises(ScenarioError, match="is running"):
            record(asked, Progress())

        domain.destroy()
        host.shell.run(["mkdir", f"{armer.TRACEFS}/instances/{profiler.INSTANCE}"])
        with pytest.raises(BenchError, match="at work already"):
            record(asked, Progress())
        assert not domain.active()
        cleared = barometer(host, "--clear")
        cleared.communicate()
        assert (cleared.returncode, left(host)) == (0, "")

    on_a_host(shared_trial, monkeypatch, check)
    facts = json.loads((tmp_path / "saved/facts.json").read_text())
    assert not facts["definition_changed"]


@pytest.mark.full
def test_a_setting_a_reboot_and_a_killed_profile_are_seen(
    shared_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(host: Host, domain: Domain) -> None:
        host.change.write("/sys/kernel/mm/transparent_hugepage/enabled", "never")
        no_thp = barometer(host, "--save", str(tmp_path / "thp-never"))
        out, err = no_thp.communicate(timeout=600)
        print(out, err)
        assert "thp-sysfs" in out
        assert "-> on the host: echo always >" in out
        host.shell.run("echo always > /sys/kernel/mm/transparent_hugepage/enabled")
        domain.destroy()
        domain.start()

        # a real reset, because this guest does not reboot by ACPI
        monkeypatch.setattr(Domain, "reboot", lambda self: self.monitor("system_reset"))
        again = record(
            ProfileRequest(NAME, URI, host.scratch / "ssh_config", reboot=True), Progress()
        )
        again.save(tmp_path / "reboot")
        assert not left(host)

        domain.destroy()
        killed = barometer(host)
        until(lambda: left(host) or None, within=120, waiting_for="probes")
        until(lambda: domain.active() or None, within=120, waiting_for="domain")
        killed.kill()
        killed.communicate()
        until(lambda: None if left(host) else True, within=60, waiting_for="an end of the probes")
        assert domain.active()

    on_a_host(shared_trial, monkeypatch, check)


@pytest.mark.full
def test_an_old_kernel_is_profiled_without_the_parts_of_a_map(
    one_trial: RunOne, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(host: Host, _domain: Domain) -> None:
        process = barometer(host, "--save", str(tmp_path / "old"))
        out, err = process.communicate(timeout=600)
        print(out, err)
        assert "all maps of 1GiB BARs" in out
        assert "no-huge-pfnmap" in out
        assert "What a map is spent in is not known" in out
        assert not left(host)

    old = 'arms.baseline.kernel={deb="linux-image-cloud-amd64", suite="bookworm"}'
    on_a_host(one_trial, monkeypatch, check, old)
