"""Tests that saved runs judge: claims, their failures, errors, properties and KTAP."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.errors import EvidenceError, ScenarioError
from orchestrator.harness.claims import JudgedPair
from orchestrator.run.judging.judge import Run, judge, open_run
from tests.unit.recorded import copied_run, rewrite

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "fixtures/recorded"
XFAILS = [f"@pytest.mark.xfail({more}reason='later')\n" for more in ("", "strict=True, ")]
# the plugin is loaded by its entry point; -p would warn where it was imported before
PLUGIN = ("-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def levels() -> Run:
    return judge(open_run(RECORDED / "levels"))


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    return copied_run(tmp_path / "run")


def replay(pytester: pytest.Pytester, run: Path, body: str, *options: str) -> pytest.RunResult:
    """Run one test with the fixture `ab` on a saved run."""
    head = "import pytest\n"
    pytester.makepyfile(test_replayed=head + body)
    return pytester.runpytest_inprocess(*PLUGIN, "--barometer-replay", str(run), *options)


def test_the_examples_pass_on_recorded_runs(tmp_path: Path) -> None:
    ktap, junit = tmp_path / "results.ktap", tmp_path / "junit.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGIN, "-q", "tests/examples/test_saved_runs.py",
         "--barometer-replay", "fixtures/recorded", "--barometer-ktap", ktap,
         f"--junitxml={junit}"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    suite = ElementTree.parse(junit).getroot()[0]
    number, skipped = (int(suite.attrib[name]) for name in ("tests", "skipped"))
    assert number >= 30
    assert skipped == 2  # how JUnit has those that are marked as xfail
    check_ktap(ktap.read_text(), number)
    lookups = suite.findall(".//property[@name='pfn_lookups_per_map.candidate.median']")
    assert {item.attrib["value"] for item in lookups} == {"32"}


def check_ktap(text: str, number: int) -> None:
    """Check that plans and results agree, at both levels."""
    lines = text.splitlines()
    assert lines[0] == "KTAP version 1"
    for indent, of in (("", int(lines[1].partition("..")[2])), ("  ", number)):
        results = [
            match for line in lines
            if (match := re.fullmatch(rf"{indent}(ok|not ok) (\d+) [^#]+ # .*", line))
        ]  # fmt: skip
        assert [int(match[2]) for match in results] == [*range(1, of + 1)]


def test_loading_imports_nothing_of_ours(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.partition(".")[0] == "orchestrator"}
            assert ours == {"orchestrator", "orchestrator.pytest_plugin"}
            assert not {"pydantic", "numpy", "tomlkit"} & set(sys.modules)
        """
    )
    assert pytester.runpytest_subprocess(*PLUGIN).ret == 0


# claims


@given(st.floats(1.01, 1e7))
def test_improved_by_a_factor_is_the_ratio(levels: Run, factor: float) -> None:
    metric = JudgedPair(levels)["bar_map_cost"]
    assert metric.ratio is not None
    if 1 / factor >= metric.ratio:
        metric.improved(by=factor)
    else:
        with pytest.raises(AssertionError):
            metric.improved(by=factor)


@given(st.integers(0, 10**7), st.sampled_from(["baseline", "candidate"]))
def test_at_most_is_the_arms_own_number(levels: Run, most: int, arm: str) -> None:
    metric = JudgedPair(levels)["pfn_lookups_per_map"]
    if getattr(metric, arm) <= most:
        metric.at_most(most, arm=arm)  # type: ignore[arg-type]
    else:
        with pytest.raises(AssertionError):
            metric.at_most(most, arm=arm)  # type: ignore[arg-type]


def test_a_failure_has_the_reports_row_and_what_differs(levels: Run) -> None:
    with pytest.raises(AssertionError) as failed:
        JudgedPair(levels)["bar_unmap_cost"].not_regressed()
    text = str(failed.value)
    _, *cells = re.split(" {2,}", text.splitlines()[2].strip())
    assert len(cells) == 4
    assert all(cell.removesuffix(" *") in levels.report for cell in cells)
    assert "7.3.4+deb13-cloud-amd64" in text
    assert str(levels.path) in text


