"""The store of results: one SQLite file, or a PostgreSQL database that a team shares.

It holds numbers only. The runs' folders stay the truth: a store can be thrown away and filled
again. A run is written in one transaction, so whoever reads, or comes after a crash, finds whole
runs. Writers wait for one another.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    Connection,
    Engine,
    Insert,
    NullPool,
    Select,
    create_engine,
    delete,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from orchestrator.base.errors import BenchError, ScenarioError
from orchestrator.base.hashing import digest_of
from orchestrator.base.reasons import Reason
from orchestrator.evidence.noise import NightNoise
from orchestrator.history.rows import EffectRow, NightRow, RunRow, StoredRun
from orchestrator.history.schema import check_version, damaged, read_version, update_schema
from orchestrator.history.tables import (
    CONDITION,
    CONDITIONS,
    EFFECT,
    FAILURE,
    METRIC,
    NIGHT,
    RUN,
    SAMPLE,
    TRIAL,
)

_BUSY_SECONDS = 60.0
"""Time that a writer waits for another one."""
_WRITERS = 0x6261726F
"""PostgreSQL's advisory lock that one writer at a time holds; any number serves."""
_WRITES = "barometer_writes"


class Series(NamedTuple):
    """Numbers that make one history: seconds of an emulated machine and of another do not mix."""

    machine: str
    scenario: str
    accel: str
    metric: str
    unit: str


class Point(NamedTuple):
    """A run in a series."""

    run: int
    """Number of the run in the store; not the same in another one."""
    started: str
    folder: str
    verdict: str
    """Verdict of this metric."""
    ratio: float | None
    low: float | None
    high: float | None
    baseline: float
    candidate: float
    kernel: str
    """The candidate's release, and its commit if that is known."""
    kernel_digest: str | None


class KnownRun(NamedTuple):
    """A run that the store has."""

    id: int
    row: RunRow


