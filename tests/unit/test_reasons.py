"""The reasons of failures: every error has one, every one is used, none is spelled by hand."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import orchestrator
from orchestrator.base import interrupts
from orchestrator.base.ends import EXIT_CODES, Ends
from orchestrator.base.errors import BarometerError, BenchError, EvidenceError, ScenarioError
from orchestrator.base.reasons import Reason, find_reason, parse_reason
from orchestrator.evidence.faults import FAULTS, fault_of
from orchestrator.formats.kernelreports import STALLS
from orchestrator.machine.metal import keeper
from orchestrator.machine.runner import images
from orchestrator.machine.transport import shell

SOURCES = Path(orchestrator.__file__).parent
TABLE = {"reasons.py", "faults.py"}
CLASSES = {
    "ScenarioError": Ends.INPUT,
    "BenchError": Ends.BENCH,
    "LeftError": Ends.LEFT,
    "ConnectionLostError": Ends.BENCH,
    "MissingExtraError": Ends.BENCH,
    "ArmFailedError": Ends.TRIAL,
    "EvidenceError": Ends.EVIDENCE,
}
OTHER_WORDS = {
    "map-refused": {"refusals.py"},  # names of pieces of advice
    "bar-not-placed": {"passthrough.py", "places.py"},  # why a device is of no use
    "systemd-boot": {
        "vocabulary.py",
        "machines.py",
        "finding.py",
        "checkup_facts.py",
    },  # a way to boot
    "domain-ended": {"profile.py", "profile_facts.py", "profile_text.py"},  # how a profile ended
    "not-measured": {"cases.py"},  # a metric's case, whose reason is else a verdict
    "build-root": {"buildroot.py"},  # a kind of entry in the cache
    # names of the doctor's findings
    "address-bits": {"checks_passthrough.py", "finding.py", "refusals.py"},
    "interrupt-remapping": {"checks_passthrough.py", "finding.py", "messages.py"},
    "large-bar": {"checks_passthrough.py", "finding.py"},
    "libvirt-library": {"checks_runner.py", "finding.py"},
}
"""Names of files in which the word of a reason means something else."""
RESULTS_ONLY = [
    Reason.NOT_MEASURED,
    Reason.UNFINISHED,
    Reason.SETTINGS_NOT_PROVEN,
    Reason.SAME_BOOT,
    Reason.UNDECIDED_FAILURE,
]
"""Reasons of results that no error has."""


class Site(NamedTuple):
    path: Path
    node: ast.AST

    def __str__(self) -> str:
        return f"{self.path.relative_to(SOURCES.parent)}:{getattr(self.node, 'lineno', 0)}"

    @property
    def name(self) -> str:
        return self.path.relative_to(SOURCES).as_posix()


@cache
def nodes() -> tuple[Site, ...]:
    """Return every node of the program's syntax trees, but for the table of reasons."""
    return tuple(
        Site(path, node)
        for path in sorted(SOURCES.rglob("*.py"))
        if path.name not in TABLE
        for node in ast.walk(ast.parse(path.read_text()))
    )


def name_of(node: ast.AST) -> str:
    """Return the last part of a dotted name, or an empty string."""
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


@cache
def error_classes() -> dict[str, ast.ClassDef | None]:
    """Return the names of BarometerError and of the classes derived from it."""
    classes: dict[str, ast.ClassDef | None] = {"BarometerError": None}
    derived = [site.node for site in nodes() if isinstance(site.node, ast.ClassDef)]
    while more := {
        c.name: c for c in derived
        if c.name not in classes and any(name_of(base) in classes for base in c.bases)
    }:  # fmt: skip
        classes |= more
    return classes


def takes_no_reason(name: str) -> bool:
    """True for a class whose own __init__ gives the reason."""
    definition = error_classes()[name]
    inits = [
        f for f in definition.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"
    ] if definition else []  # fmt: skip
    return any("reason" not in {a.arg for a in f.args.kwonlyargs} for f in inits)


def made_errors() -> Iterator[tuple[Site, str, ast.expr | None]]:
    """Yield each place that makes an error: the name of its class, and its reason."""
    for site in nodes():
        if isinstance(site.node, ast.Call) and name_of(site.node.func) in error_classes():
            reason = next((k.value for k in site.node.keywords if k.arg == "reason"), None)
            yield site, name_of(site.node.func), reason


def members(value: ast.AST | None) -> Iterator[Reason]:
    """Yield the reasons that an expression names."""
    for node in ast.walk(value) if value else ():
        if isinstance(node, ast.Attribute) and name_of(node.value) == "Reason":
            yield Reason[node.attr]


def refused_reasons() -> Iterator[tuple[str, str]]:
    """Yield each reason with which the keeper refuses a request; it becomes the error's reason."""
    for path in (images.GUESTS / "agents/keeper").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                keys = [getattr(key, "value", None) for key in node.keys]
                values = [v for k, v in zip(keys, node.values, strict=True) if k == "refused"]
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("RefusedError", "refused_as")
            ):
                values = node.args[:1]
            else:
                continue
            for value in values:
                if isinstance(value, ast.Constant):
                    yield str(value.value), f"keeper/{path.name}:{node.lineno}"


def problems() -> Iterator[tuple[str, Site]]:
    """Yield the name of each finding of the doctor that may be in the way of a run."""
    for site in nodes():
        node = site.node
        if isinstance(node, ast.Call) and name_of(node.func) == "Finding":
            name, status = node.args[:2]
            is_known = isinstance(status, (ast.Constant, ast.IfExp))
            may_be = not is_known or "problem" in ast.unparse(status)
            if may_be and isinstance(name, ast.Constant):
                yield str(name.value), site


