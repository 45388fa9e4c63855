"""Whenever the store fails, the daemon dies or somebody cancels: a snapshot is there whole, or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable
from hatchvm.base.tasks import spawn
from hatchvm.objects.directory import DirectoryStore
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.local import Source
from hatchvm.snapshots.manifest import Manifest
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import Hook, MemoryStore
from hatchvm.testing.sleeper import BLOCK, FRAME, Sleeper, piece

PACKS: Final = 7


class CancelledAt:
    """Awaits `work`, cancelling the task around it at its n-th suspension (from 1), and at every later one if `on`."""

    def __init__(self, work: Coroutine[Any, Any, Any], at: int, *, on: bool = False) -> None:
        self._steps = work.__await__()
        self._at = at
        self._on = on
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                waiting = self._steps.throw(error) if error else next(self._steps)
            except StopIteration as done:
                return done.value
            self.suspensions += 1
            if self.suspensions == self._at or (self._on and self.suspensions > self._at):
                task = asyncio.current_task()
                assert task
                task.cancel()
            try:
                error = None
                yield waiting
            except BaseException as thrown:
                error = thrown


class AtCall:
    """A hook of a store: does something at its n-th step (from 1) of the kinds in `steps`."""

    def __init__(self, at: int, action: Callable[[], Coroutine[Any, Any, None]], steps: str) -> None:
        self._at = at
        self._action = action
        self._steps = steps.split(",")
        self.count = 0

    async def __call__(self, step: str, key: str) -> None:
        if step in self._steps:
            self.count += 1
            if self.count == self._at:
                await self._action()


BEFORE: Final = "put,get,info,list,delete"
AFTER: Final = "put done,get done,list done,delete done"


async def nothing() -> None:
    pass


async def raise_unavailable() -> None:
    raise Unavailable("the store went away")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    """One frame a pack, so that little data makes many packs."""
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 1)
    return MemoryStore(SteeredClock())


@pytest.fixture
def vm(store: MemoryStore, tmp_path: Path) -> Sleeper:
    vm = Sleeper(store, tmp_path, store.clock)
    vm.holds(memory=piece((PACKS - 1) * FRAME, "1"), state=piece(60_000, "2"), disk=b"disk" * 1000)
    return vm


def fresh(vm: Sleeper, hook: Hook) -> tuple[MemoryStore, SnapshotEngine]:
    """An empty store, and an engine over it that is watched."""
    store = MemoryStore(vm.clock)
    return store, vm.engine_over(store.seen_by(hook))


def open_files(folder: Path) -> list[Path]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since: a thread of an abandoned put
            links.append(fd.readlink())
    return [link for link in links if link.is_relative_to(folder)]


async def calls_of_a_write(vm: Sleeper, steps: str) -> int:
    count = AtCall(0, nothing, steps)
    _, engine = fresh(vm, count)
    await vm.write(engine=engine)
    return count.count


async def test_a_store_that_fails_at_any_call_leaves_no_snapshot(vm: Sleeper) -> None:
    calls = await calls_of_a_write(vm, BEFORE)
    assert calls == 1 + PACKS + 1  # is it there already? the packs, the manifest
    for at in range(1, calls + 1):
        store, engine = fresh(vm, AtCall(at, raise_unavailable, BEFORE))
        with pytest.raises(Unavailable):
            await vm.write(engine=engine)
        assert open_files(vm.files) == []
        retried = vm.engine_over(store)
        with pytest.raises(NotFound):
            await retried.open(vm.keys())
        await vm.write(engine=retried)
        assert await vm.restored(engine=retried) == vm.content()


async def test_a_lost_answer_about_a_pack_leaves_no_snapshot(vm: Sleeper) -> None:
    for at in range(1, PACKS + 1):
        store, engine = fresh(vm, AtCall(at, raise_unavailable, AFTER))
        with pytest.raises(Unavailable):
            await vm.write(engine=engine)
        assert vm.keys().manifest not in store.objects


async def test_a_lost_answer_about_the_commit_leaves_the_snapshot_whole(vm: Sleeper) -> None:
    store, engine = fresh(vm, AtCall(PACKS + 1, raise_unavailable, "put done"))
    with pytest.raises(Unavailable):
        await vm.write(engine=engine)
    assert await vm.restored(engine=vm.engine_over(store)) == vm.content()


class AsksTwice(MemoryStore):
    """Repeats a commit whose answer got lost, as clients of S3 do by themselves."""

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await super().put(key, data, if_absent=if_absent)
        if if_absent:
            await super().put(key, data, if_absent=if_absent)


async def test_a_store_that_repeats_the_commit_by_itself_is_no_conflict(vm: Sleeper) -> None:
    engine = vm.engine_over(AsksTwice(vm.clock))
    await vm.write(engine=engine)
    assert await vm.restored(engine=engine) == vm.content()


async def test_of_two_writers_of_one_snapshot_exactly_one_wins(vm: Sleeper, store: MemoryStore, tmp_path: Path) -> None:
    together = asyncio.Barrier(2)

    async def meet(step: str, key: str) -> None:
        if step == "put" and key.startswith("snapshots/"):
            await together.wait()

    rival = Sleeper(store, tmp_path / "rival", store.clock)
    rival.holds(memory=piece(2 * FRAME, "rival"), state=b"r", disk=b"r")
    outcomes = await asyncio.gather(
        *(one.write(engine=one.engine_over(store.seen_by(meet))) for one in (vm, rival)), return_exceptions=True
    )
    [lost] = [outcome for outcome in outcomes if not isinstance(outcome, Manifest)]
    assert isinstance(lost, Conflict)
    winner = vm if isinstance(outcomes[0], Manifest) else rival
    assert await winner.restored() == winner.content()


@pytest.mark.parametrize("when", [BEFORE, AFTER], ids=["before", "after"])
async def test_a_cancel_at_any_call_of_the_store(vm: Sleeper, when: str) -> None:
    calls = await calls_of_a_write(vm, when)
    for at in range(1, calls + 1):
        running: list[asyncio.Task[Manifest]] = []

        async def cancel(running: list[asyncio.Task[Manifest]] = running) -> None:
            running[0].cancel()
            await asyncio.sleep(0)

        store, engine = fresh(vm, AtCall(at, cancel, when))
        running.append(spawn(vm.write(engine=engine), name="write"))
        await asyncio.wait(running)
        assert open_files(vm.files) == []
        if at == calls:  # the commit was under way: it decides
            assert running[0].result().keys == vm.keys()
            assert running[0].cancelling() == 0
        else:
            assert running[0].cancelled()
            assert vm.keys().manifest not in store.objects
            await vm.write(engine=vm.engine_over(store))
        assert await vm.restored(engine=vm.engine_over(store)) == vm.content()


async def test_a_commit_that_fails_while_cancelled_is_a_cancel(vm: Sleeper) -> None:
    running: list[asyncio.Task[Manifest]] = []

    async def cancel_and_fail() -> None:
        running[0].cancel()
        await asyncio.sleep(0)
        raise Unavailable("the store went away")

    store, engine = fresh(vm, AtCall(PACKS + 1, cancel_and_fail, "put"))
    running.append(spawn(vm.write(engine=engine), name="write"))
    await asyncio.wait(running)
    assert running[0].cancelled()
    assert vm.keys().manifest not in store.objects


@pytest.mark.parametrize("on", [False, True], ids=["once", "again and again"])
async def test_a_cancel_at_any_await_of_a_write(vm: Sleeper, tmp_path: Path, on: bool) -> None:
    base = Sleeper(DirectoryStore(tmp_path / "objects"), tmp_path, vm.clock)
    await base.write(1)
    vm.holds(memory=piece(3 * FRAME, "1") + piece(2 * FRAME, "new"), state=b"s", disk=b"d")
    cancelled = untouched = 0
    for at in itertools.count(2):
        attempt = CancelledAt(base.write(at, bases=[vm.keys(1)]), at - 1, on=on)

        async def run(attempt: CancelledAt = attempt) -> Manifest:
            manifest: Manifest = await attempt
            return manifest

        task = spawn(run(), name="write")
        await asyncio.wait([task])
        assert open_files(vm.files) == []
        if task.cancelled():
            cancelled += 1
            with pytest.raises(NotFound):
                await base.engine.open(vm.keys(at))
        else:
            await base.engine.verify(task.result())
            assert await base.restored(at) == vm.content()
            untouched += attempt.suspensions < at - 1
            if untouched == 3:  # timing moves the number of awaits by one or two
                break
    assert cancelled > 5


async def test_nothing_is_committed_after_a_cancel(vm: Sleeper) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.Event().wait()

    store, engine = fresh(vm, AtCall(4, hold, "put"))
    task = spawn(vm.write(engine=engine), name="write")
    await held.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert vm.keys().manifest not in store.objects


@pytest.mark.parametrize("look", [1, 2], ids=["first look", "second look"])
async def test_a_cancelled_write_ends_soon_and_not_before_its_threads(
    vm: Sleeper, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    reading, go_on, reads, real = threading.Event(), threading.Event(), [], Source.read_into
    monkeypatch.setattr("hatchvm.snapshots.scan._WINDOW_BYTES", BLOCK)
    blocks = sum(-(-path.stat().st_size // BLOCK) for path in vm.files.iterdir())

    def slow(source: Source, buffer: memoryview, offset: int) -> None:
        reads.append(offset)
        if look == 1 or len(reads) > blocks:
            reading.set()
            go_on.wait()
        real(source, buffer, offset)

    monkeypatch.setattr(Source, "read_into", slow)
    task = spawn(vm.write(), name="write")
    await asyncio.to_thread(reading.wait)
    task.cancel()
    try:
        for _ in range(50):
            await asyncio.sleep(0)
        assert not task.done()
    finally:
        go_on.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert len(reads) <= (1 if look == 1 else blocks + 2)  # one window, or one frame a thread


@pytest.mark.parametrize("how", ["changed", "sign bits", "shrunk", "punched"])
async def test_a_file_that_changes_meanwhile_is_noticed(vm: Sleeper, store: MemoryStore, how: str) -> None:
    memory = vm.files / "memory"

    async def change() -> None:
        if how == "shrunk":
            os.truncate(memory, 5 * FRAME)
            return
        with memory.open("r+b") as file:
            block = os.pread(file.fileno(), BLOCK, 6 * FRAME - BLOCK)
            if how == "changed":
                block = block[:-1] + bytes([block[-1] ^ 1])
            elif how == "sign bits":
                block = bytes([*block[:7], block[7] ^ 128, *block[8:15], block[15] ^ 128, *block[16:]])
            else:
                block = bytes(BLOCK)
            os.pwrite(file.fileno(), block, 6 * FRAME - BLOCK)

    with pytest.raises(Conflict, match="changed"):
        await vm.write(engine=vm.engine_over(store.seen_by(AtCall(1, change, "put"))))
    assert vm.keys().manifest not in store.objects
    await vm.write()
    assert await vm.restored() == vm.content()


async def test_a_cancel_at_any_await_of_a_fetch_leaves_nothing(vm: Sleeper, tmp_path: Path) -> None:
    base = Sleeper(DirectoryStore(tmp_path / "objects"), tmp_path, vm.clock)
    stored = await base.write()
    for at in range(1, 1000):
        into = tmp_path / f"into{at}"
        attempt = CancelledAt(base.engine.fetch(stored, into), at)

        async def run(attempt: CancelledAt = attempt) -> None:
            await attempt

        task = spawn(run(), name="fetch")
        await asyncio.wait([task])
        assert open_files(into) == []
        if not task.cancelled():
            assert attempt.suspensions < at
            assert len(list(into.iterdir())) == 3
            break
        assert list(into.iterdir()) == []
    assert at > 3


async def test_a_store_that_fails_at_any_call_of_a_fetch_leaves_nothing(vm: Sleeper, store: MemoryStore) -> None:
    stored = await vm.write()
    for at in range(1, PACKS + 1):
        engine = vm.engine_over(store.seen_by(AtCall(at, raise_unavailable, "get")))
        with pytest.raises(HatchError):
            await engine.fetch(stored, vm.root / "into")
        assert list((vm.root / "into").iterdir()) == []


async def test_a_delete_that_fails_at_any_call_can_be_repeated(vm: Sleeper) -> None:
    for at in range(1, 4):
        store, engine = fresh(vm, AtCall(at, raise_unavailable, "get,put done,delete"))
        await vm.write(engine=vm.engine_over(store))
        with pytest.raises(Unavailable):
            await engine.delete(vm.keys())
        assert vm.keys().manifest in store.objects  # or its packs would be without protection
        await engine.delete(vm.keys())
        assert vm.keys().manifest not in store.objects
        assert vm.keys().trash in store.objects


async def test_many_snapshots_at_once_share_the_threads(vm: Sleeper) -> None:
    numbers = range(1, 7)
    manifests = await asyncio.gather(*(vm.write(number) for number in numbers))
    await asyncio.gather(*(vm.engine.fetch(one, vm.root / one.snapshot_id) for one in manifests))
    for one in manifests:
        assert (vm.root / one.snapshot_id / "memory").read_bytes() == vm.content()["memory"]
