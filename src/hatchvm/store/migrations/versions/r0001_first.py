"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_vms()
    _create_belongings()
    _create_blueprints()
    _create_keys()


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _create_vms() -> None:
    op.create_table(
        "vms",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("image_id", sa.Text, nullable=False),
        sa.Column("template_id", sa.Text),
        sa.Column("name", sa.Text),
        sa.Column("vcpu_count", sa.Integer, nullable=False),
        sa.Column("mem_mib", sa.Integer, nullable=False),
        sa.Column("boot_args", sa.Text),
        sa.Column("enable_network", sa.Boolean, nullable=False),
        sa.Column("user_data", sa.Text),
        sa.Column("idle_timeout", sa.Text),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("state", sa.String(32), nullable=False),
        sa.Column("state_reason", sa.Text, nullable=False),
        sa.Column("node_id", sa.Text, nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        _moment("last_active_at", nullable=True),
        _moment("started_at", nullable=True),
        sa.Column("guest_ip", sa.Text),
        sa.Column("guest_mac", sa.Text),
        sa.Column("tap_name", sa.Text),
        sa.Column("ssh_port", sa.Integer),
        sa.Column("wake_failures", sa.Integer, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_vms"),
        sa.UniqueConstraint("name", name="uq_vms_name"),
        sa.UniqueConstraint("ssh_port", name="uq_vms_ssh_port"),
    )
    op.create_index("ix_vms_image_id", "vms", ["image_id"])


def _create_belongings() -> None:
    op.create_table(
        "routes",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("vm_id", sa.Text, nullable=False),
        sa.Column("subdomain", sa.Text, nullable=False),
        sa.Column("target_port", sa.Integer, nullable=False),
        sa.Column("auto_wake", sa.Boolean, nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_routes"),
        sa.UniqueConstraint("subdomain", name="uq_routes_subdomain"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_routes_vm_id", ondelete="CASCADE"),
    )
    op.create_index("ix_routes_vm_id", "routes", ["vm_id"])
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("vm_id", sa.Text, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("state_key", sa.Text, nullable=False),
        sa.Column("memory_key", sa.Text, nullable=False),
        sa.Column("disk_key", sa.Text, nullable=False),
        sa.Column("vm_config", sa.Text, nullable=False),
        _moment("created_at"),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("parent_id", sa.Text),
        sa.Column("error", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_snapshots"),
        sa.ForeignKeyConstraint(["vm_id"], ["vms.id"], name="fk_snapshots_vm_id", ondelete="CASCADE"),
    )
    op.create_index("ix_snapshots_vm_id", "snapshots", ["vm_id"])


def _create_blueprints() -> None:
    op.create_table(
        "images",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text),
        sa.Column("kernel", sa.Text, nullable=False),
        sa.Column("initrd", sa.Text),
        sa.Column("rootfs", sa.Text),
        sa.Column("rootfs_format", sa.Text, nullable=False),
        sa.Column("boot_args", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        _moment("created_at"),
        sa.Column("builtin", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_images"),
        sa.UniqueConstraint("name", name="uq_images_name"),
    )
    op.create_table(
        "templates",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("defaults", sa.JSON, nullable=False),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_templates"),
        sa.UniqueConstraint("name", name="uq_templates_name"),
    )


def _create_keys() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        _moment("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_keys"),
        sa.UniqueConstraint("digest", name="uq_keys_digest"),
    )
