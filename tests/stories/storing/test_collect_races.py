"""A collection against writers, deleters and other collections: each runs whole at every moment of the other.

The moments are the calls of the object store, before and after. Each story is played once for each of them, and in the
end every snapshot that exists comes back as it was stored, and what none needs is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore, no_hook
from hatchvm.testing.storeroom import GRACE, Storeroom, snapshot

Act = Callable[[], Awaitable[object]]

#: The one that everybody refers to, one that refers to it, and those that are made meanwhile.
BASE, HEIR, NEW, OTHER = snapshot(1, 1), snapshot(1, 2), snapshot(1, 3), snapshot(3, 4)
HOUR_S = 3600.0

#: What every story begins with, made once.
_BEGINNING: dict[str, tuple[bytes, datetime]] = {}


class Interrupted:
    """A store's hook that runs `meanwhile` once, at the n-th moment."""

    def __init__(self, at: int, meanwhile: Act) -> None:
        self._left = at
        self._meanwhile = meanwhile

    @property
    def came(self) -> bool:
        return self._left <= 0

    async def __call__(self, step: str, key: str) -> None:
        self._left -= 1
        if self._left == 0:
            await self._meanwhile()


class Play:
    """A store with an old base and a snapshot of the same VM that shares its packs; actors with views of their own."""

    def __init__(self, root: Path) -> None:
        self.clock = SteeredClock()
        self.store = MemoryStore(self.clock)
        self.root = root
        self.actors = 0
        self.room = self.actor(no_hook)

    def actor(self, hook: Callable[[str, str], Awaitable[None]]) -> Storeroom:
        """Another host: it shares the store and nothing else."""
        self.actors += 1
        return Storeroom(self.store.seen_by(hook), self.root / str(self.actors), self.clock)

    async def begin(self) -> None:
        if not _BEGINNING:
            await self.room.write(BASE)
            await self.room.write(HEIR, [BASE])
            _BEGINNING.update(self.store.objects)
        self.store.objects.update(_BEGINNING)
        self.clock.advance(2 * GRACE.total_seconds())

    async def end(self, gone: set[SnapshotKeys] | None = None) -> list[SnapshotKeys]:
        here = await self.room.snapshots()
        assert set(here).isdisjoint(gone or set())
        self.clock.advance(GRACE.total_seconds() + 1)
        await self.room.collect()
        for keys in here:
            await self.room.restore(keys)
        assert await self.room.unneeded() == set()
        return here


async def everywhere(tmp_path: Path, play: Callable[[Play, int], Awaitable[Interrupted]]) -> int:
    """Play it with every moment until there is none left; how many there were."""
    for at in itertools.count(1):
        stage = Play(tmp_path / str(at))
        await stage.begin()
        if not (await play(stage, at)).came:
            return at - 1
    raise AssertionError


@pytest.mark.parametrize("who", ["writer", "writer, then delete", "delete", "delete vm", "collect", "delete, collect"])
@pytest.mark.parametrize("deleted_before", [0, 1, 7], ids=lambda hours: f"deleted {hours} h ago")
async def test_whatever_happens_during_a_collection(tmp_path: Path, who: str, deleted_before: int) -> None:
    async def play(stage: Play, at: int) -> Interrupted:
        other = stage.actor(no_hook)
        acts: dict[str, list[Act]] = {
            "writer": [lambda: other.write(NEW, [HEIR, BASE])],
            "writer, then delete": [lambda: other.write(NEW, [HEIR, BASE]), lambda: other.engine.delete(HEIR)],
            "delete": [lambda: other.engine.delete(HEIR)],
            "delete vm": [lambda: other.engine.delete_vm(HEIR.vm_id)],
            "collect": [other.collect],
            "delete, collect": [lambda: other.engine.delete(HEIR), other.collect],
        }

        async def meanwhile() -> None:
            for act in acts[who]:
                await act()

        if deleted_before:
            await stage.room.engine.delete(BASE)
            stage.clock.advance(deleted_before * HOUR_S)
        hook = Interrupted(at, meanwhile)
        await stage.actor(hook).collect()
        here = await stage.end()
        assert (BASE in here) == (not deleted_before and (who != "delete vm" or not hook.came))
        assert (NEW in here) == (hook.came and "writer" in who)
        return hook

    assert await everywhere(tmp_path, play) > 10


