"""The idle monitor: looks at running VMs now and then, and puts to sleep the ones nobody uses.

It also writes each VM's last activity to its row, so that idle time survives a restart of the daemon, and clears away
leases that have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from hatchvm.base.errors import Conflict, HatchError
from hatchvm.base.units import format_duration
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms.suspend import suspend_idle
from hatchvm.domain import idle
from hatchvm.domain.activity import Tracked
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.ports.store import Tx
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: Tells a VM's SSH sessions that bypass Hatch. It reads files of the kernel, so it is called in a thread.
SSHSessions = Callable[[VM], Sequence[Tracked]]

#: Activity is written to the rows this often at least: what a killed daemon forgets.
_FLUSH_S: Final = 15.0


class IdleMonitor:
    """Runs until cancelled."""

    def __init__(self, ctx: Context, ssh_sessions: SSHSessions) -> None:
        self._ctx = ctx
        self._ssh_sessions = ssh_sessions
        self._written: dict[str, datetime] = {}
        self._due = ctx.clock.monotonic() + ctx.settings.idle_check_s

    async def run(self) -> None:
        interval_s = self._ctx.settings.idle_check_s
        timeout = format_duration(self._ctx.settings.idle_timeout_s)
        _log.info(logs.IDLE_STARTED, interval=format_duration(interval_s), timeout=timeout)
        self._due = self._ctx.clock.monotonic() + interval_s
        try:
            while True:
                await asyncio.sleep(max(0.0, min(_FLUSH_S, self._due - self._ctx.clock.monotonic())))
                await self.flush()
                if self._ctx.clock.monotonic() >= self._due:
                    self._due = self._ctx.clock.monotonic() + interval_s
                    await self.check()
        finally:
            _log.info(logs.IDLE_STOPPED)

    def next_check_at(self) -> datetime:
        """When it will look at every VM again."""
        return self._ctx.clock.now() + timedelta(seconds=max(0.0, self._due - self._ctx.clock.monotonic()))

    def judge(self, owner: Owner, *, holds: int) -> idle.Verdict:
        """What it thinks of a VM with so many open connections and sessions."""
        return idle.judge(
            owner.vm,
            last_active_at=owner.activity.last_active_at,
            now=self._ctx.clock.now(),
            default_timeout_s=self._ctx.settings.idle_timeout_s,
            routes=len(self._ctx.routes.of_vm(owner.vm.id)),
            holds=holds,
            leases=owner.activity.leases.values(),
        )

    async def sessions(self, owner: Owner) -> list[Tracked]:
        """SSH sessions that bypass Hatch. Those of peers that have come through its own door are not counted twice."""
        found = await asyncio.to_thread(self._ssh_sessions, owner.vm)
        known = {hold.peer for hold in owner.activity.held if hold.kind == "ssh"}
        return [session for session in found if session.peer not in known]

    async def check(self) -> None:
        """One round. VMs are suspended one after the other: a burst would starve the ones in use."""
        for owner in self._ctx.owners:
            await self._check(owner)

    async def flush(self) -> None:
        """Write what became newer since the last time, and forget the leases that have ended."""
        now = self._ctx.clock.now()
        ended = [owner for owner in self._ctx.owners if _note_ends(owner, now)]
        active = {owner.vm.id: owner.activity.last_active_at for owner in self._ctx.owners}
        newer = {vm_id: at for vm_id, at in active.items() if at is not None and at != self._written.get(vm_id)}
        if not newer and not ended:
            return
        try:
            async with self._ctx.store.begin() as tx:
                for vm_id, at in newer.items():
                    await tx.vms.touch(vm_id, at)
                for owner in ended:
                    await _delete_ended(tx, owner, now)
        except HatchError as error:
            _log.warning(logs.STORE_BEHIND, error=str(error), detail=error.detail)
            return
        self._written = {vm_id: at for vm_id, at in active.items() if at is not None}
        for owner in ended:
            leases = owner.activity.leases
            owner.activity.leases = {lease.id: lease for lease in leases.values() if lease.lasts(now)}

    async def _check(self, owner: Owner) -> None:
        vm, activity = owner.vm, owner.activity
        if vm.state is not State.RUNNING or owner.busy:
            return
        arrivals, routes = activity.arrivals, self._ctx.routes.of_vm(vm.id)
        verdict = self.judge(owner, holds=activity.holds)
        _log.debug(logs.IDLE_CHECKED, vm=vm.id, idle_seconds=int(verdict.idle_s), verdict=verdict.reason)
        if self.judge(owner, holds=0).suspend and await self._in_session(owner):
            _log.info(logs.IDLE_SSH, vm=vm.id, ssh_port=vm.ssh_port)
            return
        if not verdict.suspend:
            return
        _log.info(logs.IDLE_SUSPEND, vm=vm.id, subdomain=routes[0].subdomain, idle_seconds=int(verdict.idle_s))
        try:
            await suspend_idle(self._ctx, owner, arrivals)
        except Conflict:
            return  # somebody came: not idle after all
        except HatchError as error:
            _log.error(logs.IDLE_FAILED, vm=vm.id, error=str(error), detail=error.detail)

    async def _in_session(self, owner: Owner) -> bool:
        """True if somebody is logged in by SSH. What bypasses Hatch is looked for only if nothing else holds the VM."""
        if owner.activity.holds:
            return any(hold.kind == "ssh" for hold in owner.activity.held)
        if not await self.sessions(owner):
            return False
        owner.activity.touch()  # nobody tells when such a session ends: idle time counts from here
        return True


def _note_ends(owner: Owner, now: datetime) -> bool:
    """True if leases have ended. The end of one is activity, unless the VM rests."""
    ended = [lease.expires_at for lease in owner.activity.leases.values() if not lease.lasts(now)]
    if ended and owner.vm.state is State.RUNNING:
        owner.activity.touched(max(ended))
    return bool(ended)


async def _delete_ended(tx: Tx, owner: Owner, now: datetime) -> None:
    """By the rows' own word: one may have been renewed meanwhile."""
    for lease in await tx.leases.list_for_vm(owner.vm.id):
        if not lease.lasts(now):
            await tx.leases.delete(lease.id)
