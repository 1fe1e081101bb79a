"""`barometer profile` as a user has it, with made-up records."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.entry import run_verb
from orchestrator.evidence.surveys.profile_facts import ProfileEvidence
from orchestrator.run import profile
from orchestrator.run.profile import ProfileRequest
from tests.unit import slowboots
from tests.unit.analysis.test_profile import (
    ALIGNED,
    BAR,
    FILES,
    QEMU,
    VCPU,
    booted,
    profile_facts,
    vma,
)

PROCESS = {
    "pid": QEMU, "threads": [QEMU, VCPU], "page_table_bytes": 1 << 21, "maps": vma(ALIGNED, BAR)
}  # fmt: skip


class Command:
    def __init__(self) -> None:
        self.asked: list[ProfileRequest] = []
        self.cleared: list[Any] = []

    def record(self, asked: ProfileRequest, _progress: object) -> ProfileEvidence:
        self.asked.append(asked)
        return ProfileEvidence(
            profile_facts(process=PROCESS),
            FILES | {"trace.txt": booted().text()},
            "<domain><cpu><maxphysaddr mode='emulate' bits='52'/></cpu></domain>",
        )


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    made = Command()
    monkeypatch.setattr(profile, "record", made.record)
    monkeypatch.setattr(profile, "clear_profile", lambda *where: made.cleared.append(where))
    return made


def barometer(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["barometer", "profile", *map(str, arguments)])
    return run_verb()


def test_a_domain_is_profiled_until_it_is_quiet(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert barometer(monkeypatch, "gpu vm") == 0
    assert command.asked == [ProfileRequest("gpu vm", until=20.0)]
    assert "what would help" in capsys.readouterr().out


def test_what_is_asked_for_is_done_and_saved(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    uri = "qemu+ssh://lab/system"
    assert barometer(
        monkeypatch, "gpu vm", "--connect", uri, "--ssh-config", "c", "--reboot", "--until",
        "agent", "--save", tmp_path / "saved", "--json",
    ) == 0  # fmt: skip
    assert command.asked == [ProfileRequest("gpu vm", uri, Path("c"), reboot=True, until="agent")]
    assert json.loads(capsys.readouterr().out)["advice"][0]["name"] == "no-series"
    assert (tmp_path / "saved/trace.txt.gz").exists()


def test_what_is_left_is_cleared_without_a_domain(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert barometer(monkeypatch, "--clear", "--connect", "qemu:///system") == 0
    assert command.cleared == [("qemu:///system", None)]
    assert command.asked == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no DOMAIN is given"),
        (["d", "--until", "soon"], "--until soon:"),
        (["d", "--until", "0"], "--until 0:"),
        (["d", "--until", "nan"], "--until nan:"),
        (["d", "--until", "inf"], "--until inf:"),
    ],
)
def test_a_wrong_command_line_is_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    assert barometer(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert command.asked == []


# saved profiles ---------------------------------------------------------------------------------

RECORDED = Path(__file__).parents[2] / "fixtures/recorded/profile"


def test_a_saved_profile_is_shown_without_a_host(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert barometer(monkeypatch, "--from", RECORDED / "reboot") == 0
    assert capsys.readouterr().out == (RECORDED / "reboot/report.txt").read_text()
    assert command.asked == []


def test_two_profiles_are_compared_and_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, trace = tmp_path / "p.html", tmp_path / "p.pftrace"
    given = ["--from", RECORDED / "thp-never", "--from", RECORDED / "linux-6.12"]
    assert barometer(monkeypatch, *given, "--html", page, "--perfetto", trace) == 0
    out = capsys.readouterr().out
    assert out.startswith("before: 45.66 s, after: 60.29 s; ")
    assert "transparent huge pages: always madvise [never] -> [always] madvise never" in out
    assert "maps of BARs" in page.read_text()
    assert trace.read_bytes()
    assert barometer(monkeypatch, *given, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    whole = sum(cost["before"] - cost["after"] for cost in document["costs"])
    assert whole == pytest.approx(document["before_seconds"] - document["after_seconds"])


def test_a_start_that_failed_is_the_benchs_failure_and_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    slowboots.kata_11721().evidence().save(tmp_path)
    assert barometer(monkeypatch, "--from", tmp_path) == 3
    out, err = capsys.readouterr()
    assert "dma_entry_limit is 20" in out
    assert "dma_entry_limit is 20" in err
    assert err.endswith("reason: libvirt-start\n")


def test_a_program_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert barometer(monkeypatch, "--script", "--until", "30") == 0
    out = capsys.readouterr().out
    assert out.startswith("#!/bin/sh\n")
    assert "\nUNTIL=30\n" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vm", "--from", "x"], "DOMAIN and --from exclude one another"),
        (["--script", "--wait-for-qemu"], "--wait-for-qemu and --script exclude"),
        (["--from", "a", "--from", "b", "--from", "c"], "two can be compared"),
        (["--script", "--until", "agent"], "nothing there knows the agent"),
        (["--wait-for-qemu", "--until", "agent"], "only libvirt knows the agent"),
    ],
)
def test_options_that_exclude_one_another_are_refused(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    assert barometer(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err
    assert command.asked == []


def test_a_file_that_is_no_profile_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.tar.gz").write_text("nothing of the kind")
    assert barometer(monkeypatch, "--from", tmp_path / "p.tar.gz") == 4
    assert "is no archive of a profile" in capsys.readouterr().err
    assert barometer(monkeypatch, "--from", tmp_path / "absent") == 4
    assert capsys.readouterr().err.endswith("reason: missing-evidence\n")
