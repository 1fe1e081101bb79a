"""Boots of a metal host and its way home: real keeper, made-up machine (metals.py)."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import ArmFailedError, BenchError
from orchestrator.base.reasons import Reason
from orchestrator.machine.metal.boots import Running, read_running_kernel
from orchestrator.machine.metal.keeper import TTL, Keeper
from orchestrator.machine.metal.metal import MetalMachine
from orchestrator.machine.transport.shell import Completed
from tests.unit.agents.keeper.machines import RELEASE, VERSION
from tests.unit.machine.metals import OLD, SECONDS, Lab, append, changed, metal_spec

UPGRADED = "6.12.200-amd64"


# -- what runs -------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1).filter(lambda t: not any(c.isspace() for c in t)), max_size=6))
def test_token_is_that_of_the_command_line(words: list[str]) -> None:
    others = [w for w in words if not w.startswith("barometer.token=")]
    assert Running("", "", "", " ".join(others)).token == ""
    assert Running("", "", "", " ".join([*others, "barometer.token=7=x"])).token == "7=x"


def test_machine_that_says_nothing_runs_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = lab.machine.connect()
    monkeypatch.setattr(shell, "run", lambda *_, **__: Completed("a-boot\n", "", 0))
    assert read_running_kernel(shell) == Running("a-boot", "", "", "")


def test_what_runs_is_known_down_to_its_build(lab: Lab) -> None:
    assert read_running_kernel(lab.machine.connect()) == Running(
        lab.machine.made.text("/proc/sys/kernel/random/boot_id").strip(), RELEASE, VERSION,
        lab.machine.made.text("/proc/cmdline").strip(),
    )  # fmt: skip


# -- the way back ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        "host-unknown-host-key",
        "host-wrong-host-key",
        "host-no-login",
        "host-no-root",
        "host-no-name",
        "host-no-proxy",
    ],
)
def test_login_that_no_waiting_mends_ends_the_wait_at_once(lab: Lab, reason: str) -> None:
    lab.machine.refusing = [reason] * 1000
    began = time.monotonic()
    with pytest.raises(BenchError) as caught, lab.leased(metal_spec(deadline=600)):
        pass
    assert caught.value.reason == reason
    assert time.monotonic() - began < SECONDS
    assert lab.machine.asked == []


def test_login_that_was_let_in_before_is_refused_while_the_machine_boots(lab: Lab) -> None:
    """pam_nologin(8) refuses any user but root, even one who has sudo."""
    with lab.leased(metal_spec(deadline=600)) as machine:
        lab.machine.before["boot kexec"] = lambda: lab.machine.refusing.extend(
            ["host-no-login", "host-no-ssh", "host-no-login", "host-no-root"]
        )
        lab.boot(machine, "baseline")
        assert lab.machine.refusing == []
        lab.machine.refusing = ["host-wrong-host-key"]
        machine.boots.link.close()
        with pytest.raises(BenchError) as caught:
            machine.boots.reach()
        assert caught.value.reason == "host-wrong-host-key"


def test_machine_that_does_not_answer_in_time_is_lost(lab: Lab) -> None:
    lab.machine.is_off = True
    with pytest.raises(BenchError) as caught, lab.leased(metal_spec(deadline=0.2)):
        pass
    assert (caught.value.reason, caught.value.message) == (
        "machine-lost", "no answer of gpu1 within 0 s",
    )  # fmt: skip
    assert caught.value.evidence == "gpu1: no SSH server answers"


def test_power_is_cycled_once_and_the_arm_has_failed(lab: Lab) -> None:
    with lab.leased(metal_spec(power_cycle="ipmitool power 'cycle it'")) as machine:
        lab.machine.coming = ["gone"]
        with pytest.raises(ArmFailedError) as caught:
            lab.boot(machine, "baseline")
        assert caught.value.reason == "host-no-boot"
    assert lab.cycled == [["ipmitool", "power", "cycle it"]]
    assert "no answer within 0.3 s; power cycle" in lab.said()


def test_machine_that_no_power_cycle_brings_back_is_lost(lab: Lab) -> None:
    lab.power_helps = False
    with lab.leased(metal_spec(power_cycle="x")) as machine:
        lab.machine.coming = ["gone"]
        with pytest.raises(BenchError, match="after its power was cycled") as caught:
            lab.boot(machine, "baseline")
        assert caught.value.reason == "machine-lost"
        assert lab.cycled == [["x"]]
        lab.machine.power_cycled()


def test_power_of_a_machine_that_was_not_told_to_boot_is_not_cycled(lab: Lab) -> None:
    """A runner that cannot reach the machine does not know whether somebody else uses it."""
    lab.machine.is_off = True
    with pytest.raises(BenchError) as caught, lab.leased(metal_spec(power_cycle="x")):
        pass
    assert caught.value.reason == "machine-lost"
    assert lab.cycled == []


# -- home ------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["same", "gone"])
def test_kexec_that_does_not_lead_home_is_followed_by_a_restart(lab: Lab, outcome: Any) -> None:
    with lab.leased(metal_spec(power_cycle="x")) as machine:
        lab.boot(machine, "baseline")
        lab.machine.coming = [outcome]
    # a power cycle leads home by itself
    assert lab.machine.booted == ["kexec", "kexec", *["reboot"] * (outcome == "same")]
    assert lab.machine.release == RELEASE


def test_own_kernel_that_was_upgraded_meanwhile_is_come_back_to_by_a_restart(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        lab.machine.made.file(f"/boot/vmlinuz-{RELEASE}", "another build")
    assert lab.machine.booted == ["kexec", "kexec", "reboot"]  # the second was refused
    assert lab.machine.release == RELEASE


@pytest.mark.parametrize("default", [(UPGRADED, VERSION), (RELEASE, "#2 SMP")])
def test_machine_whose_default_is_another_by_now_boots_its_own_once(
    lab: Lab, default: tuple[str, str]
) -> None:
    with lab.leased(metal_spec(boot="grub")) as machine:
        lab.boot(machine, "baseline")
        lab.machine.default = default
    assert lab.machine.booted == ["grub", "reboot", "kexec"]
    assert f"its default is {default[0]}, not {RELEASE}" in lab.said()
    assert lab.machine.release == RELEASE
    assert lab.machine.made.text("/proc/sys/kernel/version") == f"{VERSION}\n"
    assert not (lab.machine.made.root / "var/lib/barometer").exists()


def test_own_kernel_is_booted_by_the_boot_loader_where_nothing_can_kexec(lab: Lab) -> None:
    (lab.machine.made.root / "fakes/kexec").unlink()
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        lab.machine.default = (UPGRADED, VERSION)
    assert lab.machine.booted == ["grub", "reboot", "grub"]
    assert lab.machine.release == RELEASE


def test_lease_of_a_machine_that_was_not_put_back_is_as_long_as_before_its_boots(
    lab: Lab,
) -> None:
    def boots(machine: MetalMachine) -> None:
        lab.boot(machine, "baseline")
        lab.machine.before["kernel_restored"] = fails

    def fails() -> None:
        raise BenchError("no space left", reason=Reason.OS_ERROR)

    with pytest.raises(BenchError, match="no space left"):
        lab.run(boots, metal_spec(deadline=600))
    assert lab.machine.booted == ["kexec", "kexec"]
    (held,) = lab.machine.made.done("status")["leases"]
    assert TTL / 2 < held["left"] <= TTL


def test_what_the_keeper_says_of_a_boot_is_said(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "confirm", lambda self: ["the watchdog may restart the machine"])
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        assert "host: the watchdog may restart the machine\n" in lab.said()


def test_machine_that_stays_on_a_kernel_of_barometers_is_not_released(lab: Lab) -> None:
    def boots(machine: MetalMachine) -> None:
        lab.boot(machine, "baseline")
        lab.machine.coming = ["same", "same"]

    with pytest.raises(BenchError) as caught:
        lab.run(boots)
    assert caught.value.reason == "wrong-kernel"
    assert caught.value.message == (
        f"gpu1 runs {OLD} {VERSION}, and was found with {RELEASE} {VERSION}"
    )
    assert "release" not in lab.machine.asked
    lab.runner_has_ended()
    assert lab.recover() is True
    assert lab.machine.release == RELEASE


def test_machine_whose_own_kernel_cannot_be_booted_is_not_released(lab: Lab) -> None:
    def boots(machine: MetalMachine) -> None:
        lab.boot(machine, "baseline")
        lab.machine.made.file(f"/boot/vmlinuz-{RELEASE}", "another build")
        lab.machine.default = (UPGRADED, VERSION)

    with pytest.raises(BenchError) as caught:
        lab.run(boots)
    assert caught.value.reason == "wrong-image"
    assert "release" not in lab.machine.asked


# -- putting back ----------------------------------------------------------------------------


def test_machine_is_put_back_step_by_step(lab: Lab) -> None:
    with lab.leased() as machine:
        lab.boot(machine, "baseline")
        lab.machine.asked.clear()
    assert lab.put_back_steps() == [
        "putback volatile", "boot kexec", "putback", "kernel_restored", "release",
    ]  # fmt: skip


def test_machine_that_was_not_booted_is_not_booted_to_put_it_back(lab: Lab) -> None:
    before = lab.machine.state()
    with lab.leased() as machine:
        changed(machine)
    assert lab.machine.booted == []
    assert lab.machine.state() == before


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_machine_is_put_back_whatever_ended_the_run(lab: Lab, error: type[BaseException]) -> None:
    def ends(machine: MetalMachine) -> None:
        with machine.boot("baseline", [], lab.trial()):
            changed(machine)
            raise error

    before = lab.machine.state()
    with pytest.raises(error):
        lab.run(ends)
    assert lab.machine.state() == before


def test_interrupt_while_a_boot_is_waited_for_puts_the_machine_back(lab: Lab) -> None:
    before = lab.machine.state()
    real = lab.machine.leaves

    def leaves(request: Any) -> None:
        real(request)
        lab.machine.leaves = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    lab.machine.leaves = leaves  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        lab.run(lambda machine: lab.boot(machine, "baseline"))
    assert lab.machine.state() == before


def test_what_could_not_be_put_back_is_named_and_the_lease_is_kept(lab: Lab) -> None:
    place = lab.machine.made.root / "boot/custom"
    mounts = lab.machine.made.root / "proc/self/mounts"
    none = mounts.read_text()

    def changes(machine: MetalMachine) -> None:
        machine.keeper.claim(["/boot/custom"])
        (place / "theirs").mkdir(parents=True)
        append(mounts, "tmpfs /boot/custom/theirs tmpfs rw 0 0\n")

    with pytest.raises(BenchError) as caught:
        lab.run(changes)
    assert caught.value.reason == "not-put-back"
    assert "/boot/custom/theirs is a mount point" in caught.value.evidence
    assert "by hand: remove /boot/custom" in caught.value.evidence
    assert caught.value.hint == "once that is mended: barometer recover gpu1"
    assert "release" not in lab.machine.asked
    mounts.write_text(none)
    lab.runner_has_ended()
    assert lab.recover() is True
    assert lab.recover() is False


def test_boot_that_is_under_way_is_waited_for(lab: Lab) -> None:
    """The runner was interrupted between the command to boot and the boot. systemd has begun."""
    before = lab.machine.state()
    lab.machine.made.file("/running", "stopping\n")
    real = lab.machine.leaves

    def leaves(request: Any) -> None:
        """Interrupt the runner while the machine is still up."""
        lab.machine.leaves = real  # type: ignore[method-assign]
        lab.machine.before["putback volatile"] = later.start
        raise KeyboardInterrupt

    def goes_down() -> None:
        (lab.machine.made.root / "running").write_text("running\n")
        real({**request_of_a_boot(lab), "how": "kexec"})

    later = threading.Timer(0.1, goes_down)
    lab.machine.leaves = leaves  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        lab.run(lambda machine: lab.boot(machine, "baseline"), metal_spec(deadline=SECONDS))
    later.join()
    after = lab.machine.state()
    assert after.pop("running")
    assert after == before
    # it had booted the kernel under test, and was then brought home
    assert lab.machine.booted == ["kexec", "kexec"]


def request_of_a_boot(lab: Lab) -> dict[str, Any]:
    (kernel,) = lab.machine.made.root.glob("var/lib/barometer/*/baseline/vmlinuz")
    return {
        "kernel": f"/{kernel.relative_to(lab.machine.made.root)}",
        "cmdline": lab.machine.cmdline,
    }


@pytest.mark.parametrize("refusing", [[], ["host-no-ssh"] * 3, ["host-no-login"]])
def test_machine_that_goes_down_while_it_is_put_back_is_put_back_after(
    lab: Lab, refusing: list[str]
) -> None:
    before = lab.machine.state()
    with lab.leased(metal_spec(deadline=SECONDS)) as machine:
        lab.boot(machine, "baseline")

        def goes_down() -> None:
            lab.machine.refusing = [*refusing]
            lab.machine.power_on()
            raise BenchError("the SSH connection was lost", reason=Reason.HOST_SSH_LOST)

        lab.machine.asked.clear()
        lab.machine.before["putback volatile"] = goes_down
    assert lab.machine.asked.count("putback volatile") == 2
    assert lab.machine.state() == before
    assert lab.machine.booted == []


def test_error_of_the_keeper_while_putting_back_is_not_waited_out(lab: Lab) -> None:
    def refuses() -> None:
        raise BenchError("the record is damaged", reason=Reason.ORIGINAL_DAMAGED)

    began = time.monotonic()
    with pytest.raises(BenchError) as caught, lab.leased(metal_spec(deadline=600)):
        lab.machine.before["putback volatile"] = refuses
    assert caught.value.reason == "original-damaged"
    assert time.monotonic() - began < SECONDS
