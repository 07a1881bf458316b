"""How Alembic reaches the database: through the connection that ``migrating.py`` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from featurespeed_service.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
    compare_server_default=False,
)
context.run_migrations()