@pytest.mark.parametrize("hours", [0, 1.4, 1.6, 7, 13])
async def test_a_base_deleted_and_collected_during_a_write(tmp_path: Path, hours: float) -> None:
    """It commits in time and whole, or not at all. The request that commits is taken to arrive within hours."""
    late = timedelta(hours=hours) > GRACE / 4

    async def play(stage: Play, at: int) -> Interrupted:
        async def meanwhile() -> None:
            await stage.room.engine.delete(BASE)
            await stage.room.engine.delete(HEIR)
            stage.clock.advance(hours * HOUR_S)
            await stage.room.collect()

        hook = Interrupted(at, meanwhile)

        async def unless_it_commits(step: str, key: str) -> None:
            if (step, key) != ("put", NEW.manifest) or not late:
                await hook(step, key)

        committed = True
        try:
            await stage.actor(unless_it_commits).write(NEW, [HEIR, BASE])
        except Unavailable:
            committed = False
        here = await stage.end(gone={BASE, HEIR} if hook.came else None)
        assert committed == (NEW in here)
        assert committed or late
        return hook

    assert await everywhere(tmp_path, play) > 10


async def test_a_base_deleted_during_a_collection_during_a_write(tmp_path: Path) -> None:
    """Every moment of the collection, at every moment of the write."""
    whole = 0

    async def play(stage: Play, at: int) -> Interrupted:
        nonlocal whole
        for inner_at in itertools.count(1):
            inner_stage = Play(stage.root / str(inner_at))
            await inner_stage.begin()
            inner = Interrupted(inner_at, lambda stage=inner_stage: stage.room.engine.delete_vm(BASE.vm_id))  # type: ignore[misc]

            async def collect(stage: Play = inner_stage, inner: Interrupted = inner) -> None:
                stage.clock.advance(HOUR_S)
                await stage.actor(inner).collect()

            hook = Interrupted(at, collect)
            await inner_stage.actor(hook).write(OTHER, [HEIR, BASE])
            whole += OTHER in await inner_stage.end()
            if not inner.came:
                return hook
        raise AssertionError

    moments = await everywhere(tmp_path, play)
    assert whole > moments > 10


async def test_a_collection_during_a_delete_during_a_write(tmp_path: Path) -> None:
    """Every moment of the delete, once the write counts on its base."""

    async def play(stage: Play, at: int) -> Interrupted:
        hook = Interrupted(at, stage.room.collect)
        deleter = stage.actor(hook)

        async def delete() -> None:
            await deleter.engine.delete(HEIR)
            await deleter.engine.delete(BASE)

        once = Interrupted(1, delete)

        async def when_it_stores(step: str, key: str) -> None:
            if step == "put" and key.startswith("packs/"):
                await once(step, key)

        await stage.actor(when_it_stores).write(OTHER, [HEIR, BASE])
        assert OTHER in await stage.end()
        return hook

    assert await everywhere(tmp_path, play) > 10


async def test_a_write_during_a_collection_whose_base_goes(tmp_path: Path) -> None:
    async def play(stage: Play, at: int) -> Interrupted:
        for inner_at in itertools.count(1):
            inner_stage = Play(stage.root / str(inner_at))
            await inner_stage.begin()
            inner = Interrupted(inner_at, lambda stage=inner_stage: stage.room.engine.delete_vm(BASE.vm_id))  # type: ignore[misc]
            writer = inner_stage.actor(inner)
            hook = Interrupted(at, lambda writer=writer: writer.write(OTHER, [HEIR, BASE]))  # type: ignore[misc]
            await inner_stage.actor(hook).collect()
            assert (OTHER in await inner_stage.end()) == hook.came
            if not inner.came:
                return hook
        raise AssertionError

    assert await everywhere(tmp_path, play) > 10


