"""Whatever the keeper changed, and wherever it was killed while it changed it or put it back: in
the end the machine is as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from tests.unit.agents.keeper.machines import GPU, HUGE, NIC, RELEASE, THP, Machine, made_up
from tests.unit.agents.loading import AGENTS
from tests.unit.examples import NUMBER, share

KILLED = 9
STEP = 3700 // NUMBER
"""Lines from one kill to the next, for the test that goes through them in order."""
SOURCE = str(AGENTS / "keeper")


def killed_at(line: int, do: Callable[[], object]) -> bool:
    """Run `do` in a process that is killed before the keeper's line number `line` runs. Return
    False if fewer lines run."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, KILLED)
        return code == KILLED
    left = [line]

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if what == "line":
            left[0] -= 1
            if left[0] < 0:
                os._exit(KILLED)
        return trace

    try:
        sys.settrace(trace)
        do()
        os._exit(0)
    finally:
        os._exit(1)


def puts(path: str, content: bytes, mode: int) -> Callable[[Machine], None]:
    return lambda machine: machine.put(path, content, mode)


def claims(machine: Machine) -> None:
    if "refused" not in machine.ask("claim", paths=["/lib/modules/7.3.4", "/boot/vmlinuz-7.3.4"]):
        machine.file("/lib/modules/7.3.4/kernel/vfio.ko", "module")
        machine.file("/boot/vmlinuz-7.3.4", "kernel")


def mounts(machine: Machine) -> None:
    source = f"/var/lib/barometer/{machine.token}/lib/modules/{RELEASE}"
    machine.file(f"{source}/modules.dep", "")
    machine.ask("mount", path=f"/lib/modules/{RELEASE}", source=source)


def boots(how: str) -> Callable[[Machine], None]:
    def boot(machine: Machine) -> None:
        image = machine.image()
        machine.ask("boot", how=how, cmdline="ro barometer.token=7", extend=600.0, **image)

    return boot


def asks(verb: str, **request: Any) -> Callable[[Machine], None]:
    def ask(machine: Machine) -> None:
        machine.ask(verb, **request)

    return ask


ACTIONS: dict[str, Callable[[Machine], None]] = {
    "thp": asks("write", path=THP, value="always"),
    "thp again": asks("write", path=THP, value="never"),
    "huge pages": asks("write", path=HUGE, value="64"),
    "vfio": asks("modules", names=["vfio-pci"]),
    "type1": asks("modules", names=["vfio_iommu_type1"]),
    "gpu": asks("bind", address=GPU, driver="vfio-pci"),
    "nic": asks("bind", address=NIC, driver="vfio-pci"),
    "claim": claims,
    "link": asks("link", path="/lib/modules/7.3.5", target="/var/lib/barometer/7/modules"),
    "link to another": asks("link", path="/lib/modules/7.3.5", target="/var/lib/barometer/8/x"),
    "mount": mounts,
    "custom": puts("/boot/grub/custom.cfg", b"x", 0o600),
    "new": puts("/boot/a/b/new", b"y", 0o644),
    "original": asks("original"),
    "confirm": asks("confirm"),
    "kexec": boots("kexec"),
    "grub": boots("grub"),
    "systemd-boot": boots("systemd-boot"),
    "reboot": boots("reboot"),
    "power": Machine.power_on,
}


def recover(machine: Machine) -> list[Any]:
    """Recover as a runner does that finds the machine in this state; return what could not be put
    back."""
    held = machine.done("status")["leases"]
    machine.acquire(takeover=held[0]["token"] if held else 0)
    failed: list[Any] = machine.done("putback", volatile=False)["failed"]
    machine.done("kernel_restored")
    machine.done("release")
    return failed


@share(0.25)
@given(
    before=st.lists(st.sampled_from(sorted(ACTIONS)), max_size=6),
    last=st.sampled_from(sorted(ACTIONS)),
    at=st.integers(0, 600),
    again=st.lists(st.integers(0, 900), max_size=3),
)
def test_machine_is_as_before_whenever_the_keeper_is_killed(
    before: list[str], last: str, at: int, again: list[int]
) -> None:
    with made_up() as machine:
        untouched = machine.all()
        machine.acquire()
        for action in before:
            ACTIONS[action](machine)
        event(f"killed in {last}: {killed_at(at, lambda: ACTIONS[last](machine))}")
        for line in again:
            event(f"killed in recovery: {killed_at(line, lambda: recover(machine))}")
        assert recover(machine) == []
        assert machine.all() == untouched


def test_every_line_of_a_bind_and_of_its_end_may_be_the_last() -> None:
    """The lines are killed in order, not at random."""
    line = 0
    while True:
        with made_up() as machine:
            untouched = machine.all()
            machine.acquire()
            machine.done("modules", names=["vfio-pci"])
            in_bind = killed_at(line, lambda: ACTIONS["nic"](machine))
            in_recovery = killed_at(line, lambda: recover(machine))
            assert recover(machine) == []
            assert machine.all() == untouched
        if not in_bind and not in_recovery:
            break
        line += STEP
    assert line > 200
