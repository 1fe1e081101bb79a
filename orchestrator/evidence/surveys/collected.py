"""Profiles that a host collected by itself (`barometer profile --script`): an archive or a folder
of raw texts, from which the facts of a profile are made. A folder of `barometer profile --save` is
read, too."""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.base.bounded import TRACE_BYTES
from orchestrator.base.errors import EvidenceError
from orchestrator.base.plainfile import find_below, open_plain, read_plain_text
from orchestrator.base.reasons import Reason
from orchestrator.evidence.model import parse_evidence
from orchestrator.evidence.surveys.host_report import HostReport, parse_host_report
from orchestrator.evidence.surveys.profile_facts import (
    AFTER_FILE,
    HOST_FILE,
    TRACER_FILES,
    ProfileEvidence,
    ProfileFacts,
    load_profile,
)
from orchestrator.formats.abi import IORESOURCE_MEM
from orchestrator.formats.units import GIB, KIB, MIB, TIB

_FACTS = "facts.json"
_FILES = (*TRACER_FILES, HOST_FILE, AFTER_FILE)
_SIZE = re.compile(r"(\d{1,15})([kKmMgGtT]?)")
_FACTORS = {"": MIB, "k": KIB, "m": MIB, "g": GIB, "t": TIB}
"""Bytes of the units of QEMU's -m; MiB without one (qemu(1))."""
_RESOURCE = re.compile(r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})")
_VERSION = re.compile(r"version (\d+(?:\.\d+)+)")
_UNKNOWN = "unknown"


def load_evidence(path: Path) -> ProfileEvidence:
    """Load a profile from a folder or an archive, whichever form it has. Raises EvidenceError."""
    if path.is_dir():
        if (path / _FACTS).exists():
            return load_profile(path)
        texts = dict(_read_files(path))
    else:
        texts = dict(_unpack(path))
    return make_evidence(texts, str(path))


def _read_files(folder: Path) -> Iterator[tuple[str, str]]:
    for name in _FILES:
        try:
            yield name, read_plain_text(find_below(folder, name), errors="replace")
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise EvidenceError(
                f"{folder / name} cannot be read: {exc.strerror}", reason=Reason.BAD_EVIDENCE
            ) from exc


