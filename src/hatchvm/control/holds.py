"""Use cases over what keeps VMs awake: see `ports.house.Holds`. A lease's row is written first, then memory."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from hatchvm.base import ids
from hatchvm.base.errors import Conflict, NotFound
from hatchvm.base.units import format_duration
from hatchvm.control.context import Context
from hatchvm.control.idle import IdleMonitor
from hatchvm.control.owner import Owner
from hatchvm.domain.activity import Holding, Tracked
from hatchvm.domain.idle import first_check
from hatchvm.domain.lease import MAX_LEASES, Lease
from hatchvm.domain.lifecycle import State
from hatchvm.ports.house import Use
from hatchvm.ports.store import Tx

#: So many holds are listed; a busy VM has thousands.
_LISTED: Final = 100


class HoldCases:
    """`monitor`: who decides when a VM sleeps, and so knows why it does not."""

    def __init__(self, ctx: Context, monitor: IdleMonitor) -> None:
        self._ctx = ctx
        self._monitor = monitor
        #: One change at a time, so that memory follows the rows. Not the owner's turn: a lease is to be heard by a
        #: suspend under way.
        self._turn = asyncio.Lock()

    async def create(self, vm_id: str, *, ttl_s: float, reason: str) -> Lease:
        owner, now = self._ctx.owners.get(vm_id), self._ctx.clock.now()
        expires_at = now + timedelta(seconds=ttl_s)
        lease = Lease(id=ids.new(ids.LEASE), vm_id=vm_id, reason=reason, created_at=now, expires_at=expires_at)
        async with self._turn:
            async with self._ctx.store.begin() as tx:
                await self._check_room(tx, vm_id, now)
                await tx.leases.insert(lease)
            owner.activity.leases[lease.id] = lease
        owner.activity.want()
        return lease

    async def list(self, vm_id: str) -> Sequence[Lease]:
        return _lasting(self._ctx.owners.get(vm_id), self._ctx.clock.now())

    async def renew(self, vm_id: str, lease_id: str, *, ttl_s: float) -> Lease:
        owner = self._ctx.owners.get(vm_id)
        async with self._turn:
            async with self._ctx.store.begin() as tx:
                lease = await self._find(tx, vm_id, lease_id)
                lease = replace(lease, expires_at=self._ctx.clock.now() + timedelta(seconds=ttl_s))
                await tx.leases.update(lease)
            owner.activity.leases[lease_id] = lease
        return lease

    async def release(self, vm_id: str, lease_id: str) -> None:
        owner = self._ctx.owners.get(vm_id)
        async with self._turn:
            async with self._ctx.store.begin() as tx:
                await self._find(tx, vm_id, lease_id)
                await tx.leases.delete(lease_id)
            owner.activity.leases.pop(lease_id, None)
        if owner.vm.state is State.RUNNING:
            owner.activity.touch()

    async def use(self, vm_id: str) -> Use:
        owner, ctx = self._ctx.owners.get(vm_id), self._ctx
        past = await self._monitor.sessions(owner) if owner.vm.state is State.RUNNING else []
        now = ctx.clock.now()
        verdict = self._monitor.judge(owner, holds=owner.activity.holds + len(past))
        sleeps_at, because = None, verdict.reason
        if not ctx.settings.snapshots_configured:
            because = "snapshot storage not configured"
        elif verdict.due_at is not None:
            next_check_at, interval_s = self._monitor.next_check_at(), ctx.settings.idle_check_s
            sleeps_at, because = first_check(verdict.due_at, next_check_at=next_check_at, interval_s=interval_s), ""
        return Use(
            state=owner.vm.state,
            last_active_at=owner.activity.last_active_at,
            idle_s=verdict.idle_s,
            idle_timeout=owner.vm.spec.idle_timeout or format_duration(ctx.settings.idle_timeout_s),
            hold_count=owner.activity.holds + len(past) + len(_lasting(owner, now)),
            holds=_listed(owner, past, now),
            last_wake=owner.last_wake,
            sleeps_at=sleeps_at,
            awake_because=because,
        )

    async def _check_room(self, tx: Tx, vm_id: str, now: datetime) -> None:
        if sum(row.lasts(now) for row in await tx.leases.list_for_vm(vm_id)) >= MAX_LEASES:
            raise Conflict(f"the vm has {MAX_LEASES} holds already; renew one, or release some")

    async def _find(self, tx: Tx, vm_id: str, lease_id: str) -> Lease:
        lease = await tx.leases.get(lease_id)
        if lease.vm_id != vm_id or not lease.lasts(self._ctx.clock.now()):
            raise NotFound("hold not found")
        return lease


def _listed(owner: Owner, past: Sequence[Tracked], now: datetime) -> list[Holding]:
    """The oldest first, but not all of them. Of a session past Hatch only its last packet is known."""
    connections = heapq.nsmallest(_LISTED, owner.activity.held, key=lambda hold: hold.since)
    found = [
        *(Holding(kind=it.kind, since=it.since, peer=it.peer, last_byte_at=it.last_byte_at) for it in connections),
        *(
            Holding(kind="ssh", since=None, peer=it.peer, last_byte_at=now - timedelta(seconds=it.silent_s))
            for it in past
        ),
        *(
            Holding(kind="lease", since=it.created_at, reason=it.reason, ends_at=it.expires_at, id=it.id)
            for it in _lasting(owner, now)
        ),
    ]
    return sorted(found, key=lambda hold: hold.since or hold.last_byte_at or now)[:_LISTED]


def _lasting(owner: Owner, now: datetime) -> list[Lease]:
    """Its leases, newest first."""
    lasting = [lease for lease in owner.activity.leases.values() if lease.lasts(now)]
    return sorted(lasting, key=lambda lease: (lease.created_at, lease.id), reverse=True)