def test_a_margin_moves_the_verdict(levels: Run) -> None:
    metric = JudgedPair(levels)["bar_unmap_cost"]  # 43 % dearer
    with pytest.raises(AssertionError):
        metric.equivalent()
    with pytest.raises(AssertionError):
        metric.equivalent(margin="40%")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda ab: ab["bar_map_cots"],
        lambda ab: ab["guest_boot_cost"],
        lambda ab: ab["bar_map_cost"].at_most("1ms"),
        lambda ab: ab["bar_map_cost"].at_most(5),
        lambda ab: ab["pfn_lookups_per_map"].at_most("32 kinsn"),
        lambda ab: ab["pfn_lookups_per_map"].at_most("many"),
        lambda ab: ab["bar_map_cost"].improved(by=0.5),
        lambda ab: ab["bar_map_cost"].improved(by="120%"),
        lambda ab: ab["bar_map_cost"].improved(by="fast"),
        lambda ab: ab["bar_map_cost"].equivalent(margin=3),
    ],
)
def test_a_claim_that_makes_no_sense_is_no_verdict(levels: Run, wrong: object) -> None:
    with pytest.raises(ScenarioError):
        wrong(JudgedPair(levels))  # type: ignore[operator]


def test_a_level_that_was_not_counted_is_not_known(levels: Run) -> None:
    with pytest.raises(EvidenceError):
        JudgedPair(levels).level("512MiB", arm="baseline")


# which run


def test_a_run_is_chosen_by_the_marks(pytester: pytest.Pytester) -> None:
    done = replay(
        pytester, RECORDED,
        """
@pytest.mark.barometer("device.bar=4GiB", workload="map")
def test_levels(run_dir):
    assert run_dir.name == "levels"

@pytest.mark.barometer(guest={"firmware": "ovmf"}, device={"count": 1})
@pytest.mark.barometer("guest.kernel.suite=trixie-backports")
def test_cell(run_dir):
    assert False, "a kernel takes the whole table, and this one lacks its package"
        """,
    )  # fmt: skip
    done.assert_outcomes(errors=1)


@pytest.mark.parametrize(
    "mark",
    ['"device.bar=2GiB"', 'name="nothing-like-it"', 'workload="map"', 'map={"repeats": 7}'],
)
def test_a_run_that_was_made_otherwise_is_not_taken(pytester: pytest.Pytester, mark: str) -> None:
    body = f"@pytest.mark.barometer({mark})\ndef test_it(ab):\n    pass\n"
    done = replay(pytester, RECORDED, body, f"--junitxml={pytester.path}/junit.xml")
    done.assert_outcomes(errors=1)


def test_an_expectation_judges_any_run(pytester: pytest.Pytester) -> None:
    done = replay(
        pytester, RECORDED / "levels",
        """
@pytest.mark.barometer(expect={"bar_map_cost": "<= 50 kinsn"})
def test_met(ab):
    ab.as_expected()

@pytest.mark.barometer(expect={"bar_unmap_cost": "improved"})
def test_not_met(ab):
    ab.as_expected()
        """,
    )  # fmt: skip
    done.assert_outcomes(passed=1, failed=1)


# errors


@pytest.mark.parametrize("mark", ["", *XFAILS])
def test_invalid_evidence_is_an_error(
    pytester: pytest.Pytester, small_run: Path, mark: str
) -> None:
    rewrite(small_run / "trials/0002-candidate/host/dmesg.txt", lambda text: text + "altered\n")
    body = f"{mark}def test_it(ab):\n    pass\n"
    junit = pytester.path / "junit.xml"
    ktap = pytester.path / "results.ktap"
    done = replay(pytester, small_run, body, f"--junitxml={junit}", f"--barometer-ktap={ktap}")
    done.assert_outcomes(errors=1)
    assert done.ret == 1
    suite = ElementTree.parse(junit).getroot()[0]
    assert suite.attrib["errors"] == "1"
    assert suite.attrib["skipped"] == "0"
    assert "  not ok 1 test_it # ERROR " in ktap.read_text()


