"""`barometer history`: recorded runs are added, listed, shown and exported; a run adds itself."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import orchestrator
from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.history.store import TABLES, Store
from orchestrator.run.nights.remember import check_history, make_stored, record_run
from orchestrator.scenario.loading import parse_scenario
from orchestrator.scenario.vocabulary import ARMS
from tests.unit.examples import NUMBER
from tests.unit.recorded import copied_run

ROOT = Path(__file__).parents[3]
RECORDED = ROOT / "fixtures/recorded"
RUNS = ("boot-exact", "map-exact", "metal", "stride-clamp", "debian-6.12-vs-7")


def barometer(*arguments: str | Path, store: Path | None = None, code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | (
        {"BAROMETER_HISTORY": str(store)} if store else {}
    )
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments], capture_output=True, text=True,
        check=False, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("name", RUNS)
def test_the_store_has_the_numbers_of_the_report(tmp_path: Path, name: str) -> None:
    run = orchestrator.load(RECORDED / name)
    document = json.loads(json.dumps(run.document()))
    with Store.open(str(tmp_path / "history.db")) as store:
        store.add(make_stored(run, "lab1"))
        [known] = store.runs()
        assert known.row.verdict == document["verdict"]
        assert known.row.exit_code == run.exit_code
        assert known.row.title == document["outcome"]["title"]
        effects = {effect.metric: effect for effect in store.effects(known.id)}
        assert effects.keys() == document["metrics"].keys()
        for metric, effect in effects.items():
            there = document["metrics"][metric]
            assert effect.ratio == pytest.approx(there["ratio"], rel=1e-12)
            assert [effect.low, effect.high] == pytest.approx(there["ci95"] or [None, None])
            assert (effect.verdict, effect.deciding) == (there["verdict"], there["deciding"])
            for arm in ARMS:
                of_arm = document["arms"][arm]["metrics"][metric]
                assert getattr(effect, arm) == pytest.approx(of_arm["median"], rel=1e-12)
        samples = {(s.metric, s.trial, s.value) for s in run.samples()}
        columns, rows = store.table("samples")
        at = [columns.index(column) for column in ("metric", "trial", "value")]
        assert {tuple(row[i] for i in at) for row in rows} == samples
        for arm in ARMS:
            trials = [r for r in run.trials if r.arm == arm and r.kind == "measured"]
            conditions = store.conditions(known.id, arm)
            for trial in trials:
                assert trial.conditions.keys() <= conditions.keys()


def test_recorded_runs_are_added_listed_shown_and_exported(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    runs = [RECORDED / name for name in RUNS]
    first = json.loads(barometer("history", "add", "--json", *runs, store=store))
    assert [run["what"] for run in first["runs"]] == ["added"] * len(runs)
    again = json.loads(barometer("history", "add", "--json", *runs, store=store))
    assert [run["what"] for run in again["runs"]] == ["there"] * len(runs)
    listed = json.loads(barometer("history", "list", "--json", store=store))["runs"]
    assert {run["folder"] for run in listed} == {str(run) for run in runs}
    assert [run["started"] for run in listed] == sorted(run["started"] for run in listed)
    assert barometer("history", "list", store=store).count("\n") == len(runs) + 1
    shown = json.loads(barometer("history", "show", "--json", runs[0], store=store))
    assert shown["folder"] == str(runs[0])
    assert shown["conditions"]["baseline"]["host.kernel.release"]
    assert shown["verdict"] in barometer("history", "show", shown["key"][:6], store=store)
    for table in TABLES if NUMBER > 200 else ("samples",):
        rows = [*csv.DictReader(io.StringIO(
            barometer("history", "export", "--table", table, store=store)
        ))]  # fmt: skip
        path = tmp_path / f"{table}.parquet"
        barometer("history", "export", "--table", table, "--parquet", path, store=store)
        written = pq.read_table(path)
        assert written.num_rows == len(rows)
        if rows:
            assert written.column_names == [*rows[0]]


def test_a_store_is_rebuilt_from_the_folders(tmp_path: Path) -> None:
    runs = [RECORDED / name for name in RUNS]
    exports: list[list[tuple[object, list[object]]]] = []
    for order in (runs, runs[::-1]):
        place = tmp_path / f"{len(exports)}.db"
        barometer("history", "add", *order, store=place)
        with Store.open(str(place)) as store:
            tables = [store.table(table) for table in TABLES]
            exports.append([(names, [*rows]) for names, rows in tables])
    assert exports[0] == exports[1]


def test_without_a_store_the_verbs_say_how_to_name_one(tmp_path: Path) -> None:
    for verb in (["list"], ["export"], ["show", "x"], ["add", tmp_path]):
        assert f"reason: {Reason.NO_HISTORY}\n" in barometer("history", *verb, code=2)
    missing = tmp_path / "no.db"
    assert "history add" in barometer("history", "list", store=missing, code=2)
    assert not missing.exists()


def test_a_judged_run_is_added_if_the_scenario_or_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BAROMETER_HISTORY", raising=False)
    run = orchestrator.load(copied_run(tmp_path / "run"))
    record_run(run)
    assert not [*tmp_path.glob("*.db")]
    monkeypatch.setenv("BAROMETER_HISTORY", str(tmp_path / "all.db"))
    record_run(run)
    record_run(run)
    with Store.open(str(tmp_path / "all.db")) as store:
        assert [known.row.folder for known in store.runs()] == [str(run.path)]


def test_a_broken_history_does_not_cost_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.db").write_text("no database, " * 1000)
    monkeypatch.setenv("BAROMETER_HISTORY", str(tmp_path / "history.db"))
    run = orchestrator.load(copied_run(tmp_path / "run"))
    record_run(run)
    assert f"barometer history add {run.path}" in caplog.text
    with pytest.raises(BenchError):
        check_history([run.scenario])  # before anything boots


def test_a_password_is_not_taken_into_a_scenario() -> None:
    text = (RECORDED / "metal/scenario.toml").read_text()
    for place, is_right in (
        ("postgresql://lab@db/barometer", True), ("history.db", True),
        ("postgresql://lab:secret@db/barometer", False),
    ):  # fmt: skip
        whole = f'{text}\n[history]\nstore = "{place}"\n'
        if is_right:
            scenario, _ = parse_scenario(whole, "s", RECORDED)
            assert scenario.history.store == place
        else:
            with pytest.raises(ScenarioError, match="pgpass"):
                parse_scenario(whole, "s", RECORDED)


def test_a_moved_run_is_still_one_run(tmp_path: Path) -> None:
    store = tmp_path / "history.db"
    first = copied_run(tmp_path / "run")
    barometer("history", "add", first, store=store)
    second = tmp_path / "archive"
    shutil.move(first, second)
    barometer("history", "add", second, store=store)
    listed = json.loads(barometer("history", "list", "--json", store=store))["runs"]
    assert [run["folder"] for run in listed] == [str(second)]
