from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import BenchError
from orchestrator.machine.host.changes import RememberedChanges
from orchestrator.machine.transport.shell import Completed, Shell
from tests.unit.hosts import HostShell


def changes(shell: object) -> RememberedChanges:
    return RememberedChanges(cast(Shell, shell), "/payload")


def test_value_is_written_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a folder; it's"
    path.write_text("a longer one before\n")
    changes(HostShell(tmp_path)).write(str(path), "always")
    assert path.read_text() == "always\n"


def test_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "nr_hugepages"
    with pytest.raises(BenchError, match=r"writing 7 to .* failed") as caught:
        changes(HostShell(tmp_path)).write(str(path), "7")
    assert caught.value.evidence == "no such file"
    assert not path.exists()


def test_value_that_is_refused_is_an_error_with_the_kernels_reason(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="writing 1 to /dev/full") as caught:
        changes(HostShell(tmp_path)).write("/dev/full", "1")
    assert "No space left on device" in caught.value.evidence


class FakeShell:
    def __init__(self) -> None:
        self.ran: list[tuple[list[str], bytes]] = []

    def run(
        self, argv: list[str], *, stdin: bytes = b"", doing: str = "", check: bool = True
    ) -> Completed:
        self.ran.append((argv, stdin))
        return Completed("", "", 0)


@given(st.text(), st.text())
def test_no_text_becomes_part_of_the_script(path: str, value: str) -> None:
    shell, usual = FakeShell(), FakeShell()
    changes(shell).write(path, value)
    changes(usual).write("/sys/x", "1")
    [(reading, _), (argv, stdin)], [(read, _), (script, _)] = shell.ran, usual.ran
    assert (argv, stdin) == ([*script[:-1], path], f"{value}\n".encode())
    assert reading == [*read[:-1], path]


def test_what_was_in_a_file_is_remembered_before_it_is_written(tmp_path: Path) -> None:
    path, other = tmp_path / "enabled", tmp_path / "stat_interval"
    path.write_text("always [madvise] never\n")
    other.write_text("1\n")
    change = RememberedChanges(HostShell(tmp_path), "/payload")
    change.write(str(path), "never")
    change.tracing("barometer", "barotime")
    change.write(str(other), "5")
    change.write(str(other), "6")
    change.guest("8c1f")
    change.files("/a", "/b")
    assert (path.read_text(), other.read_text()) == ("never\n", "6\n")
    assert change.made == [
        ("write", {"path": str(path), "former": "madvise"}),
        ("tracing", {"instance": "barometer", "group": "barotime"}),
        ("write", {"path": str(other), "former": "1"}),
        ("write", {"path": str(other), "former": "5"}),
        ("guest", {"uuid": "8c1f"}),
        ("claim", {"paths": ["/a", "/b"]}),
    ]


def test_file_that_is_not_there_is_nothing_to_put_back(tmp_path: Path) -> None:
    change = RememberedChanges(HostShell(tmp_path), "/payload")
    with pytest.raises(BenchError) as caught:
        change.write(str(tmp_path / "nr_hugepages"), "7")
    assert (caught.value.evidence, change.made) == ("no such file", [])


def test_rest_is_not_written_down() -> None:
    shell = FakeShell()
    change = changes(shell)
    change.tracing("barometer", "barotime")
    change.guest("8c1f")
    change.files("/a", "/b")
    assert shell.ran == []
