"""Settings of a host: its shell is this machine's, with /sys and /proc in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.image.bundle import KernelBundle
from orchestrator.machine.host.changes import RememberedChanges
from orchestrator.machine.host.settings import is_same_setting, prove_settings, write_settings
from orchestrator.machine.transport.shell import ConnectionLostError
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.vocabulary import ArmName
from tests.unit.hosts import HostShell, Recorded
from tests.unit.scenarios import MINIMAL, scenario

HUGE = "vfio_iommu_type1.disable_hugepages"
THP = "/sys/kernel/mm/transparent_hugepage/enabled"
MODINFO = (
    b"vfio_iommu_type1.parmtype=disable_hugepages:bool\0vfio_iommu_type1.parmtype=hidden:int\0"
)


class Host:
    def __init__(self, folder: Path) -> None:
        self.root = folder / "host"
        modules = folder / "modules"
        modules.mkdir()
        (modules / "modules.builtin").write_text("kernel/drivers/vfio/vfio_iommu_type1.ko\n")
        (modules / "modules.builtin.modinfo").write_bytes(MODINFO)
        self.kernel = KernelBundle("7.0", folder / "vmlinuz", modules, None, "abc")
        self.has("/proc/cmdline", "console=ttyS0 panic=-1\n")
        self.has("/sys/module/vfio_iommu_type1/parameters/disable_hugepages", "N\n")
        self.has(THP, "always [madvise] never\n")
        self.has("/programs/dmesg", '#!/bin/sh\ncat "$ROOT/dmesg"\n').chmod(0o755)

    def has(self, path: str, text: str) -> Path:
        file = self.root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def set(self, settings: str, arm: ArmName = "candidate") -> dict[str, Any]:
        """Write and prove the candidate's `settings` in TOML."""
        text = MINIMAL + f"{settings}\n"
        scenario, _ = parse_scenario(text, "x")
        shell = HostShell(self.root)
        write_settings(RememberedChanges(shell, "/payload"), scenario.arms[arm], arm)
        return prove_settings(shell, self.kernel, scenario.arms, arm).to_json()

    def refused(self, settings: str) -> BenchError:
        with pytest.raises(BenchError) as caught:
            self.set(settings)
        assert caught.value.reason == "setting-refused"
        assert "candidate" in caught.value.message
        return caught.value


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def parameters(value: str, name: str = HUGE) -> str:
    return f'parameters = {{ "{name}" = {value} }}'


def test_parameter_is_read_back(host: Host) -> None:
    host.has("/proc/cmdline", f"panic=-1 {HUGE}=Y\n")
    host.has("/sys/module/vfio_iommu_type1/parameters/disable_hugepages", "Y\n")
    assert host.set(parameters("true")) == {
        "cmdline": {"asked": "", "found": ""},
        "parameters": {HUGE: {"asked": "Y", "found": "Y"}},
        "unreadable": [], "sysfs": {},
    }  # fmt: skip


def test_what_only_the_other_arm_sets_is_read_and_not_touched(host: Host) -> None:
    both = f'{parameters("true")}\nsysfs = {{ "{THP}" = "never" }}'
    found = host.set(both, "baseline")
    assert found["parameters"] == {HUGE: {"asked": None, "found": "N"}}
    assert found["sysfs"] == {THP: {"asked": None, "found": "madvise"}}
    assert (host.root / THP[1:]).read_text() == "always [madvise] never\n"


def test_what_the_other_arm_sets_need_not_be_there(host: Host) -> None:
    found = host.set('sysfs = { "/sys/kernel/new" = 1 }', "baseline")
    assert found["sysfs"] == {"/sys/kernel/new": {"asked": None, "found": None}}
    found = host.set(parameters("1", "kvm_amd.npt"), "baseline")
    assert found["parameters"] == {"kvm_amd.npt": {"asked": None, "found": None}}
    assert found["unreadable"] == []


def test_parameter_that_did_not_take_is_refused(host: Host) -> None:
    host.has("/proc/cmdline", f"{HUGE}=Y\n")
    error = host.refused(parameters("true"))
    assert error.message.endswith("/parameters/disable_hugepages was to have Y")
    assert error.evidence == "/sys/module/vfio_iommu_type1/parameters/disable_hugepages: N"


def test_word_that_is_not_on_the_command_line_is_refused(host: Host) -> None:
    host.has("/proc/cmdline", "iommu.strict=10 noiommu\n")
    error = host.refused('cmdline = "iommu.strict=1"')
    assert "/proc/cmdline was to have iommu.strict=1" in error.message
    assert "iommu.strict=10" in error.evidence


def test_word_that_the_kernel_does_not_know_is_refused(host: Host) -> None:
    host.has("/proc/cmdline", "console=ttyS0 panic=-1 iommu_strict=1 quiet\n")
    # print_unknown_bootoptions() in init/main.c
    host.has("/dmesg", '[    0.1] Unknown kernel command line parameters "iommu_strict=1", will be'
             " passed to user space.\n")  # fmt: skip
    error = host.refused('cmdline = "iommu_strict=1"')
    assert "the kernel knows no such word" in error.evidence
    assert host.set('cmdline = "quiet"')["cmdline"]["found"] == "quiet"


def test_words_that_are_there_are_recorded(host: Host) -> None:
    host.has("/proc/cmdline", "panic=-1 iommu.strict=1 nosmt\n")
    found = host.set('cmdline = "iommu.strict=1  nosmt"')
    assert found["cmdline"]["found"] == "iommu.strict=1 nosmt"


