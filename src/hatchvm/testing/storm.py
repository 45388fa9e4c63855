"""A storm: many operations on VMs whose object store fails, in a house that is killed now and then; and what must hold.

A guest's memory and disk change with every write, drawn from a small pool of blocks an image, so that snapshots share
packs. What a VM fell asleep with is remembered here, byte for byte. It is compared with what the VM wakes up with, and
at the end with what every committed snapshot restores to. It may fail with a HatchError; it may not be wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, HatchError
from hatchvm.base.paths import VMPaths
from hatchvm.base.units import MIB
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import NewVM
from hatchvm.node import pair
from hatchvm.snapshots.engine import FILES, SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.s3.aging import AgingStore
from hatchvm.testing.world import BOOT_ID, SETTINGS, World

_BLOCK: Final = 4096
#: Blocks that a guest writes, behind the one that tells its ticks; and how many different ones there are an image.
_SLOTS: Final = 24
_HEAD: Final = (1 + _SLOTS) * _BLOCK
_NUMBER: Final = 8
_POOL: Final = 60
_GUESTS: Final = 6
_AT_ONCE: Final = 4
#: Between two batches: failed uploads and wakes are tried again.
_PAUSE_S: Final = 10.0
_PATIENCE_S: Final = 60.0
_LOOK_S: Final = 0.02
#: The task of a front; all others are the house's.
_FRONT: Final = "front"

Operation: TypeAlias = tuple[str, Callable[[], Awaitable[None]]]


@dataclass(frozen=True, slots=True)
class Content:
    """What a guest that stands still has; zeros at the ends are left out."""

    memory: bytes
    disk: bytes
    state: bytes

    @classmethod
    def of(cls, folder: Path) -> Content:
        """`folder`: with files named as a VM's."""
        memory, disk, state = (folder / FILES[name] for name in ("memory", "disk", "state"))
        assert memory.stat().st_size == SETTINGS.default_mem_mib * MIB
        return cls(_written(memory), _written(disk), state.read_bytes())


@dataclass(slots=True)
class Guest:
    """A VM as its user knows it. `asleep`: what it sleeps with, if it does. `leaving`: it was asked to be deleted.

    `slept`: ids of its snapshots, and `committed`: of those of them that were seen to be, both oldest first.
    """

    id: str
    image: str
    asleep: Content | None = None
    leaving: bool = False
    slept: list[str] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)


