"""The tables of what belongs to a VM and goes with it: routes, snapshots and leases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from sqlalchemy import Select, Table, bindparam, func, select

from hatchvm.domain.lease import Lease
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.store import tables
from hatchvm.store.rows.base import OwnedRows


class SqlRouteRows(OwnedRows[Route]):
    """Implements `ports.store.RouteRows`."""

    table: ClassVar[Table] = tables.routes
    noun: ClassVar[str] = "route"
    value = Route


class SqlLeaseRows(OwnedRows[Lease]):
    """Implements `ports.store.LeaseRows`."""

    table: ClassVar[Table] = tables.leases
    noun: ClassVar[str] = "hold"
    value = Lease


class SqlSnapshotRows(OwnedRows[Snapshot]):
    """Implements `ports.store.SnapshotRows`."""

    table: ClassVar[Table] = tables.snapshots
    noun: ClassVar[str] = "snapshot"
    value = Snapshot

    async def newest_of_image(self, image_id: str, *, limit: int) -> Sequence[Snapshot]:
        rows = await self._lane.execute(_NEWEST_OF_IMAGE, {"image_id": image_id, "most": limit})
        return [self._decode(row) for row in rows]


def _newest_of_image() -> Select[Any]:
    """A row number over each VM's committed snapshots: one statement for SQLite and PostgreSQL."""
    columns, vm = tables.snapshots.c, tables.vms.c
    newest_first = columns.created_at.desc(), columns.id.desc()
    rank = func.row_number().over(partition_by=columns.vm_id, order_by=newest_first).label("rank")
    ranked = (
        select(*columns, rank)
        .join(tables.vms, vm.id == columns.vm_id)
        .where(vm.image_id == bindparam("image_id"), columns.status == SnapshotStatus.COMMITTED)
        .subquery()
    )
    own = [ranked.c[column.name] for column in columns]
    ordered = select(*own).where(ranked.c.rank == 1).order_by(ranked.c.created_at.desc(), ranked.c.id.desc())
    return ordered.limit(bindparam("most"))


_NEWEST_OF_IMAGE: Final = _newest_of_image()
