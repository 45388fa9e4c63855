"""Whenever the store fails, the daemon dies or somebody cancels: a snapshot is there whole, or is not there."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.errors import HatchError, NotFound, Unavailable
from hatchvm.base.tasks import spawn
from hatchvm.objects.directory import DirectoryStore
from hatchvm.ports.objects import ObjectInfo
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import BLOCK_BYTES
from hatchvm.snapshots.local import Source
from hatchvm.snapshots.manifest import Manifest
from hatchvm.testing.vmm import STAMP

VM: Final = "vm-0123456789ab"
SNAP: Final = "snap-0123456789ab"

Hook = Callable[[], Awaitable[None]]


async def nothing() -> None:
    pass


class Watched:
    """A directory store that runs `before` and `after` its n-th call (from 1) or its calls for one key."""

    def __init__(self, root: Path, at: int | str, *, before: Hook = nothing, after: Hook = nothing) -> None:
        self._inner = DirectoryStore(root)
        self._at = at
        self._before = before
        self._after = after
        self.calls = 0

    async def _around(self, key: str, call: Callable[[], Awaitable[Any]]) -> Any:
        self.calls += 1
        hit = key.endswith(self._at) if isinstance(self._at, str) else self.calls == self._at
        if hit:
            await self._before()
        result = await call()
        if hit:
            await self._after()
        return result

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._around(key, lambda: self._inner.put(key, data, if_absent=if_absent))

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        got: bytes = await self._around(key, lambda: self._inner.get(key, start=start, length=length))
        return got

    async def info(self, key: str) -> ObjectInfo:
        return await self._inner.info(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._around(prefix, nothing)
        async for info in self._inner.list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        await self._around(key, lambda: self._inner.delete(key))

    async def locate(self, key: str) -> str:
        return await self._inner.locate(key)

    async def check(self) -> None:
        await self._inner.check()


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


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two blocks of memory a pack, so that little data makes many packs."""
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_BYTES", 2 * BLOCK_BYTES)
    folder = tmp_path / "vm"
    folder.mkdir()
    noise = random.Random(1)
    (folder / "memory").write_bytes(noise.randbytes(7 * BLOCK_BYTES))
    (folder / "state").write_bytes(noise.randbytes(60_000))
    (folder / "disk").write_bytes(b"disk" * 1000)
    return folder


def write(engine: SnapshotEngine, files: Path) -> Coroutine[Any, Any, Manifest]:
    return engine.write(
        SNAP,
        VM,
        memory=files / "memory",
        state=files / "state",
        disk=files / "disk",
        stamp=STAMP,
        vm_config="{}",
        created_at=datetime(2026, 3, 6, tzinfo=UTC),
    )


def committed(root: Path) -> bool:
    return (root / "snapshots" / VM / SNAP / "manifest.json").exists()


def open_files(folder: Path) -> list[Path]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since: a thread of an abandoned put
            links.append(fd.readlink())
    return [link for link in links if link.is_relative_to(folder)]


async def assert_absent(root: Path) -> None:
    """Not there even when every thread that still worked has ended."""
    await asyncio.get_running_loop().shutdown_default_executor()
    assert not committed(root)


async def assert_second_attempt_is_whole(root: Path, files: Path) -> None:
    store = DirectoryStore(root)
    engine = SnapshotEngine(store)
    manifest = await write(engine, files)
    assert manifest.stored_bytes == sum([info.size async for info in store.list("")])
    await engine.verify(manifest)


async def raise_unavailable() -> None:
    raise Unavailable("the store went away")


async def calls_of_a_write(tmp_path: Path, files: Path) -> int:
    store = Watched(tmp_path / "count", 0)
    await write(SnapshotEngine(store), files)
    return store.calls


async def test_a_store_that_fails_at_any_call_leaves_no_snapshot(tmp_path: Path, files: Path) -> None:
    calls = await calls_of_a_write(tmp_path, files)
    assert calls == 1 + 6 + 1  # list; memory 4, state, disk; manifest
    for at in range(1, calls + 1):
        root = tmp_path / f"before{at}"
        with pytest.raises(Unavailable):
            await write(SnapshotEngine(Watched(root, at, before=raise_unavailable)), files)
        assert not committed(root)
        with pytest.raises(NotFound):
            await SnapshotEngine(DirectoryStore(root)).manifest(VM, SNAP)
        assert open_files(files) == []
        await assert_second_attempt_is_whole(root, files)


async def test_what_a_longer_attempt_left_is_removed(tmp_path: Path, files: Path) -> None:
    root = tmp_path / "objects"
    await DirectoryStore(root).put(f"snapshots/{VM}/{SNAP}/memory.0099.pack", b"left over")
    await assert_second_attempt_is_whole(root, files)


async def test_a_lost_answer_about_a_pack_leaves_no_snapshot(tmp_path: Path, files: Path) -> None:
    for at in range(1, await calls_of_a_write(tmp_path, files)):
        root = tmp_path / f"after{at}"
        with pytest.raises(Unavailable):
            await write(SnapshotEngine(Watched(root, at, after=raise_unavailable)), files)
        assert not committed(root)


