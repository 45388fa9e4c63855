"""Addresses on a bridge, leases, users' SSH keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    bridged = sa.text("tap_name IS NOT NULL")
    for column in ("guest_ip", "guest_mac"):
        op.create_index(
            f"uq_vms_{column}", "vms", [column], unique=True, sqlite_where=bridged, postgresql_where=bridged
        )
    op.create_table(
        "leases",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("vm_id", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_leases"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_leases_vm_id", ondelete="CASCADE"),
    )
    op.create_index("ix_leases_vm_id", "leases", ["vm_id"])
    op.create_table(
        "ssh_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ssh_keys"),
        sa.UniqueConstraint("fingerprint", name="uq_ssh_keys_fingerprint"),
    )
