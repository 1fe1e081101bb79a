"""Runs, with their trials, samples, conditions and failures; nights."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String, nullable=False)


def _of_run() -> sa.Column[int]:
    return sa.Column(
        "run_id", sa.Integer, sa.ForeignKey("run.id", ondelete="CASCADE"), primary_key=True
    )


def _of_metric() -> sa.Column[int]:
    return sa.Column("metric_id", sa.Integer, sa.ForeignKey("metric.id"), primary_key=True)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, primary_key=True, autoincrement=False)


def upgrade() -> None:
    op.create_table(
        "conditions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("digest", sa.String, nullable=False, unique=True),
    )
    op.create_table(
        "condition",
        sa.Column(
            "conditions_id", sa.Integer, sa.ForeignKey("conditions.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name", sa.String, primary_key=True),
        _text("value"),
    )  # fmt: skip
    op.create_table(
        "run",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String, nullable=False, unique=True),
        *map(_text, (
            "digest", "folder", "machine", "scenario", "accel", "workload", "started",
            "barometer", "verdict", "title",
        )),
        *(sa.Column(name, sa.Integer, nullable=False)
          for name in ("exit_code", "planned", "measured", "failed", "invalid")),
        *map(_text, (
            "baseline_kernel", "baseline_source", "candidate_kernel", "candidate_source",
        )),
        sa.Column("candidate_commit", sa.String),
        *(sa.Column(name, sa.Integer, sa.ForeignKey("conditions.id"), nullable=False)
          for name in ("baseline_conditions", "candidate_conditions")),
    )  # fmt: skip
    op.create_index("run_by_series", "run", ["machine", "scenario", "accel", "started"])
    op.create_index("run_by_folder", "run", ["folder"])
    op.create_table(
        "trial", _of_run(), _number("number"), _text("name"), _text("arm"),
        sa.Column("pair", sa.Integer, nullable=False),
        *map(_text, ("kind", "reason", "stage", "message", "started")),
        sa.Column("seconds", sa.Double),
        _text("digest"),
    )  # fmt: skip
    op.create_table(
        "failure", _of_run(), _number("trial"), _number("position"),
        *map(_text, ("arm", "reason", "charge", "stage")),
    )  # fmt: skip
    op.create_table(
        "metric",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String, nullable=False, unique=True),
    )
    op.create_table(
        "effect", _of_run(), _of_metric(),
        _text("unit"), _text("verdict"), sa.Column("deciding", sa.Boolean, nullable=False),
        *(sa.Column(name, sa.Double)
          for name in ("ratio", "low", "high", "p", "baseline", "candidate")),
    )  # fmt: skip
    op.create_index("effect_by_metric", "effect", ["metric_id", "run_id"])
    op.create_table(
        "sample", _of_run(), _of_metric(),
        _number("trial"), sa.Column("value", sa.Double, nullable=False),
        sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_table(
        "night",
        sa.Column("id", sa.Integer, primary_key=True),
        *map(_text, ("machine", "scenario", "started", "folder")),
        sa.Column("exit_code", sa.Integer, nullable=False),
        _text("reason"), _text("message"),
        sa.Column("put_back", sa.Boolean),
        sa.Column("seconds", sa.Double),
        sa.UniqueConstraint("machine", "scenario", "started", name="night_key"),
    )  # fmt: skip
