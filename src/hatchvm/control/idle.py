"""The idle monitor: looks at running VMs now and then, and puts to sleep the ones nobody uses.

It also writes each VM's last activity to its row, so that idle time survives a restart of the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog

from hatchvm.base.errors import Conflict, HatchError
from hatchvm.base.units import format_duration
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms.suspend import suspend_idle
from hatchvm.domain import idle
from hatchvm.domain.lifecycle import State
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: Activity is written to the rows this often at least: what a killed daemon forgets.
_FLUSH_S: Final = 15.0


class IdleMonitor:
    """Runs until cancelled. `ssh_sessions`: established connections to a host port."""

    def __init__(self, ctx: Context, ssh_sessions: Callable[[int], int]) -> None:
        self._ctx = ctx
        self._ssh_sessions = ssh_sessions
        self._written: dict[str, datetime] = {}

    async def run(self) -> None:
        interval_s = self._ctx.settings.idle_check_s
        timeout = format_duration(self._ctx.settings.idle_timeout_s)
        _log.info(logs.IDLE_STARTED, interval=format_duration(interval_s), timeout=timeout)
        due = self._ctx.clock.monotonic() + interval_s
        try:
            while True:
                await asyncio.sleep(max(0.0, min(_FLUSH_S, due - self._ctx.clock.monotonic())))
                await self.flush()
                if self._ctx.clock.monotonic() >= due:
                    due = self._ctx.clock.monotonic() + interval_s
                    await self.check()
        finally:
            _log.info(logs.IDLE_STOPPED)

    async def check(self) -> None:
        """One round. VMs are suspended one after the other: a burst would starve the ones in use."""
        for owner in self._ctx.owners:
            await self._check(owner)

    async def flush(self) -> None:
        """Write what became newer since the last time."""
        active = {owner.vm.id: owner.activity.last_active_at for owner in self._ctx.owners}
        newer = {vm_id: at for vm_id, at in active.items() if at is not None and at != self._written.get(vm_id)}
        if not newer:
            return
        try:
            async with self._ctx.store.begin() as tx:
                for vm_id, at in newer.items():
                    await tx.vms.touch(vm_id, at)
        except HatchError as error:
            _log.warning(logs.STORE_BEHIND, error=str(error), detail=error.detail)
            return
        self._written = {vm_id: at for vm_id, at in active.items() if at is not None}

    async def _check(self, owner: Owner) -> None:
        vm = owner.vm
        if vm.state is not State.RUNNING or owner.busy:
            return
        routes = self._ctx.routes.of_vm(vm.id)
        verdict = idle.judge(
            vm,
            last_active_at=owner.activity.last_active_at,
            now=self._ctx.clock.now(),
            default_timeout_s=self._ctx.settings.idle_timeout_s,
            routes=len(routes),
            holds=owner.activity.holds,
        )
        _log.debug(logs.IDLE_CHECKED, vm=vm.id, idle_seconds=int(verdict.idle_s), verdict=verdict.reason)
        if not verdict.suspend:
            return
        if vm.ssh_port is not None and self._ssh_sessions(vm.ssh_port):
            owner.activity.touch()
            _log.info(logs.IDLE_SSH, vm=vm.id, ssh_port=vm.ssh_port)
            return
        _log.info(logs.IDLE_SUSPEND, vm=vm.id, subdomain=routes[0].subdomain, idle_seconds=int(verdict.idle_s))
        try:
            await suspend_idle(self._ctx, owner)
        except Conflict:
            return  # somebody came: not idle after all
        except HatchError as error:
            _log.error(logs.IDLE_FAILED, vm=vm.id, error=str(error), detail=error.detail)
