"""The groups that count as proven, and how a run of the tests ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from ci.lanes.groups import Group, Groups
from ci.lanes.processes import Finished, Process, Runner
from ci.lanes.proofs import Proof, read_proofs
from ci.lanes.session import FULL, Session

A, B = (Group(name, (f"tests/lab/test_{name}.py",), (), (), "hosts") for name in "ab")
CONTENT = {"a": "content-a", "b": "content-b"}
VERSIONS = {"a": "v", "b": "v"}
OLD = Proof("old", "v", 1, "2026-01-01")
PASSED, FAILED, SKIPPED = "", "<failure/>", "<skipped/>"


class Made(Runner):
    """A runner whose processes have ended as a test defines."""

    def __init__(self, results: Path) -> None:
        super().__init__(results, lambda _: None)
        self.ended: list[Finished] = []

    def add(
        self, name: str, tests: dict[str, str], *, code: int | None = None, left: str = "",
        seconds: float = 3.0, junit: bool = True,
    ) -> None:  # fmt: skip
        """`tests` maps a group to the content of its only test's junit element."""
        cases = "".join(
            f'<testcase classname="tests.lab.test_{group}" name="test_{group}" time="{seconds}">'
            f"{inside}</testcase>"
            for group, inside in tests.items()
        )
        file, log = self.results / f"{name}.xml", self.results / f"{name}.log"
        if junit:
            text = f'<testsuites><testsuite time="{seconds}">{cases}</testsuite></testsuites>'
            file.write_text(text)
        log.write_text("==== 1 passed in 1 s ====\n")
        if code is None:
            code = int(FAILED in tests.values())
        process = Process(name, (), 0)
        self.ended.append(Finished(process, code, log, file, left))

    def run(self, queue: Sequence[Process], at_once: int) -> Iterator[Finished]:
        yield from self.ended


@pytest.fixture
def session(tmp_path: Path) -> Session:
    proofs = {"a": OLD, "b": OLD}
    return Session(
        Groups((A, B), ()), proofs, {"hosts": 10}, Made(tmp_path), lambda: False,
        tmp_path / "proofs.toml",
    )  # fmt: skip


def prove(session: Session, before: dict[str, str] = CONTENT) -> dict[str, Proof]:
    session.run([])
    session.prove([A, B], before, CONTENT, VERSIONS)
    assert read_proofs(session.file) == session.proofs
    return session.proofs


def add(session: Session, name: str, tests: dict[str, str], **how: object) -> None:
    assert isinstance(session.runner, Made)
    session.runner.add(name, tests, **how)  # type: ignore[arg-type]


def test_group_is_proven_when_its_landing_and_its_full_tests_have_passed(session: Session) -> None:
    add(session, "hosts", {"a": PASSED, "b": PASSED})
    add(session, "hosts" + FULL, {"a": PASSED, "b": PASSED}, seconds=7)
    found = prove(session)
    assert [(p.content, p.versions, p.seconds) for p in found.values()] == [
        ("content-a", "v", 7), ("content-b", "v", 7),
    ]  # fmt: skip
    assert session.end() == 0


@pytest.mark.parametrize("inside", [FAILED, SKIPPED])
@pytest.mark.parametrize("where", ["hosts", "hosts" + FULL])
def test_one_that_fails_or_skips_loses_its_proof_and_no_other_does(
    session: Session, inside: str, where: str
) -> None:
    for name in ("hosts", "hosts" + FULL):
        add(session, name, {"a": inside if name == where else PASSED, "b": PASSED})
    found = prove(session)
    assert {*found} == {"b"}
    assert found["b"].content == "content-b"
    assert session.end() == 1


@pytest.mark.parametrize(
    "how", [{"left": "run dead: cleaned"}, {"junit": False, "code": -9}], ids=["left", "killed"]
)
def test_process_that_was_killed_or_left_something_proves_nothing(
    session: Session, how: dict[str, object]
) -> None:
    add(session, "hosts", {"a": PASSED, "b": PASSED})
    add(session, "hosts" + FULL, {"a": PASSED, "b": PASSED}, **how)
    assert prove(session) == {"a": OLD, "b": OLD}
    assert session.end() == 1


def test_what_was_edited_meanwhile_is_not_proven(session: Session) -> None:
    for name in ("hosts", "hosts" + FULL):
        add(session, name, {"a": PASSED, "b": PASSED})
    found = prove(session, CONTENT | {"a": "before"})
    assert (found["a"], found["b"].content) == (OLD, "content-b")


def test_group_without_known_packages_is_not_proven(session: Session) -> None:
    for name in ("hosts", "hosts" + FULL):
        add(session, name, {"a": PASSED, "b": PASSED})
    session.run([])
    session.prove([A], CONTENT, CONTENT, {})
    assert session.proofs["a"] == OLD


@pytest.mark.parametrize(("busy", "code"), [(False, 1), (True, 0)])
def test_lane_over_budget_fails_unless_the_machine_was_busy(
    session: Session, busy: bool, code: int
) -> None:
    session.is_busy = lambda: busy
    add(session, "hosts", {"a": PASSED}, seconds=11)
    session.run([])
    assert session.end() == code


def test_last_line_has_the_sum_of_all_tests(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    add(session, "hosts", {"a": PASSED, "b": FAILED})
    add(session, "hosts" + FULL, {"a": PASSED})
    session.run([])
    session.end()
    assert capsys.readouterr().out.splitlines()[-1] == "2 passed, 1 failed"
