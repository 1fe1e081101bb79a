"""Sessions of a metal host: real keeper, made-up machine (metals.py), boots only of files."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import ArmFailedError, BarometerError, BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.machine.host import kernelwatch
from orchestrator.machine.host.host import explained_by_the_host
from orchestrator.machine.metal import metal
from orchestrator.machine.metal.boots import read_running_kernel
from orchestrator.machine.metal.keeper import Keeper, LeftError
from orchestrator.machine.metal.leasing import detect_accel
from orchestrator.machine.metal.metal import survey_metal
from orchestrator.machine.tracing.armer import TRACEFS
from orchestrator.machine.tracing.profiler import INSTANCE
from orchestrator.machine.transport.remote import Link
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.agents.keeper.machines import RELEASE, THP, VERSION
from tests.unit.machine.metals import (
    DEVICE,
    NEW,
    OLD,
    SECONDS,
    FakeLink,
    Lab,
    append,
    bundle,
    changed,
    lives,
    metal_spec,
    wait_for,
)

UPGRADED = "6.12.200-amd64"


# -- a boot ----------------------------------------------------------------------------------


def test_machine_is_as_it_was_after_two_kernels_and_a_device(lab: Lab) -> None:
    before = lab.machine.state()
    with lab.leased() as machine:
        for arm, release in (("baseline", OLD), ("candidate", NEW)):
            with machine.boot(cast(ArmName, arm), [], lab.trial()) as host:
                assert (host.release, read_running_kernel(host.shell).release) == (
                    release,
                    release,
                )
                assert (host.cpus, host.kvm, host.accel, host.is_ours) == (8, False, "none", False)
                host.change.write(THP, "always")
                place = lab.machine.made.root / f"lib/modules/{release}"
                assert (place / "modules.order").read_text() == "kernel/fs/ext4.ko\n"
    assert lab.machine.booted == ["kexec", "kexec", "kexec"]
    assert lab.machine.state() == before


def test_modules_of_a_release_that_the_machine_has_are_mounted_for_each_trial(
    lab: Lab, tmp_path: Path
) -> None:
    before = lab.machine.state()
    lab.kernels["candidate"] = bundle(tmp_path / "own", RELEASE)
    staged = lab.machine.made.root / f"lib/modules/{RELEASE}/modules.order"
    with lab.leased() as machine:
        for _ in range(2):  # both in one boot
            with machine.boot("candidate", [], lab.trial()):
                assert staged.read_text() == "kernel/fs/ext4.ko\n"
            assert not staged.exists()
    assert lab.machine.booted == ["kexec", "kexec"]
    assert lab.machine.state() == before


def test_command_line_is_the_machines_own_and_what_is_added(lab: Lab) -> None:
    own = (
        "BOOT_IMAGE=/vmlinuz initrd=/i.img root=/dev/x ro panic=-1 rd.shell=1 rd.emergency=halt"
        " quiet barometer.x=1"
    )
    lab.machine.made.file("/proc/cmdline", f"{own}\n")
    with lab.leased(metal_spec(cmdline="iommu=pt")) as machine:
        trial = lab.boot(machine, "baseline", "nosmt", "vfio.x=1")
        *words, pt = lab.machine.cmdline.split()
        token = trial.manifest.token
        assert [*words, pt] == [
            "root=/dev/x", "ro", "quiet", "barometer.x=1", "panic=10", "rd.shell=0",
            "rd.emergency=reboot", f"barometer.token={token}", "nosmt", "vfio.x=1", "iommu=pt",
        ]  # fmt: skip
        facts = trial.manifest
        assert facts.host_cmdline == lab.machine.cmdline
        assert facts.release == OLD
        assert facts.boot_id == read_running_kernel(machine.shell).boot_id
        assert facts.host_session_seconds is not None


def test_lease_is_as_long_as_before_once_the_machine_is_back(lab: Lab) -> None:
    """It is extended by the longest time that a boot may take."""
    with lab.leased(metal_spec(deadline=600, lease=120)) as machine:
        for outcome in ("own", "up"):
            lab.machine.coming = [outcome]
            with contextlib.suppress(ArmFailedError):
                lab.boot(machine, "baseline")
            (held,) = machine.keeper.status()["leases"]
            assert 60 < held["left"] <= 120
        assert lab.machine.asked.count("confirm") == 2


def test_kernel_that_reports_another_release_is_the_benchs_failure(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.machine.coming = ["other-release"]
        with pytest.raises(BenchError, match=rf"runs {OLD}-no, planned was {OLD}") as caught:
            lab.boot(machine, "baseline")
        assert caught.value.reason == "wrong-kernel"
    assert lab.machine.release == RELEASE


def test_kernel_that_cannot_kexec_is_left_by_way_of_the_machines_own(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.machine.coming = ["no-kexec"]
        lab.boot(machine, "baseline")
        lab.boot(machine, "candidate")
        assert lab.machine.booted == ["kexec", "reboot", "kexec"]
    assert "by way of its own" in lab.said()


@pytest.mark.parametrize("how", ["kexec", "grub"])
def test_way_is_the_one_that_is_asked_for(lab: Lab, how: str) -> None:
    with lab.leased(metal_spec(boot=how)) as machine:
        assert machine.boots.way == how
        lab.boot(machine, "baseline")
    home = {"kexec": "kexec", "grub": "reboot"}[how]
    assert lab.machine.booted == [how, home]


def test_without_kexec_the_boot_loader_is_taken(lab: Lab) -> None:
    (lab.machine.made.root / "fakes/kexec").unlink()
    with lab.leased() as machine:
        assert machine.boots.way == "grub"


@pytest.mark.parametrize(
    ("boot", "expected"),
    [("kexec", ["kexec: the machine has no kexec(8)"]),
     ("auto", ["kexec: the machine has no kexec(8)", "grub: there is no grub.cfg",
               "systemd-boot: the machine has no bootctl"])],
)  # fmt: skip
def test_machine_without_a_way_to_boot_says_why_and_is_left_as_it_was(
    lab: Lab, boot: str, expected: list[str]
) -> None:
    for name in ("fakes/kexec", "fakes/bootctl", "boot/grub/grub.cfg"):
        (lab.machine.made.root / name).unlink()
    before = lab.machine.state()
    with pytest.raises(BenchError) as caught, lab.leased(metal_spec(boot=boot)):
        pass
    assert caught.value.reason == "no-way-to-boot"
    lines = caught.value.evidence.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))
    assert lab.machine.state() == before


def test_watchdog_is_a_free_one_whose_driver_the_kernel_has(lab: Lab) -> None:
    busy = {"device": "watchdog0", "driver": "igb", "why": "watchdog0 is active"}
    other = {"device": "watchdog1", "driver": "iTCO_wdt", "why": ""}
    right = {"device": "watchdog2", "driver": "igb", "why": ""}
    with lab.leased(staged=False) as machine:
        kernel = lab.kernels["baseline"]
        machine.spec = metal_spec(deadline=600)
        assert machine._watchdog([busy, other, right], kernel) == ("watchdog2", 300)
        assert machine._watchdog([busy], kernel) == ("", 0)
        assert machine._watchdog([busy, other], kernel) == ("", 0)
    assert f"no watchdog over this boot: {kernel.release} has no iTCO_wdt" in lab.said()


def test_machine_on_which_a_domain_is_profiled_is_left_alone(lab: Lab) -> None:
    lab.machine.made.file(f"{TRACEFS}/instances/{INSTANCE}/trace", "")
    before = lab.machine.state()
    with pytest.raises(BenchError, match="`barometer profile` is at work there"), lab.leased():
        pass
    assert lab.machine.state() == before


# -- sessions --------------------------------------------------------------------------------


def test_trials_of_one_arm_share_its_boot(lab: Lab) -> None:
    with lab.leased() as machine:
        first, second = lab.boot(machine, "baseline"), lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec"]
        keys = {"token", "boot_id", "release", "host_cmdline", "host_session_seconds"}
        facts = [trial.manifest.model_dump(include=keys) for trial in (first, second)]
        assert facts[0] == facts[1]
        assert None not in facts[0].values()
        third = lab.boot(machine, "candidate")
        assert lab.machine.booted == ["kexec", "kexec"]
        assert third.manifest.token != first.manifest.token


def test_each_trial_has_a_boot_of_its_own_where_that_is_asked_for(lab: Lab) -> None:
    with lab.leased() as machine:
        machine.spec = machine.spec.model_copy(update={"fresh_boots": True})
        first, second = lab.boot(machine, "baseline"), lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]
        assert first.manifest.token != second.manifest.token


def test_trial_that_failed_is_the_last_of_its_boot(lab: Lab) -> None:
    with lab.leased() as machine:
        with pytest.raises(ZeroDivisionError), machine.boot("baseline", [], lab.trial()):
            raise ZeroDivisionError
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]


def test_machine_that_was_booted_meanwhile_is_booted_again(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        lab.machine.power_on()
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]


def test_change_that_could_not_be_put_back_ends_the_sharing_of_a_boot(lab: Lab) -> None:
    with lab.leased() as machine:
        with machine.boot("baseline", [], lab.trial()):
            changed(machine)
            place = lab.machine.made.root / THP[1:]
            place.unlink()
            place.mkdir()  # makes it unwritable
        assert lab.machine.asked[-1] == "putback volatile"
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]


def test_connection_that_was_lost_ends_the_sharing_of_a_boot(lab: Lab) -> None:
    with lab.leased() as machine:
        with machine.boot("baseline", [], lab.trial()):
            changed(machine)
            lab.machine.cut()
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]


def test_what_a_trial_changed_is_put_back_before_the_next(lab: Lab) -> None:
    with lab.leased() as machine:
        with machine.boot("baseline", [], lab.trial()):
            changed(machine)
            assert lab.machine.made.text(THP) == "always\n"
        assert lab.machine.made.text(THP) == "defer\n"
        with machine.boot("baseline", [], lab.trial()):
            assert lab.machine.made.text(THP) == "defer\n"


def test_host_is_alive_over_a_lost_connection_and_not_under_another_boot(lab: Lab) -> None:
    with lab.leased() as machine, machine.boot("baseline", [], lab.trial()) as host:
        assert host.is_alive()
        lab.machine.cut()
        assert host.is_alive()
        lab.machine.power_on()
        assert not host.is_alive()
        with pytest.raises(ArmFailedError, match="ended by itself"):
            host.check()
        with pytest.raises(BenchError, match="in no QEMU that could be asked 'info mtree'"):
            host.monitor("info mtree")


@pytest.mark.parametrize(
    ("refusing", "reason"),
    [(["host-wrong-host-key"], "host-wrong-host-key"), (["host-no-ssh"] * 1000, "machine-lost")],
)
def test_machine_that_is_lost_or_another_is_not_charged_to_the_arm(
    lab: Lab, refusing: list[str], reason: str
) -> None:
    with lab.leased() as machine, machine.boot("baseline", [], lab.trial()) as host:
        lab.machine.cut()
        lab.machine.refusing = refusing
        with pytest.raises(BenchError) as caught, explained_by_the_host(host):
            raise BenchError("the SSH connection was lost", reason=Reason.HOST_SSH_LOST)
        assert caught.value.reason == reason
        lab.machine.refusing = []


def test_kernels_that_oops_while_modules_are_loaded_fail_their_arm(
    lab: Lab, tmp_path: Path
) -> None:
    console = tmp_path / "sol"
    console.write_text("[ 1.0] fine\n")
    with lab.leased(metal_spec(console=f"/usr/bin/tail -n +1 -f {console}")) as machine:

        def oopses() -> None:
            append(console, "[ 9.0] Oops: 0000 [#1] SMP\n")
            wait_for(lambda: "Oops" in (lab.scratch / "console").read_text())
            lab.machine.cut()

        lab.machine.before["modules"] = oopses
        lab.machine.made.file("/fakes/modprobe", "#!/bin/sh\nexit 1\n", 0o755)
        with pytest.raises(ArmFailedError) as caught:
            lab.boot(machine, "baseline")
        assert caught.value.reason == "host-panic"


def test_machine_with_a_hung_task_and_idle_processors_ends_the_trial_and_is_booted_again(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernelwatch, "_TICK_SECONDS", 0.01)
    monkeypatch.setattr(kernelwatch, "_IDLE_SECONDS", 0.1)
    monkeypatch.setattr(kernelwatch, "_OLD_SECONDS", 0.0)
    line = "[  400.000000] INFO: task rmmod:340 blocked for more than 122 seconds."
    console = tmp_path / "sol"
    console.write_text("[    1.000000] fine\n")
    with lab.leased(metal_spec(console=f"/usr/bin/tail -n +1 -f {console}")) as machine:
        with machine.boot("baseline", [], lab.trial()) as host:
            assert "busy" not in lab.machine.asked
            lab.machine.made.file("/proc/stat", "cpu  100 0 100 9 9 0 0 0 0 0\n")
            append(console, f"{line}\n")
            wait_for(lambda: not host.shell.alive())
            with pytest.raises(BenchError) as caught, explained_by_the_host(host):
                host.shell.run("true")
        assert caught.value.reason == "host-hung-task"
        assert line in caught.value.evidence
        assert "busy" in lab.machine.asked
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]
    assert lab.machine.release == RELEASE


def test_host_without_a_console_has_its_messages_as_they_come(lab: Lab) -> None:
    with lab.leased() as machine:
        trial = lab.boot(machine, "baseline")
    assert "dmesg --follow --nopager" in lab.machine.ran
    assert (trial.host / "console.log").read_text() == (
        "[    0.000000] Linux version\n[    1.5] up\n"
    )


def test_console_of_a_trial_begins_with_its_boot(lab: Lab, tmp_path: Path) -> None:
    console = tmp_path / "sol"
    console.write_text("firmware\n")
    with lab.leased(metal_spec(console=f"/usr/bin/tail -n +1 -f {console}")) as machine:
        wait_for((lab.scratch / "console").read_text)

        def speaks() -> None:
            append(console, "[ 0.0] Linux\n")
            wait_for(lambda: "Linux" in (lab.scratch / "console").read_text())

        lab.machine.before["boot kexec"] = speaks
        trial = lab.trial()
        with machine.boot("baseline", [], trial) as host:
            assert host.console.text() == "[ 0.0] Linux\n"
        assert (trial.host / "console.log").read_text() == "[ 0.0] Linux\n"


def test_console_that_was_taken_over_is_said_and_there_for_the_next_boot(
    lab: Lab, tmp_path: Path
) -> None:
    pids, console = tmp_path / "pids", tmp_path / "sol"
    script = f"echo $$ >> {pids}; echo taken over >&2; exec /usr/bin/tail -n 0 -f {console}"
    console.touch()
    with lab.leased(metal_spec(console=f"/bin/sh -c {shlex.quote(script)}")) as machine:
        lab.boot(machine, "baseline")
        assert "host.console" not in lab.said()
        wait_for(lambda: pids.exists() and pids.read_text())
        (pid,) = map(int, pids.read_text().split())
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not lives(pid))
        lab.boot(machine, "candidate")
        assert "ended with exit code -9 (taken over): some of what the machine" in lab.said()
        wait_for(lambda: len(pids.read_text().split()) == 2)
        again = int(pids.read_text().split()[-1])
        assert lives(again)
        lab.boot(machine, "baseline")
        assert "host.console" not in lab.said()


def test_link_and_errors_are_those_of_the_machine(lab: Lab) -> None:
    with lab.leased() as machine:
        assert isinstance(machine.boots.link, Link)
        assert str(machine.boots.endpoint) == "gpu1"
        lab.machine.is_off = True
        lab.machine.cut()
        with pytest.raises(BarometerError, match="no SSH server answers"):
            _ = machine.shell
        lab.machine.is_off = False


# -- a kernel that does not come up ----------------------------------------------------------


PANICKED = "[ 2.0] fine\n[ 2.5] Kernel panic - not syncing: VFS: no root\n"


def test_kernel_that_panics_fails_with_its_consoles_last_words(lab: Lab, tmp_path: Path) -> None:
    console = tmp_path / "sol"
    console.write_text("[ 0.5] Oops: of a boot before\n")
    with lab.leased(metal_spec(console=f"/usr/bin/tail -n +1 -f {console}")) as machine:
        wait_for(lambda: "Oops" in (lab.scratch / "console").read_text())

        def panics() -> None:
            append(console, PANICKED)
            wait_for(lambda: "panic" in (lab.scratch / "console").read_text())

        lab.machine.coming = ["own"]
        lab.machine.before["boot kexec"] = panics
        trial = lab.trial()
        with pytest.raises(ArmFailedError) as caught, machine.boot("baseline", [], trial):
            pass
    assert caught.value.reason == "host-panic"
    assert caught.value.message == (
        f"the host's kernel {OLD} does not boot: Kernel panic - not syncing: VFS: no root"
    )
    assert caught.value.evidence == PANICKED.strip()
    assert (trial.host / "console.log").read_text() == PANICKED


def test_last_words_without_a_console_are_those_that_the_keeper_found(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lab.machine.leaves

    def panics(request: Any) -> None:
        real(request)
        time.sleep(0.02)  # the record is younger than the command to boot
        lab.machine.made.file("/sys/fs/pstore/dmesg-erst-1", PANICKED)

    monkeypatch.setattr(lab.machine, "leaves", panics)
    with lab.leased() as machine:
        lab.machine.coming = ["own"]
        trial = lab.trial()
        with pytest.raises(ArmFailedError) as caught, machine.boot("baseline", [], trial):
            pass
    assert (caught.value.reason, caught.value.hint) == ("host-panic", "")
    assert caught.value.evidence == PANICKED.strip()
    assert (trial.host / "console.log").read_text() == PANICKED


@pytest.mark.parametrize("refused", [False, True])
def test_kernel_without_last_words_is_said_to_need_a_console(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    def nothing(keeper: Keeper) -> str:
        if refused:
            raise BenchError("no space left", reason=Reason.OS_ERROR)
        return ""

    monkeypatch.setattr(Keeper, "last_words", nothing)
    with lab.leased() as machine:
        lab.machine.coming = ["own"]
        with pytest.raises(ArmFailedError) as caught:
            lab.boot(machine, "baseline")
    assert caught.value.reason == "host-no-boot"
    assert f"is back on {RELEASE}" in caught.value.message
    assert caught.value.hint == "host.console gives its last words"


def test_run_goes_on_after_a_kernel_that_did_not_come_up(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.machine.coming = ["own"]
        with pytest.raises(ArmFailedError):
            lab.boot(machine, "baseline")
        assert lab.boot(machine, "candidate").manifest.release == NEW


# -- leases ----------------------------------------------------------------------------------


def test_what_an_earlier_run_left_is_put_back_before_the_machine_is_leased_again(
    lab: Lab,
) -> None:
    before = lab.machine.state()
    lab.killed()
    with lab.leased() as machine:
        assert lab.put_back_steps()[-1] == "release"
        assert lab.machine.asked.count("acquire") == 3  # refused; takeover; after the release
        assert lab.machine.release == RELEASE
        assert "host: an earlier run left gpu1 changed" in lab.said()
        lab.boot(machine, "candidate")
    assert lab.machine.state() == before


def test_recover_puts_back_by_a_restart_and_needs_no_console(lab: Lab) -> None:
    before = lab.machine.state()
    lab.killed()
    assert lab.recover(metal_spec(console="/no/such/program")) is True
    assert lab.machine.booted == ["reboot"]
    assert lab.machine.state() == before
    assert lab.recover() is False
    assert lab.machine.state() == before


def test_recover_cycles_the_power_only_where_it_is_told_to(lab: Lab) -> None:
    before = lab.machine.state()
    lab.killed()
    lab.machine.is_off = True
    spec = metal_spec(power_cycle="ipmitool power cycle")
    with pytest.raises(BenchError) as caught:
        lab.recover(spec)
    assert caught.value.reason == "machine-lost"
    assert lab.cycled == []
    assert lab.recover(spec, power_cycle=True) is True
    assert lab.cycled == [["ipmitool", "power", "cycle"]]
    assert lab.machine.state() == before


RUBBISH = b"\0\0\0\n"


def damaged(lab: Lab, content: bytes = RUBBISH) -> None:
    path = lab.machine.made.root / "var/lib/barometer/journal.jsonl"
    path.write_bytes(path.read_bytes() + content)


def test_recover_puts_back_what_it_can_read_and_names_the_rest(lab: Lab) -> None:
    before = lab.machine.state()
    lab.killed()
    damaged(lab)
    kept = "/var/lib/barometer/set-aside/journal.jsonl.1"
    for _ in range(2):  # until somebody removes it
        with pytest.raises(LeftError) as caught:
            lab.recover()
        assert (caught.value.reason, caught.value.exit_code) == ("unreadable", 4)
        assert kept in caught.value.evidence
        assert "set-aside" in caught.value.hint
        assert lab.machine.release == RELEASE
        assert lab.machine.made.text(THP) == "defer\n"
    shutil.rmtree(lab.machine.made.root / "var/lib/barometer")
    assert lab.recover() is False
    assert lab.machine.state() == before


def test_run_goes_on_after_a_journal_that_was_damaged_and_says_where_it_is(lab: Lab) -> None:
    lab.killed()
    damaged(lab)
    with lab.leased() as machine:
        assert "/var/lib/barometer/set-aside/journal.jsonl.1" in lab.said()
        lab.boot(machine, "candidate")
    assert lab.machine.made.text(THP) == "defer\n"


def test_journal_that_is_damaged_in_a_run_ends_the_sharing_of_a_boot(lab: Lab) -> None:
    with lab.leased() as machine:
        with machine.boot("baseline", [], lab.trial()):
            changed(machine)
            damaged(lab)
        lab.boot(machine, "baseline")
        assert lab.machine.booted == ["kexec", "kexec"]


def test_recover_puts_back_all_but_a_kernel_that_cannot_be_booted(lab: Lab) -> None:
    lab.killed()
    upgraded(lab)
    with pytest.raises(LeftError) as caught:
        lab.recover()
    assert (caught.value.reason, caught.value.exit_code) == ("wrong-kernel", 4)
    assert lab.machine.made.text(THP) == "defer\n"
    status = lab.machine.made.done("status")
    assert [entry["kind"] for entry in status["journal"]] == ["kernel"]


def upgraded(lab: Lab) -> None:
    """Make another kernel the default, and leave no way to boot the original one."""
    lab.machine.default = (UPGRADED, VERSION)
    for name in ("fakes/kexec", "fakes/bootctl", "boot/grub/grub.cfg"):
        (lab.machine.made.root / name).unlink()


def test_recover_keeps_the_kernel_that_the_machine_has_by_now(lab: Lab) -> None:
    lab.killed()
    upgraded(lab)
    with pytest.raises(BenchError) as caught:
        lab.recover()
    assert caught.value.reason == "wrong-kernel"
    assert caught.value.hint.endswith("keep this one: barometer recover gpu1 --keep-kernel")
    lab.runner_has_ended()
    assert lab.recover(keep_kernel=True) is True
    assert lab.machine.release == UPGRADED
    assert not (lab.machine.made.root / "var/lib/barometer").exists()


def test_recover_keeps_no_kernel_of_barometers(lab: Lab) -> None:
    before = lab.machine.state()
    lab.killed()
    assert lab.recover(keep_kernel=True) is True
    assert lab.machine.booted == ["reboot"]
    assert lab.machine.state() == before


def journal_lost(lab: Lab) -> None:
    lab.killed()
    shutil.rmtree(lab.machine.made.root / "var/lib/barometer")


def test_recover_says_what_it_did_to_a_machine_without_its_journal(lab: Lab) -> None:
    journal_lost(lab)
    assert lab.recover() is True
    assert lab.machine.booted == ["reboot"]
    assert lab.machine.release == RELEASE
    assert f"it runs barometer's {OLD}, and its journal is lost: restarting" in lab.said()
    assert lab.recover() is False


def test_machine_that_restarts_into_a_kernel_of_barometers_is_not_released(lab: Lab) -> None:
    journal_lost(lab)
    lab.machine.coming = ["same"]
    with pytest.raises(BenchError, match=f"runs barometer's {OLD} after a restart") as caught:
        lab.recover()
    assert caught.value.reason == "wrong-kernel"
    assert "release" not in lab.machine.asked


def test_machine_without_its_journal_is_looked_at_under_its_own_kernel(lab: Lab) -> None:
    journal_lost(lab)
    with lab.held():
        assert lab.machine.release == RELEASE
        assert "an earlier run left gpu1 changed" in lab.said()


def test_connection_of_a_lease_that_is_not_renewed_is_made_anew(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[FakeLink] = []

    def link(*how: Any, **more: Any) -> FakeLink:
        links.append(FakeLink(lab.machine))
        return links[-1]

    monkeypatch.setattr("orchestrator.machine.transport.remote.Link", link)
    with lab.leased(staged=False) as machine:
        commands, beat = links
        ours, first = commands.shell(), beat.shell()
        machine.lease._close()
        assert beat.shell() is not first
        assert commands.shell() is ours


@pytest.mark.parametrize(
    "reason", [Reason.HOST_SSH_LOST, Reason.HOST_NO_SSH, Reason.HOST_NO_LOGIN]
)
def test_machine_that_goes_down_while_it_is_leased_is_leased_after(
    lab: Lab, reason: Reason
) -> None:
    before = lab.machine.state()

    def goes_down() -> None:
        lab.machine.power_on()
        raise BenchError("not now", reason=reason)

    lab.machine.before["acquire"] = goes_down
    with lab.leased(metal_spec(deadline=SECONDS), staged=False):
        assert lab.machine.asked.count("acquire") == 2
    assert lab.machine.state() == before


def test_refusal_of_a_lease_for_another_reason_is_not_waited_out(lab: Lab) -> None:
    def refuses() -> None:
        raise BenchError("the record is damaged", reason=Reason.ORIGINAL_DAMAGED)

    lab.machine.before["acquire"] = refuses
    began = time.monotonic()
    with pytest.raises(BenchError, match="damaged"), lab.leased(metal_spec(deadline=600)):
        pass
    assert time.monotonic() - began < SECONDS


def test_machine_that_another_holds_is_not_touched(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        with pytest.raises(BenchError, match="is held by") as caught, lab.leased():
            pass
        assert caught.value.reason == "lease-held"
        assert lab.machine.booted == ["kexec"]
        assert lab.machine.release == OLD


def test_nothing_is_booted_or_staged_once_the_lease_is_lost(lab: Lab) -> None:
    with lab.leased() as machine:
        machine.lease._lost = BenchError("it is another's", reason=Reason.LEASE_LOST)
        lab.machine.ran.clear()
        with pytest.raises(BenchError, match="it is another's"):
            lab.boot(machine, "baseline")
        with pytest.raises(BenchError, match="it is another's"):
            machine.stage(cast(Any, lab.kernels), {}, Cache(lab.scratch / "cache"))
        assert lab.machine.booted == []
        assert not any("tar" in command for command in lab.machine.ran)


def test_nothing_is_put_onto_a_machine_without_room(lab: Lab) -> None:
    lab.machine.made.file("/room", "1024\n")
    before = lab.machine.state()
    with pytest.raises(BenchError, match="/var/lib has 1 MiB of room") as caught, lab.leased():
        pass
    assert caught.value.reason == "disk-full"
    assert not any("tar" in command for command in lab.machine.ran)
    assert lab.machine.state() == before


def test_what_is_put_onto_a_machine_is_in_the_folder_of_its_lease(lab: Lab) -> None:
    with lab.leased() as machine:
        folder = f"/var/lib/barometer/{machine.keeper.token}"
        assert machine.staged["baseline"].vmlinuz == f"{folder}/baseline/vmlinuz"
        assert machine.staged["candidate"].initramfs == f"{folder}/candidate/initramfs"
        with machine.boot("baseline", [], lab.trial()) as host:
            assert host.payload == f"{folder}/payload"
        assert lab.machine.made.text(f"{folder}/payload/agents/x.py") == "pass\n"


def test_machine_without_systemd_is_said_to_have_no_switch(lab: Lab) -> None:
    (lab.machine.made.root / "run/systemd/system").rmdir()
    with lab.leased(staged=False):
        assert "no systemd, so nothing restarts it" in lab.said()


def test_dead_mans_switch_waits_a_third_of_the_deadline(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Keeper, "deadman", lambda self, seconds: asked.append(seconds))
    for deadline in (30, 600):
        with lab.leased(metal_spec(deadline=deadline), staged=False):
            pass
    assert asked == [60, 200]


def test_switch_that_cannot_be_installed_otherwise_is_an_error(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(keeper: Keeper, seconds: int) -> None:
        raise BenchError("no space left", reason=Reason.OS_ERROR)

    before = lab.machine.state()
    monkeypatch.setattr(Keeper, "deadman", refuses)
    with pytest.raises(BenchError, match="no space left"), lab.leased():
        pass
    assert lab.machine.state() == before


# -- before it is changed --------------------------------------------------------------------


def test_machine_that_is_looked_at_is_nobody_elses_and_is_left_as_it_was(lab: Lab) -> None:
    def looks() -> None:
        with lab.held() as machine:
            assert read_running_kernel(machine.shell).release == RELEASE
            with pytest.raises(BenchError, match=r"is held by.*a run") as caught, lab.held():
                pass
            assert caught.value.reason == "lease-held"
            raise ZeroDivisionError

    before = lab.machine.state()
    with pytest.raises(ZeroDivisionError):
        looks()
    assert lab.machine.asked[-1] == "release"
    assert lab.machine.state() == before


def test_machine_is_put_back_before_it_is_looked_at(lab: Lab) -> None:
    before = lab.machine.state()
    lab.killed()
    with lab.held() as machine:
        assert read_running_kernel(machine.shell).release == RELEASE
        assert lab.machine.made.text(THP) == "defer\n"
        assert "host: an earlier run left gpu1 changed" in lab.said()
        with pytest.raises(BenchError, match=r"is held by.*a run"), lab.held():
            pass
    assert lab.machine.state() == before


def test_device_is_the_one_of_the_survey_and_bound_by_the_keeper(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyed, asked = metal.MetalSurvey("0000:3b:00.0", ("no reset",)), []

    def hostdev(*how: Any, trial: Any) -> str:
        asked.append((*how, trial))
        return "bound"

    monkeypatch.setattr(metal, "survey_metal", lambda *_: surveyed)
    monkeypatch.setattr(metal, "bind_hostdev", hostdev)
    with lab.held() as machine:
        assert [*machine.survey()] == ["device: 0000:3b:00.0", "no reset"]
        assert machine.choose_accel() == ("none", "a real machine")
        trial, host = lab.trial(), cast(Any, SimpleNamespace(shell="its shell"))
        assert machine.bind_devices(host, trial) == cast(Any, ("bound",))
    assert asked == [(host, "0000:3b:00.0", DEVICE.bar, trial)]


def test_one_lease_lasts_from_the_first_look_to_the_end_of_the_run(lab: Lab) -> None:
    before = lab.machine.state()
    with lab.held() as machine:
        token = machine.keeper.token
        machine.provide(cast(Any, lab.kernels), None, None, Cache(lab.scratch / "cache"))
        assert "original" not in lab.machine.asked
        machine.begin_changes()
        machine.stage(cast(Any, lab.kernels), {}, Cache(lab.scratch / "cache"))
        lab.boot(machine, "baseline")
        assert machine.keeper.token == token
    assert lab.machine.asked.count("acquire") == lab.machine.asked.count("release") == 1
    assert lab.machine.state() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_machine_that_goes_down_before_it_is_changed_hides_no_error(
    lab: Lab, error: type[BaseException]
) -> None:
    def goes_down() -> None:
        with lab.held(metal_spec(deadline=600)):
            lab.machine.is_off = True
            lab.machine.cut()
            raise error

    began = time.monotonic()
    with pytest.raises(error):
        goes_down()
    assert time.monotonic() - began < SECONDS
    assert "host: its lease is left to expire" in lab.said()


def test_machine_is_put_back_if_the_changes_were_only_begun(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(keeper: Keeper, seconds: int) -> None:
        raise KeyboardInterrupt

    before = lab.machine.state()
    monkeypatch.setattr(Keeper, "deadman", interrupted)
    with pytest.raises(KeyboardInterrupt), lab.leased():
        pass
    assert lab.put_back_steps() == ["putback volatile", "putback", "kernel_restored", "release"]
    assert lab.machine.state() == before


@pytest.mark.parametrize(
    ("cpuinfo", "accel"),
    [
        ("model name\t: QEMU TCG CPU version 2.5+\nflags : fpu hypervisor\n", "tcg"),
        ("model name\t: Xeon\nflags : fpu vmx hypervisor lahf\n", "kvm"),
        ("model name\t: Xeon\nflags : fpu vmx\n", "none"),
        ("", "none"),
    ],
)
def test_machine_that_is_emulated_is_known(lab: Lab, cpuinfo: str, accel: str) -> None:
    lab.machine.made.file("/proc/cpuinfo", cpuinfo)
    found, reason = detect_accel(lab.machine.connect())
    assert found == accel
    assert reason


def test_this_machine_is_refused(lab: Lab) -> None:
    own = Path("/proc/sys/kernel/random/boot_id").read_text()
    lab.machine.made.file("/proc/sys/kernel/random/boot_id", own)
    with pytest.raises(BenchError, match="gpu1 is this machine") as caught:
        survey_metal(lab.machine.connect(), metal_spec(), DEVICE)
    assert caught.value.reason == "host-is-runner"


def test_kernel_that_cannot_start_the_machine_is_said_with_its_arm(lab: Lab) -> None:
    (lab.kernels["candidate"].modules / "modules.dep").write_text("")
    shell = lab.machine.connect()
    with pytest.raises(ScenarioError, match=r"^arms\.candidate\.kernel: ") as caught:
        metal.check_kernels(shell, cast(Any, lab.kernels))
    assert "vfio_pci" in caught.value.message
    (lab.machine.made.root / "programs/mkinitramfs").unlink()
    with pytest.raises(BenchError) as missing:
        metal.check_kernels(shell, {})
    assert missing.value.reason == "no-initramfs-tool"


def test_evidence_is_of_the_boot_that_failed() -> None:
    own = "[    0.000000] Linux version 6.12\nCommand line: root=/dev/vda1\n"
    bad = "[    0.000000] Linux version 7.3\nCommand line: barometer.token=ab12 ro\nthe end\n"
    assert metal._cut_to_boot(own + bad + own, "ab12") == bad
    assert metal._cut_to_boot("no word of any kernel", "ab12") == "no word of any kernel"