def _unpack(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of an archive by name. What it holds besides is left out; nothing is
    written to the disk."""
    try:
        with open_plain(path) as file, tarfile.open(fileobj=file) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                content = archive.extractfile(member) if member.isfile() else None
                if name not in _FILES or content is None:
                    continue
                text = content.read(TRACE_BYTES + 1)
                if len(text) > TRACE_BYTES:
                    raise EvidenceError(
                        f"{path}: {name} is larger than {TRACE_BYTES >> 20} MiB",
                        reason=Reason.BAD_EVIDENCE,
                    )
                yield name, text.decode(errors="replace")
    except FileNotFoundError as exc:
        raise EvidenceError(f"{path} is missing", reason=Reason.MISSING_EVIDENCE) from exc
    except (tarfile.TarError, OSError, EOFError) as exc:
        raise EvidenceError(
            f"{path} is no archive of a profile: {exc}", reason=Reason.BAD_EVIDENCE
        ) from exc


def make_evidence(texts: dict[str, str], source: str) -> ProfileEvidence:
    """Return the evidence of a profile from the texts that a host collected. Raises EvidenceError
    if one is missing, or does not tell what a profile needs."""
    for name in (*TRACER_FILES, HOST_FILE, AFTER_FILE):
        if name not in texts:
            raise EvidenceError(f"{source}: {name} is missing", reason=Reason.MISSING_EVIDENCE)
    report = parse_host_report(texts[HOST_FILE], texts[AFTER_FILE])
    facts = parse_evidence(ProfileFacts, json.dumps(_make_facts(report)), source)
    return ProfileEvidence(facts, texts, "")


def _make_facts(report: HostReport) -> dict[str, object]:
    tracing = _read_words(report.text("tracing"))
    collected = _read_words(report.text("collected"))
    arguments = report.text("after/cmdline").splitlines()
    version = _VERSION.search(report.text("after/version"))
    process = _read_process(report)
    pid = process["pid"] if process else _read_number(report.text("after/pid"))
    ended = report.text("after/ended").strip()
    return {
        "schema": 1, "barometer": collected.get("barometer", _UNKNOWN),
        "domain": _find_name(arguments) or f"QEMU {pid}", "uri": "", "boot": "wait",
        "until": float(_read_number(collected.get("until", "")) or 20),
        "release": report.text("release").strip(),
        "settings": _read_settings(report), "qemu": version[1] if version else _UNKNOWN,
        "libvirt": "none", "memory": _find_memory(arguments),
        "huge_pages": any("hugetlb=on" in a or "hugepages" in a for a in arguments),
        "kvm": "kvm" in tracing, "parts": tracing.get("parts") == "1",
        "huge_fault": "huge_fault" in tracing, "bars": list(_list_bars(report)),
        "pid": pid, "ended": ended, "process": process, "definition_changed": False,
    }  # fmt: skip


def _read_words(text: str) -> dict[str, str]:
    """Parse words `NAME=VALUE`."""
    return dict(word.partition("=")[::2] for word in text.split())


def _read_number(text: str) -> int:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _read_settings(report: HostReport) -> dict[str, str]:
    names = {
        "cmdline": "cmdline", "transparent_hugepage": "transparent_hugepage",
        "clocksource": "clocksource", "vfio_disable_hugepages": "type1/disable_hugepages",
        "dma_entry_limit": "type1/dma_entry_limit",
    }  # fmt: skip
    return {
        setting: report.text(name).strip()
        for setting, name in names.items()
        if name in report.sections
    }


def _read_process(report: HostReport) -> dict[str, object] | None:
    """Return QEMU's process at the end of the boot; None if it had ended."""
    text = report.text("after/process")
    tables = re.search(r"(?m)^VmPTE:\s+(\d{1,15}) kB", text)
    tasks = re.search(r"(?m)^task ([\d ]+)$", text)
    if tasks is None:
        return None
    maps = "".join(f"{line}\n" for line in text.splitlines() if "vfio" in line)
    return {
        "pid": _read_number(report.text("after/pid")),
        "threads": [int(word) for word in tasks[1].split()],
        "page_table_bytes": int(tables[1]) * KIB if tables else None, "maps": maps,
    }  # fmt: skip


def _list_bars(report: HostReport) -> Iterator[dict[str, object]]:
    """Yield the memory BARs of QEMU's devices; of all that may be, if it is not known which."""
    own = report.text("after/devices").split()
    for address in own or report.devices:
        lines = report.text(f"device/{address}/resource").splitlines()
        for number, line in enumerate(lines[:6]):
            if (words := _RESOURCE.fullmatch(line.strip())) is None:
                continue
            start, end, flags = (int(word, 16) for word in words.groups())
            if end > start and flags & IORESOURCE_MEM:
                yield {
                    "device": address, "number": number, "start": start, "size": end - start + 1,
                }  # fmt: skip


def _find_name(arguments: list[str]) -> str:
    """Return the guest's name (-name guest=NAME,...)."""
    value = _find_value(arguments, "-name")
    return value.split(",")[0].removeprefix("guest=")


def _find_memory(arguments: list[str]) -> int:
    """Return the bytes of the guest's memory; 0 if the command line does not tell."""
    value = _find_value(arguments, "-m") or _find_value(arguments, "--memory")
    match = _SIZE.match(value.split(",")[0].removeprefix("size="))
    return int(match[1]) * _FACTORS[match[2].lower()] if match else 0


def _find_value(arguments: list[str], option: str) -> str:
    for word, value in itertools.pairwise(arguments):
        if word == option:
            return value
    return ""
