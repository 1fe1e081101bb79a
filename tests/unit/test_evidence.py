from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.base.bounded import TRIAL_BYTES
from orchestrator.base.errors import (
    ArmFailedError,
    BarometerError,
    BenchError,
    EvidenceError,
    ScenarioError,
)
from orchestrator.base.reasons import Reason
from orchestrator.evidence.faults import Attempt, Charge, Charged
from orchestrator.evidence.layout import (
    RunDir,
    TrialDir,
    TrialWriter,
    read_json,
    write_json,
)
from orchestrator.evidence.manifest import Ended
from tests.unit.manifests import WHOLE, facts_of, manifest_of, plan_of

PLAN = plan_of()


def writer(tmp_path: Path, name: str = "0001-baseline") -> TrialWriter:
    return TrialWriter(tmp_path / "trials" / name, facts_of())


def test_trial_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    final = tmp_path / "trials/0001-baseline"
    (trial.host / "console.log").write_text("hello\n")
    assert not final.exists()
    assert trial.path == TrialWriter.partial_path(final)
    done = trial.complete()
    assert done.path == final
    assert not trial.path.exists()
    assert done.manifest.outcome.kind == "collected"
    assert list(done.manifest.files) == ["host/console.log"]
    assert done.verify() is None


def test_partial_trial_is_no_trial_of_the_run(tmp_path: Path) -> None:
    writer(tmp_path)
    assert RunDir(tmp_path).trials() == []