@pytest.mark.parametrize("hours", [0, 2.9, 3.1, 5.9, 6.1])
async def test_packs_of_a_cut_off_upload_are_used_while_they_are_safe(tmp_path: Path, hours: float) -> None:
    """The second attempt begins that much later; a collection runs at each of its moments, an hour on."""

    async def play(stage: Play, at: int) -> Interrupted:
        async def meanwhile() -> None:
            stage.clock.advance(1.4 * HOUR_S)
            await stage.room.collect()

        host = stage.actor(no_hook)
        store = host.store
        assert isinstance(store, MemoryStore)
        store.hook = refuse_manifests
        with pytest.raises(Unavailable):
            await host.write(NEW)
        stage.clock.advance(hours * HOUR_S)
        store.hook = hook = Interrupted(at, meanwhile)
        await host.write(NEW)
        assert NEW in await stage.end()
        return hook

    assert await everywhere(tmp_path, play) >= 4


async def refuse_manifests(step: str, key: str) -> None:
    if step == "put" and key.endswith("/manifest"):
        raise Unavailable("the store went away")


async def test_a_short_grace_period_and_a_writer_under_way(tmp_path: Path) -> None:
    """Refused at every moment of the write; and one that begins at any moment of the collection is safe."""
    writing = False

    def refuse() -> None:
        if writing:
            raise Conflict("an upload is under way")

    async def during_a_write(stage: Play, at: int) -> Interrupted:
        nonlocal writing

        async def collect() -> None:
            with pytest.raises(Conflict):
                await stage.room.engine.collect(timedelta(0), rows=stage.room.rows, allow=refuse)

        hook, writing = Interrupted(at, collect), True
        await stage.actor(hook).write(NEW, [HEIR, BASE])
        writing = False
        await stage.end()
        return hook

    async def during_a_collection(stage: Play, at: int) -> Interrupted:
        host = stage.actor(no_hook)
        store = host.store
        assert isinstance(store, MemoryStore)
        store.hook = refuse_manifests
        with pytest.raises(Unavailable):
            await host.write(NEW, [HEIR, BASE])
        stage.clock.advance(HOUR_S)

        async def write() -> None:
            store.hook = no_hook
            await host.write(NEW, [HEIR, BASE])
            await host.engine.delete(BASE)
            stage.clock.advance(1)

        store.hook = hook = Interrupted(at, write)
        await host.collect(timedelta(0))
        await stage.end()
        return hook

    assert await everywhere(tmp_path / "1", during_a_write) > 10
    assert await everywhere(tmp_path / "2", during_a_collection) > 10


@pytest.mark.parametrize("hours", [0, 7])
async def test_a_collection_at_every_moment_of_a_delete_that_is_repeated(tmp_path: Path, hours: float) -> None:
    async def play(stage: Play, at: int) -> Interrupted:
        class Cut(Exception):
            pass

        async def cut() -> None:
            raise Cut

        hook = Interrupted(at, cut)
        try:
            await stage.actor(hook).engine.delete(BASE)
        except Cut:
            stage.clock.advance(hours * HOUR_S)
            await stage.room.collect()
        again = Interrupted(at, stage.room.collect)
        await stage.actor(again).engine.delete(BASE)
        assert await stage.end() == [HEIR]
        return hook

    assert await everywhere(tmp_path, play) > 5


async def test_a_cut_off_delete_that_is_repeated_during_a_collection_protects_a_write(tmp_path: Path) -> None:
    """Its old trash is replaced by a young one that the collection must not remove: a writer counts on it."""

    async def play(stage: Play, at: int) -> Interrupted:
        await stage.store.put(BASE.trash, await stage.store.get(BASE.manifest))
        await stage.room.engine.delete(HEIR)
        stage.clock.advance(2 * GRACE.total_seconds())
        hook = Interrupted(at, lambda: stage.room.engine.delete(BASE))

        async def delete_and_collect() -> None:
            await stage.actor(hook).collect()
            stage.clock.advance(HOUR_S)
            await stage.room.collect()

        # After the writer has read its base, and before it commits.
        writer = Interrupted(1, delete_and_collect)

        async def when_it_stores(step: str, key: str) -> None:
            if step == "put" and key.startswith("packs/"):
                await writer(step, key)

        await stage.actor(when_it_stores).write(NEW, [BASE])
        assert NEW in await stage.end()
        return hook

    assert await everywhere(tmp_path, play) > 10