class Storm:
    """`images`: names of images that the house in `folder` has. All is drawn from `seed`, but how operations that go on
    at the same time interleave.
    """

    def __init__(self, folder: Path, store: AgingStore, clock: SteeredClock, seed: int) -> None:
        self.succeeded: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.collected = 0
        self._folder = folder
        self._store = store
        self._clock = clock
        self._dice = random.Random(seed)
        self._guests: dict[str, Guest] = {}
        #: What each snapshot holds, and the ones that were asked to be deleted.
        self._held: dict[str, Content] = {}
        self._given_up: set[str] = set()
        self._images: dict[str, str] = {}
        self._world = World(folder, clock=clock, objects=store)

    @property
    def operations(self) -> int:
        """How many were tried."""
        return self.succeeded.total() + self.failed.total()

    async def begin(self) -> None:
        """Start the house, with two images."""
        await self._world.start()
        async with self._world.ctx.store.begin() as tx:
            [image] = await tx.images.list()
            other = replace(image, id="img-000000000002", name="other", digest="e")
            await tx.images.insert(other)
        self._images = {one.id: one.digest for one in (image, other)}

    async def batch(self) -> None:
        """Some operations at a time, each on another VM; sometimes one on the store beside them."""
        self._clock.advance(_PAUSE_S)
        await self._all(await self._draw())
        await self._look()

    async def kill(self) -> None:
        """Begin a batch, end the house at one of its steps, and start another."""
        self._clock.advance(_PAUSE_S)
        operations = await self._draw()
        now, left = asyncio.Event(), self._dice.randrange(1, 60)

        async def count(step: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                now.set()

        self._world.step.interfere = count
        batch = tasks.spawn(self._all(operations), name="batch")
        await asyncio.wait([batch, tasks.spawn(now.wait(), name="kill")], return_when=asyncio.FIRST_COMPLETED)
        if batch.done():
            batch.result()
        await self._restart()
        self.succeeded["kill"] += 1

    async def pass_time(self) -> None:
        """Hours pass, for the house and for the store."""
        await self._store.pass_time(timedelta(hours=self._dice.choice([1, 2, 5, 7])))

    async def settle(self) -> None:
        """The store works again: what was begun is finished, and every VM wakes up as it fell asleep."""
        await self._restart()
        async with asyncio.timeout(_PATIENCE_S):
            while await self._is_busy():  # noqa: ASYNC110
                await asyncio.sleep(_LOOK_S)
        for guest in self._guests.values():
            state = self._state(guest)
            if state is State.SNAPSHOTTED:
                await self._wake(guest)
            elif state is not State.RUNNING:
                await self._start(guest)
        await self._look()

    async def verify(self) -> int:
        """Every committed snapshot restores to what was saved; how many there are."""
        engine = SnapshotEngine(self._store.clean, self._folder / "checked", self._clock)
        into, count = self._folder / "restored", 0
        for guest in self._guests.values():
            for row in await self._rows(guest):
                assert row.status is SnapshotStatus.COMMITTED
                manifest, _ = await engine.open(SnapshotKeys(row.vm_id, row.id))
                await engine.verify(manifest)
                await engine.fetch(manifest, into)
                assert Content.of(into) == self._held[row.id], f"{row.id} holds something else"
                count += 1
        return count

    async def sweep(self) -> None:
        """After a collection without grace nothing is left that no snapshot needs, and nothing else is wrong."""
        storage = self._world.house.storage
        async with asyncio.timeout(_PATIENCE_S):
            while True:  # what is of this second stays for another one
                await storage.collect(0)
                audit = await storage.audit()
                if not audit.orphaned.objects and not audit.trash.objects:
                    break
                await asyncio.sleep(_LOOK_S)
        assert not audit.problems, audit.problems

    async def end(self) -> None:
        await self._world.stop()

    # Drawing what to do.

    async def _draw(self) -> list[Operation]:
        guests = list(self._guests.values())
        drawn = [await self._draw_for(one) for one in self._dice.sample(guests, min(_AT_ONCE, len(guests)))]
        if self._has_room() and self._dice.random() < 0.3:
            drawn.append(("create", partial(self._create, self._dice.choice(list(self._images)))))
        if self._dice.random() < 0.4:
            collect: Operation = ("collect", partial(self._collect, self._dice.choice([None, None, 0.0])))
            drawn.append(self._dice.choice([collect, collect, ("audit", self._audit)]))
        return drawn

    async def _draw_for(self, guest: Guest) -> Operation:
        if guest.leaving:
            return "delete vm", partial(self._delete, guest)
        rows, state = await self._rows(guest), self._state(guest)
        stored = [row for row in rows if row.status is SnapshotStatus.COMMITTED]
        choices: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [(1, "delete vm", partial(self._delete, guest))]
        if state is State.RUNNING:
            choices += [(8, "write", partial(self._write, guest)), (20, "suspend", partial(self._suspend, guest))]
        elif state is State.SNAPSHOTTED:
            choices.append((6, "wake", partial(self._wake, guest)))
            choices.append((3, "boot disk", partial(self._boot_disk, guest, self._dice.choice([None, *stored]))))
        else:
            choices.append((20, "start", partial(self._start, guest)))
        if state is State.SNAPSHOTTED and stored and rows[0] is stored[0]:
            choices.append((9, "wake from store", partial(self._lose, guest, stored[0])))
        if stored:
            choices += self._choices_with(guest, self._dice.choice(stored), asleep=state is not State.RUNNING)
        *_, (_, name, work) = self._dice.choices(choices, [weight for weight, *_ in choices])
        return name, work

    def _choices_with(
        self, guest: Guest, stored: Snapshot, *, asleep: bool
    ) -> list[tuple[int, str, Callable[[], Awaitable[None]]]]:
        choices: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (3, "verify", partial(self._verify, stored)),
            (5, "delete snapshot", partial(self._delete_snapshot, stored)),
        ]
        if asleep:
            choices.append((8, "restore", partial(self._restore, guest, stored)))
        if self._has_room():
            choices.append((5, "copy", partial(self._copy, guest, stored)))
        return choices

    def _has_room(self) -> bool:
        return len(self._guests) < _GUESTS

    async def _all(self, operations: list[Operation]) -> None:
        await asyncio.gather(*(self._attempt(name, work) for name, work in operations))

    async def _attempt(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except HatchError as error:
            self.failed[f"{name}: {type(error).__name__}"] += 1
        else:
            self.succeeded[name] += 1

    # What there is to do.

    async def _create(self, image_id: str) -> None:
        vm = await self._world.vms.create(NewVM(image_id=image_id))
        guest = self._guests[vm.id] = Guest(vm.id, self._images[image_id])
        await self._write(guest)

    async def _write(self, guest: Guest) -> None:
        paths = self._paths(guest)
        pid = self._world.machines.find(paths)
        for path in (paths.memory, paths.disk):
            for _ in range(self._dice.randrange(1, 8)):
                block, slot = _block(guest.image, self._dice.randrange(_POOL)), self._dice.randint(1, _SLOTS)
                _write_at(path, slot * _BLOCK, block)
                if path == paths.memory and pid is not None:
                    self._world.machines.wrote(pid, [slot])

    async def _suspend(self, guest: Guest) -> None:
        try:
            await self._world.vms.snapshot(guest.id)
        except HatchError:
            if self._state(guest) is State.SNAPSHOTTED:
                await self._fell_asleep(guest)
            raise
        await self._fell_asleep(guest)

    async def _wake(self, guest: Guest) -> None:
        before = guest.asleep
        await self._world.vms.restore(guest.id, None)
        self._resumed(guest, before)

    async def _lose(self, guest: Guest, newest: Snapshot) -> None:
        """What this host has of it is lost, all of it or enough of it."""
        paths = self._paths(guest)
        guest.asleep = self._held[newest.id]
        for path in self._dice.choice([[paths.saved], [paths.state], [paths.memory, paths.state, paths.disk]]):
            path.unlink(missing_ok=True)
        await self._wake(guest)

    async def _restore(self, guest: Guest, snapshot: Snapshot) -> None:
        await self._world.vms.restore(guest.id, snapshot.id)
        self._resumed(guest, self._held[snapshot.id])

    async def _boot_disk(self, guest: Guest, snapshot: Snapshot | None) -> None:
        before = self._held[snapshot.id] if snapshot is not None else guest.asleep
        await self._world.vms.restore(guest.id, snapshot.id if snapshot is not None else None, disk=True)
        assert before is not None
        assert _written(self._paths(guest).disk) == before.disk, f"{guest.id} booted another disk"
        guest.asleep = None

    async def _start(self, guest: Guest) -> None:
        await self._world.vms.start(guest.id)

    async def _copy(self, guest: Guest, snapshot: Snapshot) -> None:
        vm = await self._world.vms.create(NewVM(snapshot_id=snapshot.id))
        copy = self._guests[vm.id] = Guest(vm.id, guest.image)
        self._resumed(copy, self._held[snapshot.id])

    async def _delete(self, guest: Guest) -> None:
        guest.leaving = True
        await self._world.vms.delete(guest.id)

    async def _delete_snapshot(self, snapshot: Snapshot) -> None:
        self._given_up.add(snapshot.id)
        try:
            await self._world.house.snapshots.delete(snapshot.id)
        except Conflict:
            self._given_up.discard(snapshot.id)
            raise

    async def _verify(self, snapshot: Snapshot) -> None:
        await self._world.house.snapshots.verify(snapshot.id)

    async def _collect(self, grace_s: float | None) -> None:
        self.collected += (await self._world.house.storage.collect(grace_s)).deleted.objects

    async def _audit(self) -> None:
        await self._world.house.storage.audit()

    async def _restart(self) -> None:
        """Whatever the house was doing ends here and now."""
        me = asyncio.current_task()
        while doomed := [task for task in asyncio.all_tasks() if task is not me and task.get_name() != _FRONT]:
            await asyncio.sleep(0)  # every one of them has begun: what never did would be reported as forgotten
            for task in doomed:
                task.cancel()
            for end in await asyncio.gather(*doomed, return_exceptions=True):
                if isinstance(end, AssertionError):
                    raise end
        await self._world.ctx.store.close()
        self._world = await World(self._folder, clock=self._clock, objects=self._store).start()
        for owner in self._world.ctx.owners:
            guest = self._guests.setdefault(owner.vm.id, Guest(owner.vm.id, self._images[owner.vm.spec.image_id]))
            if not guest.leaving:
                await self._recognise(guest)
        await self._look()

    # What must hold.

    def _resumed(self, guest: Guest, before: Content | None) -> None:
        """It goes on exactly where it was: who is resumed ticks once. A tick may write a far page, which the guest
        itself looks after."""
        assert before is not None
        paths = self._paths(guest)
        for was, path in ((before.memory, paths.memory), (before.disk, paths.disk)):
            now = _written(path)
            told, tells = _told(was), _told(now)
            far = tells.get("far", {})
            goes_on = told | {"ticks": told["ticks"] + 1} | ({"far": far} if "far" in told else {})
            assert tells == goes_on, f"{guest.id} is elsewhere"
            same = _without(now, far)[_BLOCK:] == _without(was, far)[_BLOCK:]
            assert same, f"{guest.id} has other bytes in its {path.name}"
        guest.asleep = None

    async def _fell_asleep(self, guest: Guest) -> None:
        newest = (await self._rows(guest))[0].id
        guest.slept.append(newest)
        guest.asleep = self._held[newest] = Content.of(self._paths(guest).root)

    async def _recognise(self, guest: Guest) -> None:
        """After a kill. What a VM sleeps with is what it slept with before, or what it was being restored to."""
        rows = await self._rows(guest)
        if self._state(guest) is not State.SNAPSHOTTED:
            guest.asleep = None
        elif rows[0].id not in self._held:
            await self._fell_asleep(guest)
        elif pair.sound(self._paths(guest), BOOT_ID):
            here = Content.of(self._paths(guest).root)
            assert here in [self._held[one] for one in guest.slept], f"{guest.id} sleeps with something else"
            guest.asleep = here
        else:
            guest.asleep = self._held[rows[0].id]

    async def _look(self) -> None:
        """No guest was resumed wrongly, no VM is lost, and no committed snapshot that is to be kept."""
        assert not self._world.machines.violations
        vms = {vm.id: vm for vm in await self._world.rows()}
        for guest in list(self._guests.values()):
            vm = vms.get(guest.id)
            if vm is None:
                assert guest.leaving, f"{guest.id} is lost"
                del self._guests[guest.id]
            elif not guest.leaving:
                assert vm.state is not State.ERROR or vm.state_reason.startswith("Hatch ended while"), vm
                await self._look_at_snapshots(guest)

    async def _look_at_snapshots(self, guest: Guest) -> None:
        rows = await self._rows(guest)
        here = [row.id for row in reversed(rows) if row.status is SnapshotStatus.COMMITTED]
        guest.committed += [one for one in here if one not in guest.committed]
        for place, one in enumerate(reversed(guest.committed)):
            old = place >= SETTINGS.snapshot_keep
            assert old or one in here or one in self._given_up, f"committed snapshot {one} of {guest.id} is gone"

    async def _is_busy(self) -> bool:
        self._clock.advance(_PAUSE_S)
        await self._look()
        for guest in list(self._guests.values()):
            if guest.leaving and not self._world.ctx.owners.get(guest.id).busy:
                await self._world.vms.delete(guest.id)
            async with self._world.ctx.store.begin() as tx:
                rows = await tx.snapshots.list_for_vm(guest.id)
            if guest.leaving or any(row.status is not SnapshotStatus.COMMITTED for row in rows):
                return True
        return False

    async def _rows(self, guest: Guest) -> list[Snapshot]:
        """Its snapshots but those that are being deleted, newest first."""
        async with self._world.ctx.store.begin() as tx:
            return [
                row for row in await tx.snapshots.list_for_vm(guest.id) if row.status is not SnapshotStatus.DELETING
            ]

    def _state(self, guest: Guest) -> State:
        return self._world.ctx.owners.get(guest.id).vm.state

    def _paths(self, guest: Guest) -> VMPaths:
        return self._world.paths.vm(guest.id)


def _written(path: Path) -> bytes:
    """The blocks that this storm writes, then every other one that is not zeros, each behind its number."""
    with path.open("rb") as file:
        content, at = os.pread(file.fileno(), _HEAD, 0).ljust(_HEAD, b"\0"), _HEAD
        with contextlib.suppress(OSError):  # no data follows
            while True:
                number = os.lseek(file.fileno(), at, os.SEEK_DATA) // _BLOCK
                block = os.pread(file.fileno(), _BLOCK, number * _BLOCK)
                content += number.to_bytes(_NUMBER, "little") + block.ljust(_BLOCK, b"\0") if any(block) else b""
                at = (number + 1) * _BLOCK
    return content


def _told(content: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(content[:_BLOCK].rstrip(b"\0"))
    return told


def _without(content: bytes, pages: Iterable[str]) -> bytes:
    """What `_written` returned, without these pages."""
    numbers = {int(page).to_bytes(_NUMBER, "little") for page in pages}
    rest = (content[at : at + _NUMBER + _BLOCK] for at in range(_HEAD, len(content), _NUMBER + _BLOCK))
    return content[:_HEAD] + b"".join(each for each in rest if each[:_NUMBER] not in numbers)


def _write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), data, offset)


@cache
def _block(image: str, number: int) -> bytes:
    return random.Random(f"{image} {number}").randbytes(_BLOCK)