def test_sources_are_found() -> None:
    assert {"HeldError", "LeftError", *CLASSES} < error_classes().keys()
    assert takes_no_reason("HeldError")
    assert not takes_no_reason("BenchError")
    assert len([*made_errors()]) > 300
    refused = dict(refused_reasons())
    assert {"bind", "modules-refused", "driver-hangs", "lease-held", "os-error"} <= refused.keys()
    assert {"shm", "programs", "lockdown", "iommu"} <= dict(problems()).keys()


def test_every_error_has_a_reason() -> None:
    without = [
        str(site) for site, name, reason in made_errors()
        if reason is None and not takes_no_reason(name)
    ]  # fmt: skip
    assert without == []
    with pytest.raises(TypeError):
        BarometerError("it has none")  # type: ignore[call-arg]


def test_every_reason_is_used() -> None:
    used = {reason for site in nodes() for reason in members(site.node)}
    by_name = {*dict(refused_reasons()), *dict(problems())}
    assert [r for r in Reason if r not in used and r not in by_name] == []


def test_reasons_of_agents_and_of_findings_are_in_the_table() -> None:
    for reason, place in refused_reasons():
        assert reason in FAULTS, place
    for name, site in problems():
        if site.path.name != "doctor.py":  # its finding is in the way of no run
            assert Ends.BENCH in find_reason(name).ends, site


def test_reasons_of_the_bench_are_in_the_table_of_faults() -> None:
    """A trial may end for each."""
    number = 0
    for site in nodes():
        is_of_trial = site.name.startswith("machine/") or site.name == "run/trial.py"
        if is_of_trial and isinstance(site.node, ast.Call):
            values = [k.value for k in site.node.keywords if k.arg == "reason"]
            for reason in (r for value in values for r in members(value)):
                assert reason in FAULTS, f"{site}: {reason}"
                number += 1
    assert number > 60
    assert {f"host-{kind}" for kind in STALLS} <= FAULTS.keys()


def test_exit_codes_are_those_of_the_errors() -> None:
    ends: defaultdict[Reason, Ends] = defaultdict(lambda: Ends(0))
    for site, name, value in made_errors():
        for reason in members(value):
            # a trial's manifest has this error; the exception itself goes on to the command
            if reason is Reason.BUG:
                continue
            assert CLASSES[name] in reason.ends, f"{site}: {name} for {reason}"
            ends[reason] |= CLASSES[name]
    # these two classes are always named where they are raised; another one may be in a variable
    for end, without_error in ((Ends.INPUT, []), (Ends.EVIDENCE, RESULTS_ONLY)):
        unraised = [r for r in Reason if end in r.ends and end not in ends[r]]
        assert unraised == without_error


def test_codes_of_the_table_are_those_of_the_classes() -> None:
    classes = {Ends.INPUT: ScenarioError, Ends.BENCH: BenchError, Ends.EVIDENCE: EvidenceError,
               Ends.LEFT: keeper.LeftError}  # fmt: skip
    for end, error in classes.items():
        assert EXIT_CODES[end] == error.exit_code
    assert EXIT_CODES[Ends.INTERRUPT] == interrupts.EXIT_CODE
    assert {*Ends} == {*EXIT_CODES, Ends.TRIAL}
    assert all(reason.ends for reason in Reason)


def texts(value: ast.expr) -> Iterator[ast.expr]:
    """Yield the strings that an expression may evaluate to, or be compared with."""
    if isinstance(value, ast.IfExp):
        yield from texts(value.body)
        yield from texts(value.orelse)
    elif isinstance(value, (ast.Tuple, ast.List, ast.Set)):
        for element in value.elts:
            yield from texts(element)
    elif isinstance(value, (ast.Constant, ast.JoinedStr)):
        yield value


def spelled() -> Iterator[str]:
    """Yield the places of strings that are the name of a reason, or are used as one."""
    names = {str(reason) for reason in Reason}
    for site in nodes():
        node = site.node
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            values = [k.value for k in node.keywords if k.arg == "reason"]
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            values = sides if any(ast.unparse(side) == "exc.reason" for side in sides) else []
        for text in (text for value in values for text in texts(value)):
            yield f"{site}: {ast.unparse(text)}"
        # a short word has other meanings
        word = node.value if isinstance(node, ast.Constant) else None
        if isinstance(word, str) and "-" in word and word in names - _meant_otherwise(site):
            yield f"{site}: {word}"


def _meant_otherwise(site: Site) -> set[str]:
    return {word for word, files in OTHER_WORDS.items() if site.path.name in files}


def test_no_reason_is_spelled_by_hand() -> None:
    assert [*spelled()] == []


def test_names_and_texts_are_sound() -> None:
    for reason in Reason:
        assert reason == reason.name.lower().replace("_", "-")
        assert re.fullmatch("[a-z]+(-[a-z]+)*", reason)
        for text in (reason.meaning, reason.remedy):
            assert text
            assert not text.endswith(".")
            assert "|" not in text


def test_unknown_reasons_of_other_versions_are_kept_as_text_and_never_raised() -> None:
    assert parse_reason("never-heard-of") is None
    assert parse_reason("guest-panic") is Reason.GUEST_PANIC
    assert fault_of("never-heard-of").charge == "bench"
    refused = keeper._refused("host", {"refused": "never-heard-of", "message": "no"})
    assert refused.reason is Reason.KEEPER_FAILED
    assert "never-heard-of" in refused.message


@pytest.mark.parametrize(("name", "prefix"), [("host", "host"), ("guest 2", "guest")])
def test_reasons_of_a_connection_are_its_machines(name: str, prefix: str) -> None:
    assert {r.partition("-")[0] for r in shell._reasons(name)} == {prefix}
