"""What Alembic runs to migrate: on the connection, and inside the transaction, that `store.schema` gives it.

A new revision is a file in `versions/`, named and numbered after the last one. A released one is never changed.
"""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
