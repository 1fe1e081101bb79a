"""The results that are read from pytest's junit files and logs, of real runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ci.lanes.results import find_failures, find_summary, read_junit, sort_dearest

TESTS = """
import pytest
def test_good(): pass
class TestClass:
    def test_within(self): pass
@pytest.mark.parametrize("n", [1, 2])
def test_bad(n): assert n == 1
@pytest.fixture
def broken():
    yield
    raise RuntimeError("left something")
def test_teardown(broken): pass
@pytest.mark.skip
def test_skipped(): pass
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ran")
    (folder / "tests").mkdir()
    (folder / "tests/test_some.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junit-xml=junit.xml",
         "tests/test_some.py"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return folder / "junit.xml", done.stdout


def test_outcomes_are_those_of_pytest(ran: tuple[Path, str]) -> None:
    results = read_junit(ran[0])
    found = [(case.name, case.outcome) for case in results.cases]
    assert {name for name, outcome in found if outcome == "failed"} == {
        "test_bad[2]", "test_teardown",
    }  # fmt: skip
    assert {"test_good", "test_within", "test_bad[1]"} <= {
        name for name, outcome in found if outcome == "passed"
    }
    assert ("test_skipped", "skipped") in found
    assert {case.file for case in results.cases} == {"tests/test_some.py"}
    assert results.seconds > 0


@pytest.mark.parametrize(
    ("line", "summary"),
    [
        ("===== 56 passed in 35.30s =====", "56 passed in 35.30s"),
        ("== 1 failed, 2 passed, 1 warning in 0.12s (0:00:00) ==",
         "1 failed, 2 passed, 1 warning in 0.12s (0:00:00)"),
        ("1 failed, 4 passed in 120.85s (0:02:00)", "1 failed, 4 passed in 120.85s (0:02:00)"),
        ("===== no tests ran in 0.01s =====", "no tests ran in 0.01s"),
        ("===== short test summary info =====", ""), ("FAILED tests/x.py - 1 failed", ""),
    ],
)  # fmt: skip
def test_summary_is_found_with_and_without_its_frame(line: str, summary: str) -> None:
    assert find_summary(f"before\n{line}\n") == summary


def test_summary_and_failures_are_pytests_own(ran: tuple[Path, str]) -> None:
    summary = find_summary(ran[1])
    assert "1 failed" in summary
    assert "1 skipped" in summary
    failures = find_failures(ran[1])
    assert "assert 2 == 1" in failures
    assert "left something" in failures
    assert len(find_failures(ran[1], 3).splitlines()) == 3


@pytest.mark.parametrize("text", [None, "", "<testsuites><testsuite", "<testsuites/>"])
def test_file_of_a_killed_process_is_no_result(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "junit.xml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=r"junit\.xml"):
        read_junit(file)


def test_dearest_come_first(ran: tuple[Path, str]) -> None:
    times = [case.seconds for case in sort_dearest(read_junit(ran[0]).cases, 3)]
    assert times == sorted(times, reverse=True)
    assert len(times) == 3
