"""The store: what is added is there once and whole, on SQLite and on PostgreSQL; a store that this
barometer cannot use is refused with what to do."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.reasons import Reason
from orchestrator.history.rows import FailureRow, NightRow
from orchestrator.history.schema import list_missing, list_versions, update_schema
from orchestrator.history.store import TABLES, Series, Store, parse_place
from tests.unit.examples import NUMBER
from tests.unit.history.made import CONDITIONS, night_of
from tests.unit.history.places import Places

SERIES = Series("gpu1", "nightly", "none", "guest_boot_cost", "s")
KILLS = 50 if NUMBER > 200 else 6


def count(store: Store, table: str) -> int:
    return len([*store.table(table)[1]])


def test_what_is_added_is_read_back(place: str) -> None:
    failure = FailureRow(1, 0, "baseline", "host-no-ssh", "bench", "host")
    stored = night_of(0, {"guest_boot_cost": 1.25, "bar_map_cost": 0.5}, failures=[failure])
    with Store.open(place) as store:
        assert store.add(stored)
    with Store.open(place, create=False) as store:
        [known] = store.runs()
        assert known.row == stored.run
        assert {*store.effects(known.id)} == {*stored.effects}
        assert store.conditions(known.id, "candidate") == CONDITIONS["candidate"]
        columns, rows = store.table("samples")
        values = {(row["metric"], row["trial"], row["value"])
                  for row in (dict(zip(columns, row, strict=True)) for row in rows)}  # fmt: skip
        trials = {trial.number: trial.name for trial in stored.trials}
        assert values == {(s.metric, trials[s.trial], s.value) for s in stored.samples}
        assert count(store, "trials") == len(stored.trials)
        assert count(store, "failures") == 1


def test_a_run_is_there_once_however_often_it_is_added(place: str) -> None:
    stored = night_of(0, {"guest_boot_cost": 1.0})
    with Store.open(place) as store:
        assert [store.add(stored) for _ in range(3)] == [True, False, False]
        assert len(store.runs()) == 1


def test_a_resumed_run_takes_the_place_of_its_earlier_state(place: str) -> None:
    with Store.open(place) as store:
        store.add(night_of(0, {"guest_boot_cost": 1.0}, pairs=1))
        store.add(night_of(0, {"guest_boot_cost": 1.0}, pairs=4, verdict="improved"))
        assert [known.row.verdict for known in store.runs()] == ["improved"]
        assert count(store, "samples") == 8
        # its first trial was made again, so that it began later
        store.add(night_of(1, {"guest_boot_cost": 1.0}, folder=store.runs()[0].row.folder))
        assert len(store.runs()) == 1


@settings(max_examples=10)
@given(order=st.permutations(range(6)), again=st.lists(st.integers(0, 5), max_size=6))
def test_the_order_in_which_runs_are_added_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], again: list[int]
) -> None:
    nights = [night_of(day, {"guest_boot_cost": 1 + day / 100}) for day in range(6)]
    with Store.open(str(tmp_path_factory.mktemp("order") / "history.db")) as store:
        for day in [*order, *again]:
            store.add(nights[day])
        assert [p.ratio for p in store.points(SERIES)] == [1 + day / 100 for day in range(6)]


def test_series_do_not_mix(place: str) -> None:
    with Store.open(place) as store:
        store.add(night_of(1, {"guest_boot_cost": 1.1}))
        store.add(night_of(0, {"guest_boot_cost": 1.0}))
        store.add(night_of(0, {"guest_boot_cost": 9.0}, machine="gpu2"))
        store.add(night_of(0, {"guest_boot_cost": 8.0}, scenario="other"))
        store.add(night_of(2, {"guest_boot_cost": 7.0}, verdict="invalid"))
        assert len(store.series()) == 3
        assert [p.ratio for p in store.points(SERIES)] == [1.0, 1.1]
        assert [p.ratio for p in store.points(SERIES, last=1)] == [1.1]


def test_conditions_of_every_night_are_kept_once(place: str) -> None:
    with Store.open(place) as store:
        for day in range(5):
            store.add(night_of(day, {"guest_boot_cost": 1.0}))
    engine = create_engine(parse_place(place))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM conditions")) == 2
    engine.dispose()


def test_a_night_without_a_run_is_kept_with_its_reason(place: str) -> None:
    night = NightRow("gpu1", "nightly", "2026-01-01T02:00:00+00:00", "/n/1", 3, "host-no-ssh",
                     "no SSH server answers", None, 12.0)  # fmt: skip
    with Store.open(place) as store:
        store.add_night(night)
        store.add_night(night._replace(put_back=False))
        assert store.nights() == [night._replace(put_back=False)]


def test_writers_wait_for_one_another(place: str) -> None:
    """Four writers with a store each, the same nights among them."""
    with Store.open(place):
        pass

    def write(worker: int) -> None:
        with Store.open(place) as store:
            for day in range(10):
                store.add(night_of((day + worker) % 10, {"guest_boot_cost": 1.0}))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    with Store.open(place) as store:
        assert len(store.runs()) == 10
        assert count(store, "samples") == 40


def test_stores_are_made_at_the_same_time_once(places: Places) -> None:
    place = places()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: Store.open(place).close(), range(4)))
    with Store.open(place) as store:
        assert store.runs() == []


# versions ----------------------------------------------------------------------------------------


def test_migrations_make_the_tables_that_the_code_has(place: str) -> None:
    with Store.open(place):
        pass
    engine = create_engine(parse_place(place))
    with engine.connect() as connection:
        assert list_missing(connection) == []
    engine.dispose()


@pytest.mark.parametrize("version", list_versions())
def test_a_store_of_each_earlier_version_is_brought_up_to_date(
    places: Places, version: str
) -> None:
    place = places()
    engine = create_engine(parse_place(place))
    with engine.begin() as connection:
        update_schema(connection, place, version)
    engine.dispose()
    with Store.open(place) as store:
        store.add(night_of(0, {"guest_boot_cost": 1.0}))
        assert [p.ratio for p in store.points(SERIES)] == [1.0]


def change(place: str, *statements: str) -> None:
    engine = create_engine(parse_place(place))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (["UPDATE alembic_version SET version_num = '9999'"], Reason.HISTORY_NEWER),
        (["DROP TABLE sample"], Reason.HISTORY_DAMAGED),
        (["ALTER TABLE effect DROP COLUMN p"], Reason.HISTORY_DAMAGED),
        (["DROP TABLE alembic_version"], Reason.HISTORY_FOREIGN),
    ],
)
def test_a_store_that_is_not_ours_to_use_is_refused_and_not_changed(
    place: str, statements: list[str], reason: Reason
) -> None:
    with Store.open(place) as store:
        store.add(night_of(0, {"guest_boot_cost": 1.0}))
    change(place, *statements)
    with pytest.raises(BenchError) as caught:
        Store.open(place)
    assert caught.value.reason == reason
    assert caught.value.hint
    engine = create_engine(parse_place(place))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM run")) == 1
    engine.dispose()


@pytest.mark.parametrize("damage", ["text", "middle", "empty-tables"])
def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "history.db"
    with Store.open(str(path)) as store:
        for day in range(20):
            store.add(night_of(day, {f"metric{i}": 1.0 for i in range(20)}))
    if damage == "text":
        path.write_text("no database, " * 1000)
    elif damage == "middle":
        content = bytearray(path.read_bytes())
        content[4096 : len(content) - 100] = b"\xa5" * (len(content) - 4196)
        path.write_bytes(content)
    else:
        path.unlink()
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE mine (a)")
        connection.close()
    with pytest.raises(BenchError) as caught, Store.open(str(path)) as store:
        [store.table(name) for name in TABLES]
    expected = Reason.HISTORY_FOREIGN if damage == "empty-tables" else Reason.HISTORY_DAMAGED
    assert caught.value.reason == expected


@pytest.mark.parametrize("place", ["mysql://lab@db/x", "://", "{tmp}"])
def test_a_place_that_can_be_no_store_is_wrong(tmp_path: Path, place: str) -> None:
    with pytest.raises((ScenarioError, BenchError)):
        Store.open(place.format(tmp=tmp_path))


def test_a_database_that_does_not_answer_is_the_benchs(tmp_path: Path) -> None:
    with pytest.raises(BenchError) as caught:
        Store.open(f"postgresql://lab:secret@/x?host={tmp_path}")
    assert caught.value.reason == Reason.HISTORY_UNREACHABLE
    assert "secret" not in str(caught.value)


# crashes -----------------------------------------------------------------------------------------

WRITER = """
import sys
from orchestrator.history.store import Store
from tests.unit.history.made import night_of
with Store.open(sys.argv[1]) as store:
    print("ready", flush=True)
    for day in range(int(sys.argv[2]), 100000):
        store.add(night_of(day, {f"metric{i}": 1.0 for i in range(25)}, pairs=12))
"""


def test_a_killed_writer_leaves_whole_nights_only(place: str) -> None:
    with Store.open(place) as store:
        first = store.add(night_of(0, {"metric0": 1.0}))
        assert first
    for kill in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, place, str(1 + kill * 1000)], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(0.15 * kill / KILLS)
        writer.send_signal(signal.SIGKILL)
        writer.communicate(timeout=60)
    with Store.open(place) as store:
        runs = store.runs()
        _, rows = store.table("samples")
        by_run: dict[object, int] = {}
        for row in rows:
            by_run[row[0]] = by_run.get(row[0], 0) + 1
        assert len(runs) > 1
        assert {*by_run.values()} <= {4, 25 * 24}
        assert len(by_run) == len(runs)
        assert count(store, "effects") == 1 + 25 * (len(runs) - 1)
        assert store.add(night_of(99999, {"metric0": 1.0}))
