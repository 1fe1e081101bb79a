"""Run by alembic for each command. The connection, with its transaction, comes from `schema.py`,
so that a migration is done as a whole or not at all."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=False)
context.run_migrations()
