"""The tables of the store as they are now. `migrations/` makes them; a test compares the two.

Names of kernels, metrics and reasons are texts, as in comparison.json. A time is ISO 8601 in UTC,
so texts sort by time. A number that a run lacks is NULL.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
)

METADATA = MetaData()


def _text(name: str) -> Column[Any]:
    return Column(name, String, nullable=False)


def _of_run() -> Column[Any]:
    """The run of a row. The row goes when its run goes."""
    return Column("run_id", ForeignKey("run.id", ondelete="CASCADE"), primary_key=True)


CONDITIONS = Table(
    "conditions", METADATA,
    Column("id", Integer, primary_key=True),
    Column("digest", String, nullable=False, unique=True),
)  # fmt: skip
"""A set of conditions. Most nights have the same ones, so a set is kept once."""

CONDITION = Table(
    "condition", METADATA,
    Column("conditions_id", ForeignKey("conditions.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String, primary_key=True),
    _text("value"),
)  # fmt: skip

RUN = Table(
    "run", METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", String, nullable=False, unique=True),
    _text("digest"),
    _text("folder"),
    _text("machine"),
    _text("scenario"),
    _text("accel"),
    _text("workload"),
    _text("started"),
    _text("barometer"),
    _text("verdict"),
    _text("title"),
    Column("exit_code", Integer, nullable=False),
    Column("planned", Integer, nullable=False),
    Column("measured", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("invalid", Integer, nullable=False),
    _text("baseline_kernel"),
    _text("baseline_source"),
    _text("candidate_kernel"),
    _text("candidate_source"),
    Column("candidate_commit", String),
    Column("candidate_digest", String),
    Column("baseline_conditions", ForeignKey("conditions.id"), nullable=False),
    Column("candidate_conditions", ForeignKey("conditions.id"), nullable=False),
    Index("run_by_series", "machine", "scenario", "accel", "started"),
    Index("run_by_folder", "folder"),
)  # fmt: skip
"""A judged run. `key` identifies it, `digest` its evidence (a resumed run has another digest)."""

TRIAL = Table(
    "trial", METADATA,
    _of_run(),
    Column("number", Integer, primary_key=True, autoincrement=False),
    _text("name"),
    _text("arm"),
    Column("pair", Integer, nullable=False),
    _text("kind"),
    _text("reason"),
    _text("stage"),
    _text("message"),
    _text("started"),
    Column("seconds", Double),
    _text("digest"),
)  # fmt: skip

FAILURE = Table(
    "failure", METADATA,
    _of_run(),
    Column("trial", Integer, primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _text("arm"),
    _text("reason"),
    _text("charge"),
    _text("stage"),
)  # fmt: skip
"""A failed attempt at a trial. `charge`: the party that it is charged to."""

METRIC = Table(
    "metric", METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
)  # fmt: skip

EFFECT = Table(
    "effect", METADATA,
    _of_run(),
    Column("metric_id", ForeignKey("metric.id"), primary_key=True),
    _text("unit"),
    _text("verdict"),
    Column("deciding", Boolean, nullable=False),
    Column("ratio", Double),
    Column("low", Double),
    Column("high", Double),
    Column("p", Double),
    Column("baseline", Double),
    Column("candidate", Double),
    Column("pairs", Integer),
    Column("spread", Double),
    Index("effect_by_metric", "metric_id", "run_id"),
)  # fmt: skip
"""A metric of a run: ratio and interval as comparison.json has them, and each arm's median.
`pairs` and `spread` are the night's noise: the robust deviation of a trial's log, by its pairs."""

SAMPLE = Table(
    "sample", METADATA,
    _of_run(),
    Column("metric_id", ForeignKey("metric.id"), primary_key=True),
    Column("trial", Integer, primary_key=True, autoincrement=False),
    Column("value", Double, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip
"""The value of a metric in a trial. The trial's number is that of `trial`."""

NIGHT = Table(
    "night", METADATA,
    Column("id", Integer, primary_key=True),
    _text("machine"),
    _text("scenario"),
    _text("started"),
    _text("folder"),
    Column("exit_code", Integer, nullable=False),
    _text("reason"),
    _text("message"),
    Column("put_back", Boolean),
    Column("seconds", Double),
    UniqueConstraint("machine", "scenario", "started", name="night_key"),
)  # fmt: skip
"""What became of a night and of its machine, also if there was no run. `put_back` is NULL if it is
not known whether the machine is as it was."""
