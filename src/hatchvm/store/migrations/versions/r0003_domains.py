"""Custom domains of routes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("routes", sa.Column("domain", sa.Text))
    op.add_column("routes", sa.Column("domain_token", sa.Text))
    op.add_column("routes", sa.Column("domain_verified_at", sa.DateTime(timezone=True)))
    verified = sa.text("domain_verified_at IS NOT NULL")
    op.create_index(
        "uq_routes_domain", "routes", ["domain"], unique=True, sqlite_where=verified, postgresql_where=verified
    )