def test_parameter_that_the_kernel_shows_nobody_is_recorded_as_such(host: Host) -> None:
    host.has("/proc/cmdline", "vfio_iommu_type1.hidden=3\n")
    found = host.set(parameters("3", "vfio_iommu_type1.hidden"))
    assert found["unreadable"] == ["vfio_iommu_type1.hidden"]
    assert found["parameters"]["vfio_iommu_type1.hidden"] == {"asked": "3", "found": None}


@pytest.mark.parametrize("name", ["vfio_iommu_type1.unheard_of", "kvm_amd.npt"])
def test_parameter_that_is_not_there_is_refused(host: Host, name: str) -> None:
    """One module has no such parameter, the other module is not loaded."""
    host.has("/proc/cmdline", f"{name}=1\n")
    assert "no such file" in host.refused(parameters("1", name)).evidence


def test_file_is_written_and_read_back(host: Host) -> None:
    number = host.has("/proc/sys/vm/nr_hugepages", "0\n")
    found = host.set(f'sysfs = {{ "{THP}" = "never", "/proc/sys/vm/nr_hugepages" = 0x10 }}')
    assert (host.root / THP[1:]).read_text() == "never\n"
    assert number.read_text() == "16\n"
    assert found["sysfs"] == {
        THP: {"asked": "never", "found": "never"},
        "/proc/sys/vm/nr_hugepages": {"asked": "16", "found": "16"},
    }


def test_files_are_written_in_the_order_given(host: Host) -> None:
    host.has("/sys/kernel/a", "0\n")
    (host.root / "sys/kernel/b").symlink_to("a")
    names = ("/sys/kernel/a", "/sys/kernel/b")
    assert (
        "/sys/kernel/a"
        in host.refused(f'sysfs = {{ "{names[0]}" = 1, "{names[1]}" = 2 }}').message
    )
    host.refused(f'sysfs = {{ "{names[1]}" = 2, "{names[0]}" = 1 }}')
    assert (host.root / "sys/kernel/a").read_text() == "1\n"


def test_file_that_is_not_there_is_refused_and_not_made(host: Host) -> None:
    error = host.refused('sysfs = { "/sys/kernel/mm/unheard_of" = 1 }')
    assert error.evidence == "/sys/kernel/mm/unheard_of: no such file"
    assert not (host.root / "sys/kernel/mm/unheard_of").exists()


def test_value_that_the_kernel_does_not_take_is_refused(host: Host) -> None:
    (host.root / "sys/kernel/full").symlink_to("/dev/full")
    assert "No space left" in host.refused('sysfs = { "/sys/kernel/full" = 1 }').evidence


def test_files_are_written_as_changes_of_the_host() -> None:
    log: list[str] = []
    chosen = scenario(f'arms.candidate.sysfs={{"{THP}" = "never", "/proc/sys/vm/swappiness" = 0}}')
    write_settings(Recorded(log), chosen.arms.baseline, "baseline")
    assert log == []
    write_settings(Recorded(log), chosen.arms.candidate, "candidate")
    assert log == [f"change: write {THP} never", "change: write /proc/sys/vm/swappiness 0"]


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (BenchError("the journal is full", reason=Reason.OS_ERROR), "setting-refused"),
        (ConnectionLostError("gone", reason=Reason.HOST_SSH_LOST), "host-ssh-lost"),
    ],
)
def test_lost_connection_is_not_taken_for_a_refusal(failed: BenchError, reason: str) -> None:
    class Failing(Recorded):
        def write(self, path: str, value: str) -> None:
            raise failed

    arm = scenario(f'arms.candidate.sysfs={{"{THP}" = 1}}').arms.candidate
    with pytest.raises(BenchError) as caught:
        write_settings(Failing([]), arm, "candidate")
    assert caught.value.reason == reason
    assert failed.message in (caught.value.message, caught.value.evidence.removeprefix(f"{THP}: "))


def test_value_that_does_not_stay_is_refused(host: Host) -> None:
    (host.root / "sys/kernel/null").symlink_to("/dev/null")
    assert host.refused('sysfs = { "/sys/kernel/null" = 1 }').evidence == "/sys/kernel/null: empty"


@pytest.mark.parametrize(
    ("asked", "found"),
    [("Y", "1"), ("1", "Y"), ("true", "Y"), ("off", "N"), ("0x10", "16"), ("010", "8"),
     ("+3", "3"), ("-1", "-1"), ("never", "never"), ("0X1F", "31")],
)  # fmt: skip
def test_spellings_of_one_value_are_the_same(asked: str, found: str) -> None:
    assert is_same_setting(asked, found)
    assert is_same_setting(found, asked)


@pytest.mark.parametrize(
    ("asked", "found"),
    [("Y", "N"), ("1", "N"), ("2", "Y"), ("1", "10"), ("-1", "1"), ("never", "always"),
     ("1", ""), ("09", "9"), ("madvise", "Madvise")],
)  # fmt: skip
def test_other_values_are_not(asked: str, found: str) -> None:
    assert not is_same_setting(asked, found)


@given(st.integers())
def test_number_is_the_same_however_it_is_written(number: int) -> None:
    sign = "-" if number < 0 else ""
    for spelled in (f"{sign}0x{abs(number):X}", f"{sign}0{abs(number):o}"):
        assert is_same_setting(spelled, str(number))
        assert not is_same_setting(spelled, str(number + 1))


@given(st.text(), st.text())
def test_any_texts_are_compared(asked: str, found: str) -> None:
    assert is_same_setting(asked, asked)
    assert is_same_setting(asked, found) == is_same_setting(found, asked)