async def test_a_store_that_repeats_the_commit_by_itself_is_no_conflict(tmp_path: Path, files: Path) -> None:
    root = tmp_path / "objects"
    store: Watched

    async def put_it_first() -> None:
        again, inner = SnapshotEngine(DirectoryStore(tmp_path / "again")), DirectoryStore(root)
        await write(again, files)
        key = f"snapshots/{VM}/{SNAP}/manifest.json"
        await inner.put(key, await DirectoryStore(tmp_path / "again").get(key))

    store = Watched(root, 8, before=put_it_first)
    manifest = await write(SnapshotEngine(store), files)
    await SnapshotEngine(DirectoryStore(root)).verify(manifest)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_cancel_at_any_call_of_the_store(tmp_path: Path, files: Path, when: str) -> None:
    calls = await calls_of_a_write(tmp_path, files)
    for at in range(1, calls + 1):
        root = tmp_path / f"{when}{at}"
        running: list[asyncio.Task[Manifest]] = []

        async def cancel(running: list[asyncio.Task[Manifest]] = running) -> None:
            running[0].cancel()
            await asyncio.sleep(0)

        store = Watched(root, at, before=cancel) if when == "before" else Watched(root, at, after=cancel)
        running.append(spawn(write(SnapshotEngine(store), files), name="write"))
        await asyncio.wait(running)
        assert open_files(files) == []
        if at == calls:  # the commit was under way: it decides
            assert committed(root)
            assert (await SnapshotEngine(DirectoryStore(root)).manifest(VM, SNAP)) == running[0].result()
            assert running[0].cancelling() == 0
        else:
            assert running[0].cancelled()
            assert not committed(root)
            await assert_second_attempt_is_whole(root, files)


async def test_a_commit_that_fails_while_cancelled_is_a_cancel(tmp_path: Path, files: Path) -> None:
    root = tmp_path / "objects"
    running: list[asyncio.Task[Manifest]] = []

    async def cancel_and_fail() -> None:
        running[0].cancel()
        await asyncio.sleep(0)
        raise Unavailable("the store went away")

    store = Watched(root, "manifest.json", before=cancel_and_fail)
    running.append(spawn(write(SnapshotEngine(store), files), name="write"))
    await asyncio.wait(running)
    assert running[0].cancelled()
    assert not committed(root)


@pytest.mark.parametrize("on", [False, True], ids=["once", "again and again"])
async def test_a_cancel_at_any_await_of_a_write(tmp_path: Path, files: Path, on: bool) -> None:
    cancelled = untouched = 0
    for at in itertools.count(1):
        root = tmp_path / f"objects{at}"
        attempt = CancelledAt(write(SnapshotEngine(DirectoryStore(root)), files), at, on=on)

        async def run(attempt: CancelledAt = attempt) -> Manifest:
            manifest: Manifest = await attempt
            return manifest

        task = spawn(run(), name="write")
        await asyncio.wait([task])
        assert open_files(files) == []
        if task.cancelled():
            cancelled += 1
            assert not committed(root)
        else:
            assert committed(root)
            await SnapshotEngine(DirectoryStore(root)).verify(task.result())
            untouched += attempt.suspensions < at
            if untouched == 3:  # timing moves the number of awaits by one or two
                break
    assert cancelled > 3


async def test_nothing_is_committed_after_a_cancel(tmp_path: Path, files: Path) -> None:
    root = tmp_path / "objects"
    held = asyncio.Event()

    async def hold() -> None:
        held.set()
        await asyncio.Event().wait()

    task = spawn(write(SnapshotEngine(Watched(root, 4, before=hold)), files), name="write")
    await held.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await assert_absent(root)


async def test_a_cancelled_write_ends_within_a_block_and_not_before_its_threads(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on, reads = threading.Event(), threading.Event(), []
    real_read = Source.read

    def slow_read(source: Source, index: int) -> bytes:
        reads.append(index)
        reading.set()
        go_on.wait()
        return real_read(source, index)

    monkeypatch.setattr(Source, "read", slow_read)
    task = spawn(write(SnapshotEngine(DirectoryStore(tmp_path / "objects")), files), name="write")
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
    assert len(reads) <= 2  # one block a thread


@pytest.fixture
async def stored(tmp_path: Path, files: Path) -> Manifest:
    return await write(SnapshotEngine(DirectoryStore(tmp_path / "objects")), files)


async def test_a_cancel_at_any_await_of_a_fetch_leaves_nothing(tmp_path: Path, stored: Manifest) -> None:
    for at in range(1, 1000):
        into = tmp_path / f"into{at}"
        attempt = CancelledAt(SnapshotEngine(DirectoryStore(tmp_path / "objects")).fetch(stored, into), at)

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


async def test_a_store_that_fails_at_any_call_of_a_fetch_leaves_nothing(tmp_path: Path, stored: Manifest) -> None:
    into = tmp_path / "into"
    for at in range(1, 7):
        engine = SnapshotEngine(Watched(tmp_path / "objects", at, before=raise_unavailable))
        with pytest.raises(HatchError):
            await engine.fetch(stored, into)
        assert list(into.iterdir()) == []


async def test_many_snapshots_at_once_share_the_threads(tmp_path: Path, files: Path) -> None:
    engine = SnapshotEngine(DirectoryStore(tmp_path / "objects"))
    arguments = {"state": files / "state", "memory": files / "memory", "disk": None, "stamp": STAMP, "vm_config": "{}"}
    ids = [f"snap-{number:012x}" for number in range(6)]
    manifests = await asyncio.gather(
        *(engine.write(i, VM, created_at=datetime(2026, 3, 6, tzinfo=UTC), **arguments) for i in ids)  # type: ignore[arg-type]
    )
    await asyncio.gather(*(engine.fetch(manifest, tmp_path / manifest.snapshot_id) for manifest in manifests))
    for snapshot_id in ids:
        assert (tmp_path / snapshot_id / "memory").read_bytes() == (files / "memory").read_bytes()
