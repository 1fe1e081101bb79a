"""The agent with a symbol table made here; the real one needs the kernel that it describes."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.agents.loading import agent

TABLE = """\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000100 t vfs_read
ffffffff81000100 T ksys_read
ffffffff81000180 d some_data
ffffffff81000200 W weak_function
ffffffffc0001000 t vfio_pin_pages_remote\t[vfio_iommu_type1]
ffffffffc0000800 t vfio_iommu_type1_ioctl\t[vfio_iommu_type1]
"""
Ask = Callable[..., list[str]]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    real = builtins.open

    def opened(path: Any, *arguments: Any, **more: Any) -> Any:
        return io.StringIO(TABLE) if path == "/proc/kallsyms" else real(path, *arguments, **more)

    def run(*addresses: int) -> list[str]:
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{a:x}\n" for a in addresses)))
        agent("symbols").main()
        monkeypatch.setattr(builtins, "open", real)
        return capsys.readouterr().out.splitlines()

    return run


def test_address_is_in_the_function_that_begins_before_it(ask: Ask) -> None:
    assert ask(0xFFFFFFFF81000104, 0xFFFFFFFF81000200, 0xFFFFFFFFC0000FFF) == [
        "ffffffff81000104 vfs_read 4",
        "ffffffff81000200 weak_function 0",
        "ffffffffc0000fff vfio_iommu_type1_ioctl 7ff",
    ]


def test_function_of_a_module_has_its_bare_name(ask: Ask) -> None:
    assert ask(0xFFFFFFFFC0001010) == ["ffffffffc0001010 vfio_pin_pages_remote 10"]


def test_of_two_names_the_first_is_taken(ask: Ask) -> None:
    assert ask(0xFFFFFFFF81000000, 0xFFFFFFFF81000100) == [
        "ffffffff81000000 _text 0", "ffffffff81000100 vfs_read 0",
    ]  # fmt: skip


def test_data_begins_no_function(ask: Ask) -> None:
    assert ask(0xFFFFFFFF81000190) == ["ffffffff81000190 vfs_read 90"]


def test_address_of_a_program_is_in_none(ask: Ask) -> None:
    assert ask(0x7F0000001000, 0x0, 0xFFFFFFFF80FFFFFF) == [
        "7f0000001000 ? 0", "0 ? 0", "ffffffff80ffffff ? 0",
    ]  # fmt: skip


def test_answers_are_in_the_order_of_the_questions(ask: Ask) -> None:
    asked = [0xFFFFFFFFC0001000, 0x1000, 0xFFFFFFFF81000100, 0xFFFFFFFFC0001000]
    assert [int(line.split()[0], 16) for line in ask(*asked)] == asked
    assert ask() == []
