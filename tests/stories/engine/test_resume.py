"""An upload that was cut off goes on where it was, as long as what it stored is safe; see the engine's docstring."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.snapshots.engine import GRACE
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import Hook, MemoryStore
from hatchvm.testing.sleeper import FRAME, Sleeper, piece

PACKS: Final = 8


class Uploads:
    """Counts the packs that are put, and fails instead of putting one too many."""

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self.stored: list[str] = []

    async def __call__(self, step: str, key: str) -> None:
        if key.startswith("packs/") and step == "put":
            if len(self.stored) == self._most:
                raise Unavailable("the store went away")
            self.stored.append(key)


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def store(clock: SteeredClock, monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 1)
    return MemoryStore(clock)


@pytest.fixture
def vm(store: MemoryStore, tmp_path: Path, clock: SteeredClock) -> Sleeper:
    vm = Sleeper(store, tmp_path, clock)
    vm.holds(memory=piece(PACKS * FRAME, "1"), state=b"", disk=b"")
    return vm


async def cut_off(vm: Sleeper, store: MemoryStore, after: int) -> list[str]:
    """The packs that were stored."""
    uploads = Uploads(after)
    with pytest.raises(Unavailable):
        await vm.write(engine=vm.engine_over(store.seen_by(uploads)))
    return uploads.stored


def packs_bytes(store: MemoryStore) -> int:
    return sum(len(data) for key, (data, _) in store.objects.items() if key.startswith("packs/"))


@pytest.mark.parametrize("after", range(PACKS))
async def test_only_the_rest_is_stored(vm: Sleeper, store: MemoryStore, after: int) -> None:
    first = await cut_off(vm, store, after)
    rest = Uploads()
    manifest = await vm.write(2, engine=vm.engine_over(store.seen_by(rest)))
    assert len(first) + len(rest.stored) == PACKS == len(manifest.packs)
    assert manifest.added_bytes == packs_bytes(store)  # the first ones are its own, too
    assert await vm.restored(2) == vm.content()


async def test_cut_off_again_and_again_it_gets_there(vm: Sleeper, store: MemoryStore) -> None:
    for _ in range(PACKS // 2 - 1):
        assert len(await cut_off(vm, store, 2)) == 2
    manifest = await vm.write(engine=vm.engine_over(store.seen_by(Uploads(2))))
    assert manifest.added_bytes == packs_bytes(store)
    assert await vm.restored() == vm.content()


async def test_a_pack_that_is_gone_is_stored_again(vm: Sleeper, store: MemoryStore) -> None:
    first = await cut_off(vm, store, 5)
    del store.objects[first[3]]
    rest = Uploads()
    await vm.write(engine=vm.engine_over(store.seen_by(rest)))
    assert len(rest.stored) == PACKS - 4
    assert await vm.restored() == vm.content()


async def test_what_changed_meanwhile_is_stored_and_counted(vm: Sleeper, store: MemoryStore) -> None:
    first = await cut_off(vm, store, 5)
    vm.holds(memory=piece(2 * FRAME, "1") + piece(FRAME, "new"), state=b"", disk=b"")
    rest = Uploads()
    manifest = await vm.write(engine=vm.engine_over(store.seen_by(rest)))
    used = {f"packs/{manifest.domain}/{pack.id}" for pack in manifest.packs}
    assert used < {*first, *rest.stored}
    assert manifest.added_bytes == sum(pack.size for pack in manifest.packs)
    assert await vm.restored() == vm.content()


async def test_after_a_commit_nothing_is_unfinished(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    again = Uploads()
    await vm.write(2, engine=vm.engine_over(store.seen_by(again)))
    assert len(again.stored) == PACKS


async def test_packs_of_another_vm_are_not_taken(vm: Sleeper, store: MemoryStore) -> None:
    await cut_off(vm, store, 5)
    other = Sleeper(store, vm.root, vm.clock, vm_id="vm-ffffffffffff")
    uploads = Uploads()
    await other.write(engine=other.engine_over(store.seen_by(uploads)))
    assert len(uploads.stored) == PACKS


@pytest.mark.parametrize(("seconds", "stored"), [(-1, 3), (1, PACKS)], ids=["young", "old"])
async def test_packs_older_than_half_the_grace_period_are_not_taken(
    vm: Sleeper, store: MemoryStore, clock: SteeredClock, seconds: float, stored: int
) -> None:
    await cut_off(vm, store, PACKS - 3)
    clock.advance(GRACE.total_seconds() / 2 + seconds)
    rest = Uploads()
    manifest = await vm.write(engine=vm.engine_over(store.seen_by(rest)))
    assert len(rest.stored) == stored
    assert manifest.added_bytes == sum(pack.size for pack in manifest.packs)


def slow(clock: SteeredClock, seconds: float) -> Hook:
    """So much time passes while the first pack is stored."""
    passed: list[str] = []

    async def hook(step: str, key: str) -> None:
        if step == "put" and not passed:
            passed.append(key)
            clock.advance(seconds)

    return hook


async def test_an_upload_that_took_a_quarter_of_the_grace_period_is_not_committed(
    vm: Sleeper, store: MemoryStore, clock: SteeredClock
) -> None:
    quarter = GRACE.total_seconds() / 4
    with pytest.raises(Unavailable, match="HATCH_SNAPSHOT_GRACE"):
        await vm.write(1, engine=vm.engine_over(store.seen_by(slow(clock, quarter + 1))))
    assert vm.keys(1).manifest not in store.objects
    rest = Uploads()
    await vm.write(1, engine=vm.engine_over(store.seen_by(rest)))
    assert rest.stored == []
    await vm.write(2, engine=vm.engine_over(store.seen_by(slow(clock, quarter - 1))))
    assert await vm.restored(1) == await vm.restored(2) == vm.content()
