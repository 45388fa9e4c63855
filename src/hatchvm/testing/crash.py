"""A daemon that is killed at its n-th step, and what the next one makes of it. Run as a program: it forks.

    python -m hatchvm.testing.crash <folder> <first n> <stride>

The story: a VM is created, put to sleep and woken a few times, once while its memory is being saved and once while it
is being stored, brought back to its first snapshot, booted from its own disk and from an older one, stopped, started,
relieved of a snapshot and of what is then not needed any more, put to sleep and deleted. For n = first, first + stride,
… a child plays it in a folder of its own and is gone, without a word, before its n-th step; a second child starts a
daemon over what is left and looks. Each n that went wrong is a line of the output; the last line tells how many steps
there were.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import structlog

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict
from hatchvm.domain.lifecycle import TARGET, State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.node import changed, pair
from hatchvm.testing.world import World

_KILLED: Final = 9
_ENDED: Final = 0
_WRONG: Final = 1
_LATER_S: Final = 86400.0
_PATIENCE_S: Final = 60.0


class Doom:
    """Ends this process before its n-th step."""

    def __init__(self, n: int) -> None:
        self._left = n

    def step(self) -> None:
        self._left -= 1
        if not self._left:
            os._exit(_KILLED)

    async def __call__(self, step: str) -> None:
        if not step.endswith(" done"):  # the next step's beginning is the same moment
            self.step()


async def story(folder: Path, n: int) -> None:
    """Everything a VM can go through. `told` in the folder holds what its user knows."""
    world = World(folder)
    doom = Doom(n)
    _doom_files(doom)
    await world.start()
    world.step.interfere = doom
    told = folder / "told"

    def tell(vm: VM, **facts: Any) -> None:
        told.write_text(json.dumps({"id": vm.id, **facts}))

    vm = await world.vm()
    tell(vm, life=world.memory(vm)["life"])
    first = await world.vms.snapshot(vm.id)
    await world.request(vm)
    tell(vm, life=world.memory(vm)["life"], requests=1)
    await _disturbed(world, vm, "capture done")
    await _disturbed(world, vm, "put")
    tell(vm, life=world.memory(vm)["life"], requests=3)
    await world.vms.snapshot(vm.id)
    tell(vm, life=world.memory(vm)["life"])
    await world.vms.restore(vm.id, first.id)
    tell(vm)
    older = await world.vms.snapshot(vm.id)
    tell(vm, disk=world.disk(vm)["ticks"])
    await world.vms.restore(vm.id, None, disk=True)
    tell(vm, life=world.memory(vm)["life"])
    await world.vms.snapshot(vm.id)
    tell(vm)
    await world.vms.restore(vm.id, older.id, disk=True)
    await world.vms.stop(vm.id)
    await world.vms.start(vm.id)
    tell(vm, life=world.memory(vm)["life"])
    await world.house.snapshots.delete(older.id)
    await world.house.storage.collect(0)
    await world.vms.snapshot(vm.id)
    tell(vm, deleted=True)
    await world.vms.delete(vm.id)
    await world.stop()


async def _disturbed(world: World, vm: VM, at: str) -> None:
    """A suspend, and a request that comes at this step of it."""
    doom = world.step.interfere
    visitors: list[asyncio.Task[int]] = []

    async def visit(step: str) -> None:
        if step == at and not visitors:
            visitors.append(tasks.spawn(world.request(vm), name="visitor"))
            for _ in range(5):
                await asyncio.sleep(0)
        await doom(step)

    world.step.interfere = visit
    with contextlib.suppress(Conflict):
        await world.vms.snapshot(vm.id)
    await visitors[0]
    world.step.interfere = doom


def _doom_files(doom: Doom) -> None:
    """The steps between files: each is done whole, but the next may never come."""

    def doomed(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            doom.step()
            return work(*args, **options)

        return wrapped

    for name in ("commit", "begin_wake", "spend", "put_back", "_write", "sync_dir"):
        setattr(pair, name, doomed(getattr(pair, name)))
    for name in ("forget", "write"):
        setattr(changed, name, doomed(getattr(changed, name)))


async def aftermath(folder: Path) -> None:
    """What must hold, whenever the daemon was killed. Raises AssertionError."""
    world = World(folder)
    world.clock.advance(_LATER_S)
    await world.start()
    told = json.loads((folder / "told").read_text()) if (folder / "told").exists() else {}
    for owner in world.ctx.owners:
        await owner.idle(10)
    vms = await world.rows()
    assert {vm.id for vm in vms} == {folder.name for folder in world.paths.vms.glob("*")} | _unmade(vms, world)
    for vm in vms:
        await _check(world, vm, told)
    if "id" in told and "deleted" not in told:
        assert [vm.id for vm in vms] == [told["id"]], "a VM that its user knows is gone"
    async with asyncio.timeout(_PATIENCE_S):
        while await _half_deleted(world, vms):  # noqa: ASYNC110  # it is finished in the background
            await asyncio.sleep(0)
    assert not (await world.house.storage.audit()).problems
    for vm in vms:
        await world.vms.delete(vm.id)
    assert not world.machines.live(), "a process is left"
    assert not await world.rows()
    assert not [*world.paths.vms.glob("*")], "a folder is left"
    async with asyncio.timeout(_PATIENCE_S):
        while _stored(world):  # a file system's clock may stand still for some milliseconds
            await world.house.storage.collect(0)
    assert not world.machines.violations, world.machines.violations
    await world.stop()


async def _half_deleted(world: World, vms: list[VM]) -> list[str]:
    async with world.ctx.store.begin() as tx:
        rows = [row for vm in vms for row in await tx.snapshots.list_for_vm(vm.id)]
    return [row.id for row in rows if row.status is SnapshotStatus.DELETING]


def _stored(world: World) -> list[str]:
    """Manifests, deleted ones and packs."""
    return [name for top in ("snapshots", "packs", "trash") for name in _files(world.paths.objects / top)]


def _files(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("**/*") if path.is_file() and path.name != "clock"]


def _unmade(vms: list[VM], world: World) -> set[str]:
    """VMs whose creation was cut off before they had a folder."""
    return {vm.id for vm in vms if vm.state is State.ERROR and not world.paths.vm(vm.id).root.exists()}


async def _check(world: World, vm: VM, told: dict[str, Any]) -> None:
    assert vm.state not in TARGET, f"left in {vm.state}"
    processes = [pid for pid, it in world.machines.live().items() if it["folder"] == str(world.paths.vm(vm.id).root)]
    assert len(processes) == (vm.state is State.RUNNING), f"{vm.state} with {len(processes)} processes"
    snapshots = await world.snapshots(vm)
    pending = [row for row in snapshots if row.status is SnapshotStatus.PENDING]
    assert not pending or world.owner(vm).pending == pending[0], "a pending snapshot that nobody stores"
    if vm.state is State.ERROR:
        assert vm.state_reason
        vm = await world.vms.start(vm.id)
    if vm.state is State.STOPPED:
        assert "life" not in told, f"its memory was lost: {vm.state_reason}"
        vm = await world.vms.start(vm.id)
    if world.gate.route(vm.id) is None:  # it was cut off before its route was made
        await world.house.routes.create(vm.id, subdomain=vm.id, target_port=80, auto_wake=True)
    answered = await world.request(vm)
    assert world.state(vm) is State.RUNNING
    memory = world.memory(vm)
    if "life" in told:
        assert memory["life"] == told["life"], "another boot's memory"
        assert answered > told.get("requests", 0), "time went back"
    assert world.disk(vm)["ticks"] >= told.get("disk", 0), "its disk went back"
    await world.vms.snapshot(vm.id)
    await world.vms.restore(vm.id, None)
    assert world.memory(vm)["life"] == memory["life"]


def forked(work: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run `work` in a child of its own; how that ended."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        asyncio.run(work())
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(_WRONG)
    os._exit(_ENDED)


async def _warm_up(folder: Path) -> None:
    """What is imported late is imported once, not in every child."""
    world = await World(folder).start()
    await world.vms.snapshot((await world.vm()).id)
    await world.stop()


def main(root: Path, first: int, stride: int) -> int:
    """Every n from `first` on, `stride` apart. The number of those that went wrong."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(_warm_up(root / "warm"))
    wrong = 0
    for n in itertools.count(first, stride):
        folder = root / str(n)
        folder.mkdir()
        ended = forked(lambda folder=folder, n=n: story(folder, n))  # type: ignore[misc]
        if ended != _KILLED:
            print(f"{n - stride} steps" if ended == _ENDED else f"the story itself goes wrong, step {n}")
            return wrong + (ended != _ENDED)
        if forked(lambda folder=folder: aftermath(folder)) != _ENDED:  # type: ignore[misc]
            print(f"wrong after a kill before step {n}")
            wrong += 1
        shutil.rmtree(folder)
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), 100))
