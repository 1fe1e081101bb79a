"""Commands on this machine, by real programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.base.errors import BenchError
from orchestrator.machine.transport import local
from orchestrator.machine.transport.local import LocalShell
from orchestrator.machine.transport.shell import Commands


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return LocalShell()


def test_a_script_and_a_program_run_with_their_input(shell: Commands) -> None:
    assert (
        shell.run("read a; echo $a; echo b >&2", stdin="gr\u00fcn\n".encode()).stdout == "grün\n"
    )
    assert shell.run(["printf", "%s", "a b; c"]).stdout == "a b; c"


def test_a_failure_names_what_was_done_and_has_its_last_words(shell: Commands) -> None:
    with pytest.raises(BenchError) as caught:
        shell.run("echo no such thing >&2; exit 3", doing="looking")
    assert caught.value.message == "this machine: looking failed with exit code 3"
    assert caught.value.evidence == "no such thing"
    assert shell.run("exit 3", check=False).code == 3
    assert shell.run("kill -9 $$", check=False).code == -9


def test_another_user_asks_sudo_without_a_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sudo = tmp_path / "sudo"
    sudo.write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert LocalShell().run(["id", "-u"]).stdout == "-n|--|id|-u|"


def test_a_dialogue_ends_when_the_block_is_left(shell: Commands, tmp_path: Path) -> None:
    script = 'echo ready; while read -r l; do echo "got $l"; done; echo end > "$1"'
    with shell.stream(["sh", "-c", script, "sh", str(tmp_path / "end")], timeout=20) as dialogue:
        assert next(dialogue) == "ready"
        dialogue.say("a b")
        assert next(dialogue) == "got a b"
    assert (tmp_path / "end").read_text() == "end\n"


def test_a_silent_program_is_a_timeout(shell: Commands) -> None:
    with shell.stream(["cat"], timeout=0.05) as dialogue, pytest.raises(TimeoutError):
        next(dialogue)


def test_a_program_that_does_not_end_is_ended_and_named(
    shell: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_LAST_SECONDS", 0.2)
    with pytest.raises(BenchError, match="did not end"), shell.stream(["sleep", "60"], timeout=1):
        pass
