"""What became of the proofs of custom domains."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("routes", sa.Column("domain_checked_at", sa.DateTime(timezone=True)))
    op.add_column("routes", sa.Column("domain_missing_since", sa.DateTime(timezone=True)))
    op.add_column("routes", sa.Column("domain_misses", sa.Integer, nullable=False, server_default="0"))