class Store:
    """An open store. Close it, or use it in a `with`."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self.name = name
        """Path or address in messages, without a password."""

    @classmethod
    def open(cls, place: str, *, create: bool = True) -> Self:
        """Open a store, and bring its schema up to date. `place`: path of a SQLite file, or
        postgresql://USER@HOST/DATABASE. A missing SQLite file is made, unless `create` is false.

        Raises ScenarioError if `place` cannot be a store, and BenchError if the store does not
        answer, is damaged, or is of a newer barometer.
        """
        url = parse_place(place)
        if url.get_backend_name() == "sqlite":
            path = Path(url.database or "")
            if not create and not path.exists():
                raise ScenarioError(
                    f"there is no history at {path}",
                    hint="`barometer history add RUN...` makes it",
                    reason=Reason.PATH,
                )
            path.parent.mkdir(parents=True, exist_ok=True)
        store = cls(_make_engine(url), _name(url))
        try:
            with store._connect() as connection:
                is_new = read_version(connection) is None
                if not is_new:
                    check_version(connection, store.name, read_version(connection))
            with store._write() as connection:
                update_schema(connection, store.name)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # writing -------------------------------------------------------------------------------------

    def add(self, stored: StoredRun) -> bool:
        """Write a run. An earlier state of it is replaced. Return False if the store has exactly
        this run: then nothing is written."""
        row = stored.run
        with self._write() as connection:
            there = connection.execute(
                select(RUN.c.id, RUN.c.key, RUN.c.digest, RUN.c.folder, RUN.c.verdict,
                       RUN.c.exit_code, RUN.c.title, RUN.c.candidate_digest)
                .where((RUN.c.key == row.key) | (RUN.c.folder == row.folder))
            ).all()  # fmt: skip
            same = (
                row.key,
                row.digest,
                row.folder,
                row.verdict,
                row.exit_code,
                row.title,
                row.candidate_digest,
            )
            if [tuple(found)[1:] for found in there] == [same]:
                return False
            for found in there:
                connection.execute(delete(RUN).where(RUN.c.id == found.id))
            _insert_run(connection, stored)
        return True

    def add_night(self, night: NightRow) -> None:
        """Write what became of a night; an earlier state of it is replaced."""
        with self._write() as connection:
            connection.execute(
                delete(NIGHT).where(
                    NIGHT.c.machine == night.machine, NIGHT.c.scenario == night.scenario,
                    NIGHT.c.started == night.started,
                )
            )  # fmt: skip
            connection.execute(insert(NIGHT), [night._asdict()])

    # reading -------------------------------------------------------------------------------------

    def runs(self, *, scenario: str | None = None, machine: str | None = None) -> list[KnownRun]:
        """Return the runs of the store, the oldest first."""
        query = select(RUN.c.id, *(RUN.c[name] for name in RunRow._fields))
        if scenario is not None:
            query = query.where(RUN.c.scenario == scenario)
        if machine is not None:
            query = query.where(RUN.c.machine == machine)
        rows = self._fetch(query.order_by(RUN.c.started, RUN.c.id))
        return [KnownRun(row[0], RunRow(*row[1:])) for row in rows]

    def nights(self) -> list[NightRow]:
        """Return what became of every night, the oldest first."""
        columns = [NIGHT.c[name] for name in NightRow._fields]
        return [NightRow(*row) for row in self._fetch(select(*columns).order_by(NIGHT.c.started))]

    def series(self) -> list[Series]:
        """Return every series of which the store has a run."""
        columns = (RUN.c.machine, RUN.c.scenario, RUN.c.accel, METRIC.c.name, EFFECT.c.unit)
        query = (
            select(*columns).distinct()
            .select_from(EFFECT.join(RUN).join(METRIC)).order_by(*columns)
        )  # fmt: skip
        return [Series(*row) for row in self._fetch(query)]

    def points(self, series: Series, last: int | None = None) -> list[Point]:
        """Return the runs of a series, the oldest first; the `last` ones, if that is given. Runs
        that are invalid as a whole tell nothing and are left out."""
        query = (
            select(RUN.c.id, RUN.c.started, RUN.c.folder, EFFECT.c.verdict, EFFECT.c.ratio,
                   EFFECT.c.low, EFFECT.c.high, EFFECT.c.baseline, EFFECT.c.candidate,
                   RUN.c.candidate_kernel, RUN.c.candidate_commit, RUN.c.candidate_digest)
            .select_from(EFFECT.join(RUN).join(METRIC))
            .where(RUN.c.machine == series.machine, RUN.c.scenario == series.scenario,
                   RUN.c.accel == series.accel, METRIC.c.name == series.metric,
                   EFFECT.c.unit == series.unit, RUN.c.verdict != "invalid")
            .order_by(RUN.c.started.desc(), RUN.c.id.desc()).limit(last)
        )  # fmt: skip
        points = []
        for *numbers, release, commit, digest in self._fetch(query)[::-1]:
            kernel = f"{release} ({commit[:12]})" if commit else release
            points.append(Point._make([*numbers, kernel, digest]))
        return points

    def condition_sets(self, series: Series) -> dict[int, int]:
        """Return run -> number of the baseline's set of conditions, for the runs of a series."""
        query = select(RUN.c.id, RUN.c.baseline_conditions).where(
            RUN.c.machine == series.machine, RUN.c.scenario == series.scenario,
            RUN.c.accel == series.accel,
        )  # fmt: skip
        return {row[0]: row[1] for row in self._fetch(query)}

    def condition_set(self, number: int) -> dict[str, str]:
        query = select(CONDITION.c.name, CONDITION.c.value).where(
            CONDITION.c.conditions_id == number
        )
        return dict(self._fetch(query.order_by(CONDITION.c.name)))

    def noise(self, machine: str, scenario: str, metric: str, last: int) -> list[NightNoise]:
        """Return the noise of a metric in the last nights that measured it, the oldest first."""
        query = (
            select(RUN.c.started, EFFECT.c.pairs, EFFECT.c.spread, EFFECT.c.ratio)
            .select_from(EFFECT.join(RUN).join(METRIC))
            .where(RUN.c.machine == machine, RUN.c.scenario == scenario, METRIC.c.name == metric,
                   RUN.c.verdict != "invalid", EFFECT.c.spread.is_not(None), EFFECT.c.ratio > 0)
            .order_by(RUN.c.started.desc()).limit(last)
        )  # fmt: skip
        return [
            NightNoise(at=at, trials=2 * pairs, spread=spread, ratio=ratio)
            for at, pairs, spread, ratio in self._fetch(query)[::-1]
        ]

    def effects(self, run: int) -> list[EffectRow]:
        """Return the metrics of a run, by name."""
        columns = [METRIC.c.name, *(EFFECT.c[name] for name in EffectRow._fields[1:])]
        query = (
            select(*columns).select_from(EFFECT.join(METRIC))
            .where(EFFECT.c.run_id == run).order_by(METRIC.c.name)
        )  # fmt: skip
        return [EffectRow(*row) for row in self._fetch(query)]

    def conditions(self, run: int, arm: str) -> dict[str, str]:
        """Return the conditions of an arm of a run."""
        column = RUN.c[f"{arm}_conditions"]
        query = (
            select(CONDITION.c.name, CONDITION.c.value)
            .join(RUN, column == CONDITION.c.conditions_id)
            .where(RUN.c.id == run).order_by(CONDITION.c.name)
        )  # fmt: skip
        return dict(self._fetch(query))

    def table(self, name: str) -> tuple[list[str], Iterator[Sequence[Any]]]:
        """Return the columns and the rows of a table for other programs, one of `TABLES`. A row
        begins with the run that it belongs to."""
        query = _EXPORTS[name]
        return [column.name for column in query.selected_columns], iter(self._fetch(query))

    def _fetch(self, query: Select[Any]) -> Sequence[Any]:
        with self._connect() as connection:
            return connection.execute(query).all()

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """One transaction, which no other writer is beside."""
        engine = self._engine.execution_options(**{_WRITES: True})
        with self._explained(), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITERS})"))
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the errors of a database into those of barometer."""
        try:
            yield
        except DatabaseError as exc:
            reason = getattr(exc.orig, "sqlite_errorcode", None)
            why = str(exc.orig).strip()
            if reason in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise damaged(self.name, why) from exc
            if not isinstance(exc, OperationalError):
                raise
            raise BenchError(
                f"{self.name}: {why}",
                hint="the runs' folders keep everything: `barometer history add RUN...` later",
                reason=Reason.HISTORY_UNREACHABLE,
            ) from exc


def _insert_run(connection: Connection, stored: StoredRun) -> None:
    ids = {
        f"{arm}_conditions": _find_conditions(connection, conditions)
        for arm, conditions in stored.conditions.items()
    }
    run_id = _insert_one(connection, insert(RUN).values(**stored.run._asdict(), **ids))
    names = {effect.metric for effect in stored.effects}
    names |= {sample.metric for sample in stored.samples}
    metrics = _find_metrics(connection, names)
    many: list[tuple[Any, list[dict[str, Any]]]] = [
        (TRIAL, [row._asdict() for row in stored.trials]),
        (FAILURE, [row._asdict() for row in stored.failures]),
        (EFFECT, [row._asdict() for row in stored.effects]),
        (SAMPLE, [row._asdict() for row in stored.samples]),
    ]
    for table, rows in many:
        for row in rows:
            row["run_id"] = run_id
            if "metric" in row:
                row["metric_id"] = metrics[row.pop("metric")]
        if rows:
            connection.execute(insert(table), rows)


def _find_metrics(connection: Connection, names: set[str]) -> dict[str, int]:
    """Return the id of each metric; those that are new to the store get one."""
    known = {row.name: row.id for row in connection.execute(select(METRIC))}
    if new := [{"name": name} for name in sorted(names - known.keys())]:
        connection.execute(insert(METRIC), new)
        known = {row.name: row.id for row in connection.execute(select(METRIC))}
    return known


def _find_conditions(connection: Connection, conditions: Mapping[str, str]) -> int:
    """Return the id of a set of conditions; one that is new to the store is written."""
    digest = digest_of(dict(conditions))
    found = connection.scalar(select(CONDITIONS.c.id).where(CONDITIONS.c.digest == digest))
    if found is not None:
        return int(found)
    new = _insert_one(connection, insert(CONDITIONS).values(digest=digest))
    rows = [
        {"conditions_id": new, "name": name, "value": value} for name, value in conditions.items()
    ]
    if rows:
        connection.execute(insert(CONDITION), rows)
    return new


def _insert_one(connection: Connection, statement: Insert) -> int:
    """Insert a row, and return its id."""
    key = connection.execute(statement).inserted_primary_key
    assert key is not None  # the table has one
    return int(key[0])


_OF_RUN = (RUN.c.started, RUN.c.machine, RUN.c.scenario, RUN.c.accel, RUN.c.folder)
_EXPORTS: dict[str, Select[Any]] = {
    "effects": select(
        *_OF_RUN, METRIC.c.name.label("metric"),
        *(c for c in EFFECT.c if c.name not in ("run_id", "metric_id")),
    ).select_from(EFFECT.join(RUN).join(METRIC)).order_by(RUN.c.started, RUN.c.id, METRIC.c.name),
    "samples": select(
        *_OF_RUN, METRIC.c.name.label("metric"), TRIAL.c.name.label("trial"), TRIAL.c.arm,
        TRIAL.c.pair, SAMPLE.c.value,
    ).select_from(
        SAMPLE.join(RUN).join(METRIC).join(
            TRIAL, (TRIAL.c.run_id == SAMPLE.c.run_id) & (TRIAL.c.number == SAMPLE.c.trial)
        )
    ).order_by(RUN.c.started, RUN.c.id, METRIC.c.name, SAMPLE.c.trial),
    "trials": select(
        *_OF_RUN, *(c for c in TRIAL.c if c.name not in ("run_id", "started")),
        TRIAL.c.started.label("trial_started"),
    ).select_from(TRIAL.join(RUN)).order_by(RUN.c.started, RUN.c.id, TRIAL.c.number),
    "failures": select(
        *_OF_RUN, *(c for c in FAILURE.c if c.name != "run_id"),
    ).select_from(FAILURE.join(RUN)).order_by(
        RUN.c.started, RUN.c.id, FAILURE.c.trial, FAILURE.c.position
    ),
    "runs": select(
        *(RUN.c[name] for name in RunRow._fields)
    ).order_by(RUN.c.started, RUN.c.id),
    "nights": select(*(NIGHT.c[name] for name in NightRow._fields)).order_by(NIGHT.c.started),
}  # fmt: skip
TABLES = tuple(_EXPORTS)
"""Tables that `Store.table` returns."""


def parse_place(place: str) -> URL:
    """Return the address of a store. Raises ScenarioError if it is none."""
    if "://" not in place:
        path = Path(place).expanduser().absolute()
        if path.is_dir():
            raise ScenarioError(f"the history {path} is a folder", reason=Reason.PATH)
        return URL.create("sqlite", database=str(path))
    try:
        url = make_url(place)
    except ArgumentError as exc:
        raise ScenarioError(f"the history {place!r}: {exc}", reason=Reason.PATH) from exc
    if url.get_backend_name() != "postgresql":
        raise ScenarioError(
            f"the history {_name(url)!r} is neither the path of a file nor postgresql://...",
            reason=Reason.PATH,
        )
    return url.set(drivername="postgresql+psycopg")


def _name(url: URL) -> str:
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, connect_args={"connect_timeout": 10})
    # a pooled connection would hold the file open, and its WAL beside it
    engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": _BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, _: object) -> None:
        # Python's driver would begin transactions late, and none for a change of the schema
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
