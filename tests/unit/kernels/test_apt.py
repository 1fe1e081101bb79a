"""The parts that need no mirror. apt itself is real, with a mirror that nobody serves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.base.cache import Cache
from orchestrator.base.errors import BenchError
from orchestrator.base.reasons import Reason
from orchestrator.kernels import describe_kernel
from orchestrator.kernels.debian import apt
from orchestrator.kernels.debian.package import suites_of
from orchestrator.scenario.kernel_forms import DebKernel

UNREACHABLE = "http://127.0.0.1:9/debian"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BAROMETER_MIRROR", "BAROMETER_SECURITY_MIRROR"):
        monkeypatch.delenv(name, raising=False)


def test_mirror_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert apt.mirror() == "http://deb.debian.org/debian"
    assert apt.security_mirror() == "http://deb.debian.org/debian-security"
    monkeypatch.setenv("BAROMETER_MIRROR", "http://mirror.example/pub/debian/")
    assert apt.mirror() == "http://mirror.example/pub/debian"
    assert apt.security_mirror() == "http://mirror.example/pub/debian-security"
    monkeypatch.setenv("BAROMETER_SECURITY_MIRROR", "http://security.example/")
    assert apt.security_mirror() == "http://security.example"


def test_every_source_is_bound_to_debians_keyring() -> None:
    lines = apt.source_lines(("trixie", "trixie-security"))
    assert len(lines) == 2
    assert all(f"[signed-by={apt.KEYRING}]" in line for line in lines)
    assert lines[0].endswith(" http://deb.debian.org/debian trixie main")
    assert lines[1].endswith(" http://deb.debian.org/debian-security trixie-security main")


@pytest.mark.parametrize(
    ("suite", "suites"),
    [
        ("trixie", ("trixie",)),
        ("trixie-backports", ("trixie", "trixie-backports")),
        ("sid", ("sid",)),
        ("nonsense-backports", ("nonsense-backports",)),
    ],
)
def test_backports_are_asked_for_with_the_release_below(
    suite: str, suites: tuple[str, ...]
) -> None:
    assert suites_of(suite) == suites


def test_version_without_a_suite_is_looked_for_everywhere() -> None:
    assert "trixie-backports" in suites_of(None)


@pytest.fixture
def archive(tmp_path: Path) -> apt.AptArchive:
    """An archive after an update."""
    archive = apt.AptArchive(("trixie",), Cache(tmp_path))
    (tmp_path / "apt/trixie").mkdir(parents=True)
    (tmp_path / "apt/trixie/updated").touch()
    return archive


def test_answer_is_asked_for_once(archive: apt.AptArchive, tmp_path: Path) -> None:
    requests = []

    def ask() -> list[int]:
        requests.append(1)
        return [1, 2]

    assert [archive.remembered("q", ask) for _ in range(3)] == [[1, 2]] * 3
    again = apt.AptArchive(("trixie",), Cache(tmp_path))
    assert again.remembered("q", ask) == [1, 2]
    assert len(requests) == 1
    assert archive.remembered("another", lambda: "x") == "x"


def test_answer_is_forgotten_with_newer_lists(archive: apt.AptArchive, tmp_path: Path) -> None:
    assert archive.remembered("q", lambda: "old") == "old"
    os.utime(tmp_path / "apt/trixie/updated", (1, 1))
    assert archive.remembered("q", lambda: "new") == "new"


def test_unreadable_answers_are_asked_for_again(archive: apt.AptArchive, tmp_path: Path) -> None:
    archive.remembered("q", lambda: "old")
    (tmp_path / "apt/trixie/answers.json").write_text("{")
    assert archive.remembered("q", lambda: "new") == "new"


def test_question_that_fails_is_not_remembered(archive: apt.AptArchive) -> None:
    def fails() -> None:
        raise BenchError("no", reason=Reason.MIRROR_UNREACHABLE)

    with pytest.raises(BenchError):
        archive.remembered("q", fails)
    assert archive.remembered("q", lambda: "now") == "now"


def test_unreachable_mirror_is_the_benchs_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAROMETER_MIRROR", UNREACHABLE)
    monkeypatch.setattr(apt, "_RETRIES", 0)  # apt waits longer and longer between retries
    kernel = DebKernel(deb="linux-image-cloud-amd64", suite="trixie")
    with pytest.raises(BenchError) as caught:
        describe_kernel(kernel, Cache(tmp_path))
    assert caught.value.reason == "mirror-unreachable"
    assert UNREACHABLE in caught.value.message
    assert "BAROMETER_MIRROR" in caught.value.hint
    assert "127.0.0.1" in caught.value.evidence
    assert not (tmp_path / "apt/trixie/updated").exists()


def test_configuration_is_not_written_while_others_may_read_it(
    archive: apt.AptArchive, tmp_path: Path
) -> None:
    archive._prepare()
    conf = tmp_path / "apt/trixie/apt.conf"
    before, text = conf.stat().st_mtime_ns, conf.read_text()
    archive._prepare()
    assert conf.stat().st_mtime_ns == before
    conf.write_text("old")
    archive._prepare()
    assert conf.read_text() == text
