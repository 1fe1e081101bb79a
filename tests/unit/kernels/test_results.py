"""What a build left, which may be anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.base.errors import ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.kernels.source.results import check_results, find_result, write_input


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the runner with a file, beside the build's folder."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("the runner's")
    (tmp_path / "work").mkdir()
    return tmp_path / "outside"


@pytest.fixture
def work(outside: Path) -> Path:
    return outside.parent / "work"


def test_plain_results_are_found(work: Path) -> None:
    (work / "arch/x86").mkdir(parents=True)
    (work / "arch/x86/bzImage").write_text("an image")
    assert find_result(work, "arch/x86/bzImage").read_text() == "an image"
    assert check_results(work / "arch") == work / "arch"
    assert not find_result(work, "arch/none").exists()


def test_links_are_refused_wherever_they_are(work: Path, outside: Path) -> None:
    (work / "file").symlink_to(outside / "file")
    (work / "folder").symlink_to(outside)
    (work / "dangling").symlink_to("nowhere")
    for name in ("file", "folder/file", "folder", "dangling"):
        with pytest.raises(ScenarioError) as caught:
            find_result(work, name)
        assert caught.value.reason == Reason.BUILD_FAILED
        assert str(work / name.partition("/")[0]) in caught.value.message
    with pytest.raises(ScenarioError):
        check_results(work)


@pytest.mark.parametrize("name", ["../outside/file", "a/../../outside/file", "/etc/passwd"])
def test_names_that_lead_out_are_refused(work: Path, name: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        find_result(work, name)
    assert name in caught.value.message


def test_pipes_are_refused(work: Path) -> None:
    os.mkfifo(work / "pipe")
    with pytest.raises(ScenarioError):
        find_result(work, "pipe")
    with pytest.raises(ScenarioError):
        check_results(work)


def test_input_takes_the_place_of_a_link(work: Path, outside: Path) -> None:
    (work / ".config").symlink_to(outside / "file")
    assert write_input(work, ".config", "CONFIG_X=y\n").read_text() == "CONFIG_X=y\n"
    assert (outside / "file").read_text() == "the runner's"
    (work / "build").symlink_to(outside)
    with pytest.raises(ScenarioError):
        write_input(work, "build/.config", "")
    assert not (outside / ".config").exists()
