"""The tables of what belongs to a VM and goes with it: routes and snapshots."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import Table

from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot
from hatchvm.store import tables
from hatchvm.store.rows.base import OwnedRows


class SqlRouteRows(OwnedRows[Route]):
    """Implements `ports.store.RouteRows`."""

    table: ClassVar[Table] = tables.routes
    noun: ClassVar[str] = "route"
    value = Route


class SqlSnapshotRows(OwnedRows[Snapshot]):
    """Implements `ports.store.SnapshotRows`."""

    table: ClassVar[Table] = tables.snapshots
    noun: ClassVar[str] = "snapshot"
    value = Snapshot
