"""What is stored, looked after: the collection that runs by itself, and the ones that people ask for."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

import structlog

from hatchvm.base.errors import HatchError
from hatchvm.control.context import Context
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.stored import Audit, Collected, Kind, Problem
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()

#: Starting is busy enough: VMs are adopted, uploads resumed.
_FIRST_S: Final = 180.0
_LONGEST_S: Final = 3600.0
_SHORTEST_S: Final = 60.0


class StorageCases:
    """See `ports.house.Storage`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        #: One look at a time: two collections with different grace periods would not be safe.
        self._turn = asyncio.Lock()

    async def collect(self, grace_s: float | None) -> Collected:
        async with self._turn:
            done = await self._ctx.node.collect(grace_s, self._stored)
        metrics.COLLECTED_OBJECTS.inc(done.deleted.objects)
        metrics.COLLECTED_BYTES.inc(done.deleted.bytes)
        (_log.info if done.deleted.objects else _log.debug)(
            logs.COLLECTED,
            deleted=done.deleted.objects,
            deleted_bytes=done.deleted.bytes,
            kept_bytes=done.kept.bytes,
            waiting_bytes=done.waiting.bytes,
        )
        return done

    async def audit(self) -> Audit:
        async with self._turn:
            before = await self._rows()
            found = await self._ctx.node.audit(_committed(before))
            after = await self._rows()
        # What was stored or deleted meanwhile is no problem.
        known = before.keys() | after.keys()
        stored = _committed(before) & _committed(after)

        def stands(problem: Problem) -> bool:
            if problem.kind is Kind.NO_ROW:
                return problem.snapshot_id not in known
            return problem.kind is not Kind.NO_MANIFEST or problem.snapshot_id in stored

        return replace(found, problems=[problem for problem in found.problems if stands(problem)])

    async def run(self) -> None:
        """Collect now and then, until cancelled. Returns at once where nothing is stored."""
        settings = self._ctx.settings
        if not settings.snapshots_configured:
            return
        pause_s = max(_SHORTEST_S, min(settings.snapshot_grace_s / 4, _LONGEST_S))
        await asyncio.sleep(min(_FIRST_S, pause_s))
        while True:
            try:
                await self.collect(None)
            except HatchError as error:
                _log.warning(logs.COLLECT_FAILED, error=str(error), detail=error.detail)
            await asyncio.sleep(pause_s)

    async def _stored(self) -> set[str]:
        return _committed(await self._rows())

    async def _rows(self) -> dict[str, SnapshotStatus]:
        """With its VM every snapshot is being deleted."""
        async with self._ctx.store.begin() as tx:
            rows = await tx.snapshots.list()
        leaving = {owner.vm.id for owner in self._ctx.owners if owner.vm.state is State.DELETING}
        return {row.id: SnapshotStatus.DELETING if row.vm_id in leaving else row.status for row in rows}


def _committed(rows: dict[str, SnapshotStatus]) -> set[str]:
    return {row_id for row_id, status in rows.items() if status is SnapshotStatus.COMMITTED}
