"""Archives that a host collected by itself: whole, damaged, and made to do harm."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import EvidenceError
from orchestrator.evidence.surveys import collected
from orchestrator.evidence.surveys.collected import load_evidence, make_evidence
from orchestrator.formats.units import GIB
from tests.unit.analysis.test_profile import BAR, FILES, booted
from tests.unit.slowboots import print_sections

RESOURCE = f"{BAR.start:#x} {BAR.start + BAR.size - 1:#x} 0x14220c"
HOST = {
    "release": "6.12.0", "tracing": "parts=1\nkvm=1\nhuge_fault=1",
    "collected": "barometer=0.1.0 until=30", "type1/dma_entry_limit": "65535",
    f"device/{BAR.device}/resource": RESOURCE,
}  # fmt: skip
AFTER = {
    "pid": "100", "ended": "quiet", "version": "QEMU emulator version 8.2.2",
    "cmdline": "kvm\n-name\ngpu vm\n-m\nsize=8388608k", "devices": BAR.device,
    "process": "VmPTE:\t 12 kB\ntask 100 102\n7f-8f rw-s 0 anon_inode:[vfio-device]",
}  # fmt: skip


def make_texts(host: dict[str, str] | None = None, after: dict[str, str] | None = None) -> dict[
    str, str
]:  # fmt: skip
    return FILES | {
        "trace.txt": booted().text(), "host.txt": print_sections(host or HOST),
        "after.txt": print_sections(after or AFTER),
    }  # fmt: skip


def pack(path: Path, texts: dict[str, str], prefix: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_archive_and_its_folder_are_the_same(tmp_path: Path, prefix: str) -> None:
    texts = make_texts()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    packed = load_evidence(pack(tmp_path / "p.tar.gz", texts, prefix))
    assert load_evidence(tmp_path) == packed
    facts = packed.facts
    assert (facts.domain, facts.memory, facts.qemu, facts.until) == (
        "gpu vm",
        8 * GIB,
        "8.2.2",
        30,
    )
    assert (facts.kvm, facts.parts, facts.huge_fault) == (True, True, True)
    assert facts.settings.dma_entry_limit == "65535"
    assert facts.bars[0].size == BAR.size


def test_a_collected_profile_is_saved_and_loaded_like_any(tmp_path: Path) -> None:
    evidence = make_evidence(make_texts(), "here")
    evidence.save(tmp_path)
    assert load_evidence(tmp_path) == evidence


def test_what_is_not_of_a_profile_is_left_in_the_archive(tmp_path: Path) -> None:
    texts = make_texts() | {"../../escape": "x", "/etc/passwd": "x"}
    load_evidence(pack(tmp_path / "p.tar.gz", texts))
    assert not (tmp_path.parents[1] / "escape").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["p.tar.gz"]


def test_a_file_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collected, "TRACE_BYTES", 100)
    with pytest.raises(EvidenceError, match="is larger than"):
        load_evidence(pack(tmp_path / "p.tar.gz", make_texts()))


@pytest.mark.parametrize("name", [*FILES, "trace.txt", "host.txt", "after.txt"])
def test_a_file_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    texts = make_texts()
    del texts[name]
    with pytest.raises(EvidenceError, match=name) as caught:
        load_evidence(pack(tmp_path / "p.tar.gz", texts))
    assert caught.value.reason == "missing-evidence"


@pytest.mark.parametrize(
    ("option", "value", "memory"),
    [("-m", "8G", 8 * GIB), ("-m", "8192", 8 * GIB), ("-m", "8192M,slots=4,maxmem=1T", 8 * GIB),
     ("--memory", "size=8G", 8 * GIB), ("-m", "many", 0)],
)  # fmt: skip
def test_the_memory_of_a_command_line(option: str, value: str, memory: int) -> None:
    after = AFTER | {"cmdline": f"qemu\n{option}\n{value}"}
    assert make_evidence(make_texts(after=after), "here").facts.memory == memory


def test_a_qemu_that_has_ended_has_no_process() -> None:
    after = {"pid": "100", "ended": "domain-ended"}
    facts = make_evidence(make_texts(after=after), "here").facts
    assert (facts.pid, facts.process, facts.ended) == (100, None, "domain-ended")
    assert facts.domain == "QEMU 100"


@given(
    st.dictionaries(st.sampled_from([*HOST]), st.text(), max_size=6),
    st.dictionaries(st.sampled_from([*AFTER]), st.text(), max_size=6),
)
def test_whatever_a_host_says_is_evidence_or_is_refused(
    host: dict[str, str], after: dict[str, str]
) -> None:
    try:
        facts = make_evidence(make_texts(HOST | host, AFTER | after), "here").facts
    except EvidenceError:
        return
    assert facts.bars
    assert facts.memory >= 0
