"""The tables. Column names are the field names of the domain's values; `rows/` relies on it.

A change here needs a new revision in `migrations/versions/`; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, MetaData, Table, Text

from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.store.columns import FilePath, FrozenMap, Moment, choice

#: Constraints have names that any engine reports the same way, so that a migration can drop them.
metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

vms: Final = Table(
    "vms",
    metadata,
    Column("id", Text, primary_key=True),
    Column("image_id", Text, nullable=False, index=True),
    Column("template_id", Text),
    Column("name", Text, unique=True),
    Column("vcpu_count", Integer, nullable=False),
    Column("mem_mib", Integer, nullable=False),
    Column("boot_args", Text),
    Column("enable_network", Boolean, nullable=False),
    Column("user_data", Text),
    Column("idle_timeout", Text),
    Column("metadata", FrozenMap, nullable=False),
    Column("state", choice(State), nullable=False),
    Column("state_reason", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("last_active_at", Moment),
    Column("started_at", Moment),
    Column("guest_ip", Text),
    Column("guest_mac", Text),
    Column("tap_name", Text),
    Column("ssh_port", Integer, unique=True),
    Column("wake_failures", Integer, nullable=False),
    Column("generation", BigInteger, nullable=False),
)


def _on_bridge(name: str, column: Column[str]) -> Index:
    """Unique among VMs with a TAP: guests of private user networks may all have the same address."""
    bridged = vms.c.tap_name.is_not(None)
    return Index(name, column, unique=True, sqlite_where=bridged, postgresql_where=bridged)


_on_bridge("uq_vms_guest_ip", vms.c.guest_ip)
_on_bridge("uq_vms_guest_mac", vms.c.guest_mac)


def _owning_vm() -> Column[str]:
    return Column("vm_id", Text, ForeignKey("vms.id", ondelete="CASCADE"), nullable=False, index=True)


routes: Final = Table(
    "routes",
    metadata,
    Column("id", Text, primary_key=True),
    _owning_vm(),
    Column("subdomain", Text, nullable=False, unique=True),
    Column("target_port", Integer, nullable=False),
    Column("auto_wake", Boolean, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("domain", Text),
    Column("domain_token", Text),
    Column("domain_verified_at", Moment),
    Column("domain_checked_at", Moment),
    Column("domain_missing_since", Moment),
    Column("domain_misses", Integer, nullable=False, server_default="0"),
)

#: Many may claim a domain; one has it.
_verified: Final = routes.c.domain_verified_at.is_not(None)
Index("uq_routes_domain", routes.c.domain, unique=True, sqlite_where=_verified, postgresql_where=_verified)

#: `parent_id` is no foreign key: a snapshot outlives the row of its parent.
snapshots: Final = Table(
    "snapshots",
    metadata,
    Column("id", Text, primary_key=True),
    _owning_vm(),
    Column("status", choice(SnapshotStatus), nullable=False),
    Column("state_key", Text, nullable=False),
    Column("memory_key", Text, nullable=False),
    Column("disk_key", Text, nullable=False),
    Column("vm_config", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False),
    Column("parent_id", Text),
    Column("error", Text, nullable=False),
)

images: Final = Table(
    "images",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, unique=True),
    Column("kernel", FilePath, nullable=False),
    Column("initrd", FilePath),
    Column("rootfs", FilePath),
    Column("rootfs_format", Text, nullable=False),
    Column("boot_args", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("builtin", Boolean, nullable=False),
)

templates: Final = Table(
    "templates",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("defaults", FrozenMap, nullable=False),
    Column("created_at", Moment, nullable=False),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
)

leases: Final = Table(
    "leases",
    metadata,
    Column("id", Text, primary_key=True),
    _owning_vm(),
    Column("reason", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False),
)

ssh_keys: Final = Table(
    "ssh_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("fingerprint", Text, nullable=False, unique=True),
    Column("created_at", Moment, nullable=False),
)
