"""PCI functions that are bound to vfio-pci and put back."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import Any

import pytest

from keeper import machine as real
from keeper.changes import pci
from tests.unit.agents.keeper.machines import GPU, NIC, Machine

FOLDER = "/sys/bus/pci/devices"


@pytest.fixture
def ready(held: Machine) -> Machine:
    """A machine with the driver loaded."""
    held.done("modules", names=["vfio-pci"])
    return held


@pytest.mark.parametrize(("address", "former"), [(GPU, None), (NIC, "igb")])
def test_function_is_bound_and_goes_back(ready: Machine, address: str, former: str | None) -> None:
    before = ready.all()
    ready.done("bind", address=address, driver="vfio-pci")
    assert ready.driver(address) == "vfio-pci"
    assert ready.text(f"{FOLDER}/{address}/driver_override") == "vfio-pci\n"
    ready.file(f"{FOLDER}/{address}/power/control", "auto\n")  # as vfio-pci leaves it
    assert (
        ready.done("putback", volatile=False)["done"][0] == f"{address}: {former or 'no driver'}"
    )
    assert ready.driver(address) == former
    after = ready.all()
    assert {name: after[name] for name in before if address in name} == {
        name: before[name] for name in before if address in name
    }


def test_function_behind_a_vmd_is_bound_and_goes_back(ready: Machine) -> None:
    address = "10000:e1:00.0"  # a domain of Intel's VMD has more than four digits
    ready.function(address, driver="nvme")
    ready.done("bind", address=address, driver="vfio-pci")
    assert ready.driver(address) == "vfio-pci"
    ready.done("putback", volatile=False)
    assert ready.driver(address) == "nvme"


def test_override_of_somebody_elses_comes_back(ready: Machine) -> None:
    ready.file(f"{FOLDER}/{NIC}/driver_override", "igb\n")
    ready.done("bind", address=NIC, driver="vfio-pci")
    ready.done("putback", volatile=False)
    assert ready.text(f"{FOLDER}/{NIC}/driver_override") == "igb\n"


def test_function_that_vfio_has_already_stays_with_it(held: Machine) -> None:
    (held.root / "sys/bus/pci/drivers/vfio-pci").mkdir()
    (held.root / f"sys/bus/pci/devices/{GPU}/driver").symlink_to("../../drivers/vfio-pci")
    held.done("bind", address=GPU, driver="vfio-pci")
    assert held.done("putback", volatile=True) == {"done": [f"{GPU}: vfio-pci"], "failed": []}
    assert held.driver(GPU) == "vfio-pci"
    assert held.text(f"{FOLDER}/{GPU}/driver_override") == "\n"


def test_decoding_that_cannot_be_turned_off_is_refused(
    ready: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pci, "_set_command", lambda address, value: None)
    before = ready.all()
    assert ready.refused("bind", address=NIC, driver="vfio-pci") == (
        f"decode-always-on: {NIC}: its memory decoding cannot be turned off: the command register"
        " reads 0x0402 after bit 1 was cleared"
    )
    after = ready.all()
    assert ready.driver(NIC) == "igb"
    assert {k for k in after if after[k] != before.get(k)} == {"var/lib/barometer/journal.jsonl"}


def test_a_locked_down_kernel_is_named_by_the_file_that_it_refuses(
    ready: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "pwrite", refuse)
    assert ready.refused("bind", address=NIC, driver="vfio-pci") == (
        f"os-error: {FOLDER}/{NIC}/config: Operation not permitted"
    )
    assert ready.driver(NIC) == "igb"
    assert [entry["kind"] for entry in ready.done("status")["journal"]] == ["modules"]


def test_decoding_is_as_before_after_it_was_tried(
    ready: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real_one = pci._set_command

    def watched(address: str, value: int) -> None:
        written.append(value)
        real_one(address, value)

    monkeypatch.setattr(pci, "_set_command", watched)
    ready.done("bind", address=GPU, driver="vfio-pci")
    assert written == [0x0400, 0x0402]
    assert (ready.root / f"sys/bus/pci/devices/{GPU}/config").read_bytes()[4:6] == b"\x02\x04"


@pytest.mark.parametrize(
    ("lockdown", "expected"),
    [("none [integrity] confidentiality",
      "bind: {config}: Operation not permitted: the kernel is locked down (integrity), and has"
      " nobody write to a device's registers"),
     ("[none] integrity confidentiality", "os-error: {config}: Operation not permitted")],
)  # fmt: skip
@pytest.mark.parametrize(("address", "former"), [(GPU, None), (NIC, "igb")])
def test_registers_that_nobody_may_write_to_are_named(
    ready: Machine, monkeypatch: pytest.MonkeyPatch, lockdown: str, expected: str, address: str,
    former: str | None,
) -> None:  # fmt: skip
    def refused(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    ready.file("/sys/kernel/security/lockdown", f"{lockdown}\n")
    monkeypatch.setattr(os, "pwrite", refused)
    said = expected.format(config=f"{FOLDER}/{address}/config")
    assert ready.refused("bind", address=address, driver="vfio-pci") == said
    assert ready.driver(address) == former
    assert ready.journal() == ["modules"]


def test_virtual_function_is_not_asked_for_a_bit_that_it_has_not(
    ready: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready.root / f"sys/bus/pci/devices/{GPU}/physfn").symlink_to(f"../{NIC}")
    monkeypatch.setattr(pci, "_prove_decode", lambda address: pytest.fail("it was asked"))
    ready.done("bind", address=GPU, driver="vfio-pci")


def test_driver_that_is_not_loaded_is_refused_and_the_old_one_has_it_again(held: Machine) -> None:
    assert held.refused("bind", address=NIC, driver="vfio-pci") == (
        "bind: /sys/bus/pci/drivers/vfio-pci: the driver is not loaded"
    )
    assert held.driver(NIC) == "igb"
    assert held.journal() == []


def test_driver_that_does_not_take_the_device_is_refused(ready: Machine) -> None:
    ready.file("/shy", "")
    assert ready.refused("bind", address=NIC, driver="vfio-pci").startswith(
        f"bind: {NIC}: vfio-pci did not take the device, no driver has it"
    )
    assert ready.driver(NIC) == "igb"


def test_probe_that_the_kernel_refuses_is_no_refused_setting(
    ready: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = real.set_value_within

    def refused(path: str, value: str, seconds: float = 30) -> None:
        if path.endswith("/drivers_probe"):
            raise real.RefusedError("setting-refused", f"{value} is refused: EINVAL")
        write(path, value, seconds)

    monkeypatch.setattr(real, "set_value_within", refused)
    assert ready.refused("bind", address=NIC, driver="vfio-pci").startswith("bind: ")


@pytest.mark.parametrize("address", ["0000:99:00.0", "../../../etc", ""])
def test_device_that_is_not_there_is_refused(held: Machine, address: str) -> None:
    assert held.refused("bind", address=address, driver="vfio-pci").startswith("bind: ")
    assert held.journal() == []


def test_former_driver_that_is_gone_is_reported(ready: Machine) -> None:
    ready.done("bind", address=NIC, driver="vfio-pci")
    (ready.root / "sys/bus/pci/drivers/igb").rmdir()
    failed = ready.done("putback", volatile=False)["failed"]
    assert failed[0]["why"] == (
        "/sys/bus/pci/drivers/igb: the device's former driver is not loaded"
    )


def test_driver_that_hangs_does_not_hang_the_keeper(
    held: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    make = subprocess.Popen

    def popen(*args: Any, **how: Any) -> subprocess.Popen[str]:
        started.append(make(*args, **how))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    program = held.file("/fakes/tee", "#!/bin/sh\nexec /usr/bin/sleep 60\n")
    program.chmod(0o755)
    with pytest.raises(real.RefusedError, match="did not take 1 within 0 s") as caught:
        real.set_value_within("/sys/x/unbind", "1", seconds=0.2)
    assert caught.value.reason == "driver-hangs"
    started[0].kill()  # as if the kernel had let it go
    started[0].communicate()
