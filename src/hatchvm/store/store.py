"""The store on SQLite: rows that survive a restart, changed in units of work that happen whole or not at all.

Units of work take turns, in the order in which they began: SQLite has one writer at a time, and waiting in a queue is
fair where polling for its lock is not. So a unit of work must be short, and must not begin another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from hatchvm.base.errors import Unavailable
from hatchvm.ports.store import (
    ImageRows,
    KeyRows,
    LeaseRows,
    RouteRows,
    SnapshotRows,
    SSHKeyRows,
    TemplateRows,
    Tx,
    VMRows,
)
from hatchvm.store.engine import database_path
from hatchvm.store.lane import Lane
from hatchvm.store.rows.belongings import SqlLeaseRows, SqlRouteRows, SqlSnapshotRows
from hatchvm.store.rows.blueprints import SqlImageRows, SqlTemplateRows
from hatchvm.store.rows.keys import SqlKeyRows, SqlSSHKeyRows
from hatchvm.store.rows.vms import SqlVMRows

BUSY_TIMEOUT_S: Final = 10.0


class SqlTx:
    """Implements `ports.store.Tx`."""

    def __init__(self, lane: Lane) -> None:
        self.vms: VMRows = SqlVMRows(lane)
        self.routes: RouteRows = SqlRouteRows(lane)
        self.snapshots: SnapshotRows = SqlSnapshotRows(lane)
        self.images: ImageRows = SqlImageRows(lane)
        self.templates: TemplateRows = SqlTemplateRows(lane)
        self.keys: KeyRows = SqlKeyRows(lane)
        self.leases: LeaseRows = SqlLeaseRows(lane)
        self.ssh_keys: SSHKeyRows = SqlSSHKeyRows(lane)


class SqlStore:
    """Implements `ports.store.Store`."""

    def __init__(self, url: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        """`url`: `sqlite:///<path>`; raises Invalid or Unsupported for any other.

        `busy_timeout_s`: how long a unit of work waits for its turn, and then for another process that writes.
        """
        self._path = database_path(url)
        self._busy_timeout_s = busy_timeout_s
        self._turn = asyncio.Lock()
        self._lane: Lane | None = None

    async def open(self) -> None:
        """See `ports.store.Store.open`. A missing file is made; its folder is not."""
        self._lane = await Lane.open(self._path, busy_timeout_s=self._busy_timeout_s)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Tx]:
        """One unit of work. Raises Unavailable if the database is not open, or busy for too long."""
        await self._take_turn()
        try:
            if self._lane is None:
                raise Unavailable("the database is not open")
            try:
                yield SqlTx(self._lane)
                await self._lane.commit()
            except BaseException:
                await self._lane.rollback()
                raise
        finally:
            self._turn.release()

    async def close(self) -> None:
        """Release the file when the present unit of work has ended. May be repeated; `open` opens it again."""
        async with self._turn:
            if self._lane is not None:
                lane, self._lane = self._lane, None
                await lane.close()

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(self._busy_timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            raise Unavailable("the database is busy", detail="a unit of work did not end") from None
