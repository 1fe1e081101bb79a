"""What is published tells nothing of people and machines."""

from __future__ import annotations

import getpass
import json
import os
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.words.redact import NOTHING_HIDDEN, Redaction
from orchestrator.run.judging.judgefolder import judge_folder
from orchestrator.run.judging.private import find_private
from orchestrator.scenario.machines import MetalHost

RECORDED = Path(__file__).parents[2] / "fixtures/recorded"
ADDRESS = "bob@gpu-box.lab.example"
ALICE = Redaction(
    users=("alice",), hosts=("wks-17.lab.example", "wks-17"), folders=("/srv/alice",)
)
TELLING = ["alice", "wks-17", "52:54:00:12:34:56", "48-b0-2d-ff-ff-ee-dd-cc", "SN-99-Z"]


@pytest.mark.parametrize(("text", "expected"), [
    ("dir:/home/alice/linux", "dir:~/linux"),
    ("/Users/bob/kernels/a.deb", "~/kernels/a.deb"),
    ("/root/x and /root", "~/x and ~"),
    ("/srv/alice/linux", "~/linux"),
    ("/opt/home/alice", "/opt/home/USER"),
    ("/rootfs stays, root=/dev/vda1 stays", "/rootfs stays, root=/dev/vda1 stays"),
    ("Linux version 7.3.4 (alice@wks-17) (gcc 14)", "Linux version 7.3.4 (user@host) (gcc 14)"),
    ("link/ether 52:54:00:12:34:56 brd", "link/ether 00:00:00:00:00:00 brd"),
    ("0000:3b:00.0 stays", "0000:3b:00.0 stays"),
    ("Device Serial Number 48-b0-2d-ff-ff-ee-dd-cc", "Device Serial Number (redacted)"),
    ("Serial Number: SN-99-Z", "Serial Number: (redacted)"),
    ("system serial: SN-99-Z", "system serial: (redacted)"),
    ("ssh alice@wks-17.lab.example", "ssh USER@HOST"),
    ("alicekernel and wks-170 stay", "alicekernel and wks-170 stay"),
    ("a serial console stays", "a serial console stays"),
])  # fmt: skip
def test_names_paths_and_numbers_are_taken_out(text: str, expected: str) -> None:
    assert ALICE.apply(text) == expected
    assert NOTHING_HIDDEN.apply(text) == text


@given(st.lists(st.one_of(st.sampled_from(TELLING), st.text(max_size=5)), max_size=8))
def test_json_and_xml_stay_what_they_are(words: list[str]) -> None:
    text = " ".join(words)
    document = json.dumps({"text": text}, indent=1)
    assert set(json.loads(ALICE.apply(document))) == {"text"}
    element = ET.Element("a", b="x")
    element.text = "".join(c for c in text if c.isprintable())
    ET.fromstring(ALICE.apply(ET.tostring(element, "unicode")))


@given(st.text())
def test_it_is_done_once_and_for_all(text: str) -> None:
    once = ALICE.apply(text)
    assert ALICE.apply(once) == once


def test_names_that_everybody_has_stay() -> None:
    common = Redaction(users=("root", "me"), hosts=("linux", "debian"))
    assert common.apply("root me linux debian") == "root me linux debian"


@pytest.fixture
def private_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recorded run on a metal machine whose evidence tells of the runner and of the machine."""
    run = shutil.copytree(RECORDED / "metal", tmp_path / "run")
    kernel = "deb:linux-image-cloud-amd64@trixie"
    for name in ("plan.json", "scenario.toml"):
        text = (run / name).read_text()
        text = text.replace(kernel, "dir:/home/alice/linux")
        (run / name).write_text(text.replace('address = "metal"', f'address = "{ADDRESS}"'))
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(
        ("Linux", "wks-17.lab.example", "6", "1", "x86_64")))  # fmt: skip
    return run


def published(run: Path) -> str:
    names = ("report.html", "junit.xml", "kcidb.json", "results.ktap", "results.csv")
    return "".join((run / name).read_text() for name in names)


def test_no_published_output_of_a_run_names_the_runner(private_run: Path) -> None:
    judged = judge_folder(private_run, "A Tester <tester@example.org>")
    text = published(private_run)
    for name in (*TELLING, "gpu-box", "bob", "/home/"):
        assert name not in text
    assert judged.hidden.is_on


def test_nothing_is_hidden_on_request(private_run: Path) -> None:
    judge_folder(private_run, "A Tester <tester@example.org>", redact=False)
    assert "gpu-box" in published(private_run)


@pytest.mark.parametrize(("address", "names"), [
    ("alice@wks-17.lab.example", {"alice", "wks-17.lab.example", "wks-17"}),
    ("ssh://bob@gpu-box:2222", {"bob", "gpu-box"}),
    ("gpu-box", {"gpu-box"}),
    ("root@192.0.2.7", {"192.0.2.7"}),
])  # fmt: skip
def test_the_machine_of_a_scenario_is_private(address: str, names: set[str]) -> None:
    hidden = find_private(MetalHost(kind="metal", address=address))
    assert names <= {*hidden.users, *hidden.hosts}
