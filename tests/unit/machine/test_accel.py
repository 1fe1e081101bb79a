"""A shell script stands in for QEMU; no machine boots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.runner import accel
from orchestrator.machine.runner.accel import choose_accel, find_boot_problem, find_kvm_problem
from orchestrator.machine.transport.local import LocalMachine
from orchestrator.machine.transport.shell import Commands, Completed


class Machine(LocalMachine):
    """This machine, with other answers to some commands."""

    def __init__(self, **answers: Completed) -> None:
        self.answers = answers

    def run(self, argv, **how):  # type: ignore[no-untyped-def]
        command = argv if isinstance(argv, str) else " ".join(argv)
        found = next((a for start, a in self.answers.items() if command.startswith(start)), None)
        return found or super().run(argv, **how)


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Path for a fake QEMU."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path / "qemu-system-x86_64"


def write(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_guest_that_speaks_ran_and_its_disk_is_its_boot_sector(qemu: Path) -> None:
    kept = qemu.parent / "disk"
    write(qemu, f'for a in "$@"; do case $a in file=*) d=${{a#file=}}; d=${{d%%,*}};; esac; done\n'
                f'cp "$d" {kept}; echo "$d" > {kept}.name; exit 33')  # fmt: skip
    assert find_boot_problem("tcg", LocalMachine()) is None
    content = kept.read_bytes()
    assert content[:7].hex() == "b010e6f4f4ebfd"  # mov al,0x10; out 0xf4,al; hlt; jmp -3
    assert content[510:512] == b"\x55\xaa"
    assert len(content) == 1 << 20
    assert not Path(Path(f"{kept}.name").read_text().strip()).exists()


def test_what_a_guest_fails_with_is_qemus_last_word(qemu: Path) -> None:
    write(qemu, "echo first >&2; echo 'failed to initialize kvm: Permission denied' >&2; exit 1")
    assert (
        find_boot_problem("kvm", LocalMachine()) == "failed to initialize kvm: Permission denied"
    )
    write(qemu, "exit 5")
    assert find_boot_problem("kvm", LocalMachine()) == "QEMU exited with 5"


def test_a_silent_guest_is_given_up(qemu: Path) -> None:
    write(qemu, "exec sleep 60")
    with pytest.raises(TimeoutError, match=r"^a tiny guest did not run within 0\.2 s$"):
        find_boot_problem("kvm", LocalMachine(), 0.2)


def test_kvm_is_not_tried_where_it_cannot_be() -> None:
    lacking = Machine(grep=Completed("flags : fpu sse", "", 0))
    assert find_kvm_problem(lacking) == "the CPU shows neither vmx nor svm"
    absent = Machine(grep=Completed("flags : fpu vmx", "", 0), test=Completed("", "", 1))
    assert find_kvm_problem(absent) == "there is no /dev/kvm"


def test_a_kvm_that_opens_and_runs_nothing_is_none(qemu: Path) -> None:
    write(qemu, "exec sleep 60")
    there = Machine(grep=Completed("flags : svm", "", 0), test=Completed("", "", 0))
    with pytest.raises(TimeoutError):
        find_kvm_problem(there, 0.2)
    write(qemu, "exit 33")
    assert find_kvm_problem(there) is None


def test_kvm_that_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "find_kvm_problem", lambda _machine: "there is no /dev/kvm")
    assert choose_accel("auto") == ("tcg", "no KVM: there is no /dev/kvm")
    with pytest.raises(BenchError, match="there is no /dev/kvm"):
        choose_accel("kvm")


def test_a_guest_that_does_not_answer_is_none_to_measure_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(machine: Commands) -> None:
        raise TimeoutError("a tiny guest did not run within 10 s")

    monkeypatch.setattr(accel, "find_kvm_problem", silent)
    assert choose_accel("auto") == ("tcg", "no KVM: a tiny guest did not run within 10 s")
    with pytest.raises(BenchError, match="no guest runs under KVM here: a tiny guest did not run"):
        choose_accel("kvm")