@pytest.mark.parametrize("mark", ["", *XFAILS])
def test_what_the_run_does_not_decide_is_an_error(pytester: pytest.Pytester, mark: str) -> None:
    """The main job has one pair: its unmap, +17 %, is inconclusive."""
    body = f"{mark}def test_it(ab):\n    ab['bar_unmap_cost'].not_regressed()\n"
    junit = pytester.path / "junit.xml"
    done = replay(pytester, RECORDED / "debian-6.12-vs-7", body, f"--junitxml={junit}")
    done.assert_outcomes(errors=1)
    assert ElementTree.parse(junit).getroot()[0].attrib["failures"] == "0"


def test_a_wrong_claim_is_a_failure_that_xfail_waits_for(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.xfail(strict=True, reason="today")
def test_waits(ab):
    ab["bar_unmap_cost"].not_regressed()

@pytest.mark.xfail(strict=True, reason="today")
def test_is_mended(ab):
    ab["bar_map_cost"].improved()

def test_fails(ab):
    ab["bar_unmap_cost"].not_regressed()
"""
    ktap = pytester.path / "results.ktap"
    done = replay(pytester, RECORDED / "levels", body, f"--barometer-ktap={ktap}")
    done.assert_outcomes(xfailed=1, failed=2)
    text = ktap.read_text()
    check_ktap(text, 3)
    assert "  ok 1 test_waits # XFAIL today" in text
    assert "  not ok 2 test_is_mended # " in text


def test_a_folder_without_a_run_is_an_error(pytester: pytest.Pytester, tmp_path: Path) -> None:
    replay(pytester, tmp_path, "def test_it(ab):\n    pass\n").assert_outcomes(errors=1)


def test_no_console_is_no_evidence_of_silence(pytester: pytest.Pytester, small_run: Path) -> None:
    for trial in (small_run / "trials").iterdir():
        for console in (trial / "host").glob("console.log*"):
            console.unlink()
    body = "def test_it(kmsg):\n    assert not kmsg.reports\n"
    replay(pytester, small_run, body).assert_outcomes(errors=2)


def test_a_lockup_is_found_in_the_right_arm(pytester: pytest.Pytester, small_run: Path) -> None:
    console = small_run / "trials/0002-candidate/host/console.log"
    line = "[  100.000001] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!\n"
    console.write_text((console.read_text() if console.exists() else "") + line)
    body = "def test_it(kmsg, arm):\n    kmsg.require_none(['soft-lockup'])\n"
    if not (small_run / "trials/0001-baseline/host/console.log").exists():
        other = small_run / "trials/0001-baseline/host/console.log"
        other.write_text(console.read_text().replace(line, "[  100.000001] quiet\n"))
    done = replay(pytester, small_run, body)
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["FAILED *test_it?candidate?*"])


def test_several_processes_give_the_same_results(pytester: pytest.Pytester) -> None:
    body = """
def test_it(ab, arm):
    ab["bar_map_cost"].improved()

def test_wrong(ab):
    ab["bar_unmap_cost"].improved()
"""
    ktap = pytester.path / "results.ktap"
    pytester.makepyfile(test_replayed=body)
    done = pytester.runpytest_subprocess(
        *PLUGIN, "-n2", "--barometer-replay", str(RECORDED / "levels"),
        f"--barometer-ktap={ktap}",
    )  # fmt: skip
    done.assert_outcomes(passed=2, failed=1)
    check_ktap(ktap.read_text(), 3)
