"""Of each effect the pairs and their spread, from which power and floors are drawn; of each run
the digest of the candidate's kernel. Runs of earlier stores lack them until they are added
again."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("run", sa.Column("candidate_digest", sa.String))
    op.add_column("effect", sa.Column("pairs", sa.Integer))
    op.add_column("effect", sa.Column("spread", sa.Double))