def test_manifest_is_on_disk_while_the_trial_runs(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    with trial.stage("host-boot"):
        now = json.loads((trial.path / "manifest.json").read_text())
        assert now["stages"][0]["outcome"] == "running"
        assert now["outcome"] == {"kind": "unfinished"}
    trial.record(boot_id="x")
    now = json.loads((trial.path / "manifest.json").read_text())
    assert now["stages"][0]["outcome"] == "ok"
    assert now["stages"][0]["seconds"] >= 0
    assert now["boot_id"] == "x"


@given(st.text(st.characters(exclude_categories=())), st.lists(st.text()))
def test_what_is_recorded_is_read_back(words: str, left: list[str]) -> None:
    """A program may print anything, also what is no UTF-8."""
    with tempfile.TemporaryDirectory() as folder:
        trial = writer(Path(folder))
        trial.record(host_left=left, host_versions={"qemu": "10"})
        trial.add_guest(0, "plain", 1 << 29)
        error = BenchError(words, evidence=words, reason=Reason.TIMEOUT)
        trial.failed(error, "boot", Charged("bench", "it was slow"))
        done = trial.complete().manifest
        assert done == trial.manifest
        assert isinstance(done.outcome, Ended)
        assert done.outcome.evidence == error.evidence.encode(errors="replace").decode()
        assert (done.host_left, done.guests[0].in_pass) == (tuple(left), "plain")


@pytest.mark.parametrize(
    "facts", [{"boot_id": 7}, {"host_left": "x"}, {"seconds": -1.0}, {"stages": [{"name": "x"}]}]
)
def test_what_is_no_manifest_is_a_bug_and_not_recorded(
    tmp_path: Path, facts: dict[str, object]
) -> None:
    trial = writer(tmp_path)
    before = (trial.path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="validation error"):
        trial.record(**facts)
    assert (trial.path / "manifest.json").read_bytes() == before


def test_stages_within_a_stage_are_in_the_order_of_their_beginnings(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    with trial.stage("outer"), contextlib.suppress(BenchError):
        with trial.stage("inner"):
            pass
        with trial.stage("failing"):
            raise BenchError("no", reason=Reason.DEVICE_MISSING)
    assert [(stage.name, stage.outcome) for stage in trial.complete().manifest.stages] == [
        ("outer", "ok"), ("inner", "ok"), ("failing", "device-missing"),
    ]  # fmt: skip


def test_failed_stage_has_the_reason(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    with pytest.raises(BenchError), trial.stage("device"):
        raise BenchError("no", reason=Reason.DEVICE_MISSING)
    with pytest.raises(ZeroDivisionError), trial.stage("other"):
        raise ZeroDivisionError
    assert [stage.outcome for stage in trial.manifest.stages] == [
        "device-missing",
        "ZeroDivisionError",
    ]


def test_failure_of_the_arm_is_charged_to_it_and_failure_of_the_bench_is_not(
    tmp_path: Path,
) -> None:
    first, second = writer(tmp_path, "0001-baseline"), writer(tmp_path, "0002-candidate")
    oops = ArmFailedError("oops", evidence="BUG:", reason=Reason.HOST_PANIC)
    first.failed(oops, "guest-0", Charged("arm", "vfio_x is in the call trace"), "[ 1.0] BUG:")
    second.failed(
        BenchError("no", reason=Reason.COMMAND_FAILED), "device", Charged("bench", "it did")
    )
    assert first.complete().manifest.outcome.to_json() == {
        "kind": "failed", "by_bench": False, "stage": "guest-0", "reason": "host-panic",
        "message": "oops", "evidence": "BUG:", "charge": "arm",
        "why": "vfio_x is in the call trace", "line": "[ 1.0] BUG:",
    }  # fmt: skip
    outcome = second.complete().manifest.outcome
    assert isinstance(outcome, Ended)
    assert (outcome.kind, outcome.by_bench) == ("invalid", True)


@pytest.mark.parametrize(
    ("error", "charge", "expected"),
    [
        (ArmFailedError, "undecided", ("failed", False)),
        (ArmFailedError, "bench", ("invalid", True)),
        (BenchError, "undecided", ("invalid", True)),
        (EvidenceError, "undecided", ("invalid", False)),
    ],
)
def test_kind_of_an_outcome_follows_from_whom_it_is_charged_to(
    tmp_path: Path, error: type[BarometerError], charge: Charge, expected: tuple[str, bool]
) -> None:
    trial = writer(tmp_path, "0001-baseline")
    trial.failed(error("x", reason=Reason.GUEST_HANG), "guest-0", Charged(charge, "because"))
    done = trial.complete()
    outcome = done.manifest.outcome
    assert isinstance(outcome, Ended)
    assert (outcome.kind, outcome.by_bench) == expected
    assert done.attempts() == (Attempt("baseline", "guest-hang", charge, "guest-0", "x"),)


@pytest.mark.parametrize(("kind", "charge"), [("failed", "arm"), ("invalid", "bench")])
def test_failure_of_an_older_version_is_charged_as_it_was_then(kind: str, charge: Charge) -> None:
    outcome = {"kind": kind, "reason": "guest-hang", "stage": "s", "message": "m", "evidence": ""}
    manifest = manifest_of(arm="candidate", outcome=outcome, repeated=["host-crash"])
    assert manifest.attempts() == (
        Attempt("candidate", "host-crash", "bench"),  # a bare reason is the emulator's failure
        Attempt("candidate", "guest-hang", charge, "s", "m"),
    )


def test_attempt_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    first = writer(tmp_path)
    (first.host / "console.log").write_text("one")
    first.complete()
    second = writer(tmp_path)
    (second.host / "dmesg.txt").write_text("two")
    assert [*second.complete().manifest.files] == ["host/dmesg.txt"]


def test_text_may_be_compressed(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    (trial.host / "trace.txt.gz").write_bytes(gzip.compress("caf\u00e9\n".encode()))
    assert trial.text("host/trace.txt") == "caf\u00e9\n"
    assert list(trial.complete().manifest.files) == ["host/trace.txt.gz"]


def test_plain_text_comes_before_the_compressed_one(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    (trial.host / "x.txt.gz").write_bytes(gzip.compress(b"packed"))
    (trial.host / "x.txt").write_text("plain")
    assert trial.text("host/x.txt") == "plain"
    (trial.host / "x.txt").unlink()
    assert trial.text("host/x.txt") == "packed"


def test_text_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert writer(tmp_path).text("host/x.txt") is None


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    (trial.host / "x.txt").write_bytes(b"a\xff")
    (trial.host / "y.txt.gz").write_bytes(gzip.compress(b"a\xff"))
    assert trial.text("host/x.txt") == trial.text("host/y.txt") == "a\ufffd"


PACKED = gzip.compress(b"0123456789" * 100)


@pytest.mark.parametrize(
    "content",
    [PACKED[:-1], PACKED[:20], PACKED[:5], b"plain text", PACKED[:15] + b"\xff" * 20,
     PACKED[:-8] + bytes(8)],
    ids=["cut", "short", "head", "plain", "garbled", "checksum"],
)  # fmt: skip
def test_compressed_text_that_is_not_whole_is_bad_evidence(tmp_path: Path, content: bytes) -> None:
    trial = writer(tmp_path)
    (trial.host / "x.txt.gz").write_bytes(content)
    with pytest.raises(EvidenceError, match=r"host/x\.txt\.gz") as caught:
        trial.text("host/x.txt")
    assert caught.value.reason == "bad-evidence"


def test_changed_and_missing_files_are_noticed(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    for name in ("a.txt", "b.txt"):
        (trial.host / name).write_text(name)
    done = trial.complete()
    (done.host / "b.txt").write_text("B")
    assert done.verify() == "host/b.txt changed since it was collected"
    (done.host / "a.txt").unlink()
    assert done.verify() == "host/a.txt is missing"


def test_files_that_are_not_there_read_as_none(tmp_path: Path) -> None:
    done = writer(tmp_path).complete()
    assert done.text("host/nothing.txt") is None
    assert done.maps() is None
    assert done.host_facts() is None
    assert done.guest(3) == done.path / "guest-3"


def test_text_that_is_no_utf8_is_still_read(tmp_path: Path) -> None:
    trial = writer(tmp_path)
    (trial.host / "console.log").write_bytes(b"ok \xff\n")
    assert trial.text("host/console.log") == "ok \ufffd\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 2}', '"x"'])
def test_manifest_that_is_none_is_an_evidence_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(EvidenceError) as caught:
        TrialDir.open(tmp_path)
    assert caught.value.reason == "bad-evidence"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "outcome",
    [
        {}, [], None, "collected", {"by_bench": True},
        {"kind": "failed", "stage": "s", "message": "m", "evidence": ""},
        {"kind": "invalid", "reason": "r", "stage": "s", "message": "m"},
    ],
)  # fmt: skip
def test_manifest_whose_outcome_lacks_something_is_an_evidence_error(
    tmp_path: Path, outcome: object
) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(WHOLE | {"outcome": outcome}))
    with pytest.raises(EvidenceError, match=r"manifest\.json: outcome") as caught:
        TrialDir.open(tmp_path)
    assert (caught.value.reason, caught.value.exit_code) == ("bad-evidence", 4)


def test_missing_manifest_is_an_evidence_error(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"manifest\.json") as caught:
        TrialDir.open(tmp_path)
    assert caught.value.reason == Reason.MISSING_EVIDENCE


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    write_json(path, {"a": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_run_is_made_and_taken_up_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep/run"
    RunDir.create(folder, "name = 1", PLAN)
    again = RunDir.create(folder, "name = 1", plan_of(barometer="0.2"))
    assert again.plan() == PLAN
    assert RunDir.open(folder).plan() == PLAN


def test_run_of_other_trials_is_not_taken_up_again(tmp_path: Path) -> None:
    other = {"name": "0001-baseline", "pair": 1, "arm": "baseline", "passes": ["plain"]}
    RunDir.create(tmp_path / "run", "x", PLAN)
    with pytest.raises(ScenarioError) as caught:
        RunDir.create(tmp_path / "run", "x", plan_of(trials=[other]))
    assert caught.value.reason == Reason.RUN_CHANGED


def test_configs_are_written_when_a_run_is_created(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "x", PLAN, {"baseline": "CONFIG_A=y\n"})
    assert run.config("baseline") == "CONFIG_A=y\n"
    assert run.config("candidate") is None
    RunDir.create(tmp_path / "run", "x", PLAN, {"baseline": "", "candidate": "CONFIG_A=y\n"})
    assert run.config("baseline") == "CONFIG_A=y\n"
    assert run.config("candidate") is None


def test_run_that_was_ended_while_it_was_created_is_created_again(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", "x", PLAN, {"baseline": "CONFIG_A=y\n"})
    (tmp_path / "run/plan.json").unlink()
    assert RunDir.create(tmp_path / "run", "x", PLAN, {"baseline": ""}).config("baseline") == ""


def test_config_that_cannot_be_read_is_bad_evidence(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "x", PLAN)
    (tmp_path / "run/kernels/baseline.config").mkdir(parents=True)
    with pytest.raises(EvidenceError, match=r"baseline\.config") as caught:
        run.config("baseline")
    assert caught.value.reason == Reason.BAD_EVIDENCE


def test_run_is_not_taken_up_again_with_another_kernel(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", "name = 1", PLAN)
    kernels = PLAN.kernels.to_json()
    newer = PLAN.kernels.candidate.to_json() | {"digest": "newer"}
    moved = plan_of(kernels=kernels | {"candidate": newer})
    with pytest.raises(ScenarioError, match="candidate's kernel"):
        RunDir.create(tmp_path / "run", "name = 1", moved)


def test_run_of_another_scenario_is_left_alone(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "run", "name = 1", PLAN)
    with pytest.raises(ScenarioError) as caught:
        RunDir.create(tmp_path / "run", "name = 2", PLAN)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.RUN_EXISTS, 2)
    assert (tmp_path / "run/scenario.toml").read_text() == "name = 1"


def test_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ScenarioError) as caught:
        RunDir.create(tmp_path, "name = 1", PLAN)
    assert caught.value.reason == Reason.RUN_EXISTS
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_folder_without_a_run_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError) as caught:
        RunDir.open(tmp_path)
    assert (caught.value.reason, caught.value.exit_code) == (Reason.MISSING_EVIDENCE, 4)


def test_trials_are_read_in_order(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", "x", PLAN)
    for name in ("0002-candidate", "0001-baseline"):
        TrialWriter(run.trials_path / name, facts_of(arm=name[5:])).complete()
    assert [t.path.name for t in run.trials()] == ["0001-baseline", "0002-candidate"]
    assert [t.manifest.trial for t in run.trials()] == ["0001-baseline", "0002-candidate"]


def test_error_says_what_why_and_what_to_do() -> None:
    error = BenchError(
        "no kernel", evidence="one\ntwo", hint="look there", reason=Reason.NO_SUCH_KERNEL
    )
    assert str(error) == "no kernel\n  | one\n  | two\nhint: look there"
    assert str(BenchError("just this", reason=Reason.NO_SUCH_KERNEL)) == "just this"


def test_trial_that_takes_too_much_of_the_disk_begins_no_other_stage(tmp_path: Path) -> None:
    trial = TrialWriter(tmp_path / "0001-baseline", facts_of())
    with trial.stage("one"), (trial.host / "console.log").open("wb") as file:
        file.truncate(TRIAL_BYTES + 1)
    with pytest.raises(BenchError) as caught, trial.stage("two"):
        pytest.fail("it began")
    assert caught.value.reason == "trial-too-large"
    assert [stage.outcome for stage in trial.manifest.stages] == ["ok", "trial-too-large"]
