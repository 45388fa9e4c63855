"""The daemon: open, recover, serve, and when told to go leave the VMs running and end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from hatchvm.base import tasks
from hatchvm.base.errors import HatchError
from hatchvm.control.reconcile import reconcile
from hatchvm.control.vms import upload
from hatchvm.domain.addressing import check_bridge
from hatchvm.domain.lifecycle import State
from hatchvm.server import doors, first_start, vmm
from hatchvm.server.config import Config
from hatchvm.server.ssh_keys import ensure_ssh_keys
from hatchvm.server.wiring import Built, build
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()

#: How long sequences (a suspend, a wake) may take to end when the daemon is told to go.
_GRACE_S: Final = 10
_TIDY_S: Final = 5.0

Say = Callable[[str], None]


async def serve(config: Config, *, say: Say) -> None:
    """Run until SIGTERM or SIGINT. `say` prints lines for the person who started it. Raises HatchError."""
    told_to_go = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_go.set)
    async with running(config, say=say) as api:
        waiting = tasks.spawn(told_to_go.wait(), name="signals")
        await asyncio.wait([waiting, api], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    _log.info(logs.STOPPED)


@asynccontextmanager
async def running(config: Config, *, say: Say) -> AsyncIterator[asyncio.Task[None]]:
    """The whole daemon inside a `with` block; yields the API's task, which ends by itself only if it fails."""
    certificates = doors.certificates_of(config)
    chosen = await vmm.choose(config, say)
    built = build(config, chosen.driver)
    try:
        await built.store.open()
        await first_start.ensure_key(built, say)
        ensure_ssh_keys(built.paths)
        await built.house.ssh_keys.load()
        await first_start.ensure_images(built, config, say)
        await _open_bridge(built)
        _log.info(logs.VMM, vmm=chosen.driver.name, why_not_firecracker=chosen.why_not or None)
        await reconcile(built.ctx)
        _export_gauges(built)
        await _say_what_is_missing(built, say)
        async with doors.opened(built, config, certificates, say) as api:
            duties = [
                tasks.supervise(built.house.idle.run(), name="idle monitor"),
                tasks.supervise(built.house.storage.run(), name="collect"),
                tasks.supervise(built.house.routes.run(), name="check domains"),
                tasks.supervise(_tidy(built), name="tidy"),
            ]
            try:
                yield api
            finally:
                for duty in duties:
                    await tasks.cancel_and_wait(duty)
        await _settle(built)
    finally:
        await built.store.close()
        if built.bridge is not None:
            built.bridge.close()
        built.lock.close()


async def _open_bridge(built: Built) -> None:
    """Nothing of the host is changed if VMs that there are could not be reached afterwards."""
    if built.bridge is None:
        return
    async with built.store.begin() as tx:
        bridged = [vm for vm in await tx.vms.list() if vm.tap_name is not None]
    check_bridge(built.bridge.bridge.cidr, {vm.id: vm.guest_ip for vm in bridged if vm.guest_ip is not None})
    await built.bridge.check()
    await built.bridge.open()


async def _settle(built: Built) -> None:
    """Let sequences under way end: killed ones would be finished or undone at the next start all the same."""
    for owner in built.ctx.owners:
        if owner.upload is not None:
            await tasks.cancel_and_wait(owner.upload)
        await owner.idle(_GRACE_S)
    await built.house.idle.flush()


async def _tidy(built: Built) -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        await built.ctx.node.tidy()


async def _say_what_is_missing(built: Built, say: Say) -> None:
    """A host that cannot run VMs, or store snapshots, still serves what it can; `/readyz` says the same."""
    try:
        await built.house.ready()
    except HatchError as error:
        say(f"{error}; see: hatchvm doctor")
    if caution := built.caution():
        say(f"Take care: {caution}")


def _export_gauges(built: Built) -> None:
    for state in State:
        metrics.VMS.labels(state.value).set_function(lambda state=state: built.ctx.owners.count(state))  # type: ignore[misc]
    metrics.ROUTES.set_function(lambda: len(built.ctx.routes))
    metrics.UPLOADS_PENDING.set_function(lambda: len(upload.pending(built.ctx)))
    metrics.UPLOAD_OLDEST_PENDING_SECONDS.set_function(
        lambda: next((one.waited_s for one in upload.pending(built.ctx)), 0.0)
    )
