"""Reading frames back: every byte is verified before it is used, and whatever is wrong is Corrupt."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Corrupt, NotFound
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.frames import Opener, Placement, Range, frames_of, ranges
from hatchvm.snapshots.layout import pack_key
from hatchvm.snapshots.local import created, local_errors, write_at
from hatchvm.snapshots.manifest import Manifest, Pack, Stream
from hatchvm.snapshots.pack import parse_end, tail_start
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.workers import Stop, Workers, run_all

#: Reads of up to 4 MiB: two being unpacked and the others on their way from the store.
_WIDTH: Final = 6


class _Target:
    """A file being made."""

    def __init__(self, manifest: Manifest, stream: Stream, path: Path, fd: int) -> None:
        self._block_bytes = manifest.block_bytes
        self._stream = stream
        self._placement = Placement(manifest, stream)
        self._path = path
        self._fd = fd

    def place(self, frame: int, plain: memoryview) -> None:
        size = self._block_bytes
        with local_errors(self._path):
            for block, place, count in self._placement.runs(frame):
                room = min(count * size, self._stream.size - block * size)
                write_at(self._fd, plain[place * size : place * size + room], block * size)


class Reader:
    """Reads one snapshot from the store."""

    def __init__(self, store: ObjectStore, workers: Workers, manifest: Manifest, ring: Ring) -> None:
        self._store = store
        self._workers = workers
        self._manifest = manifest
        self._ring = ring
        self._opener = Opener(manifest, ring)

    async def fetch(self, paths: dict[str, Path]) -> None:
        """Write streams (name -> path), sparse; not yet synced."""
        streams = [stream for stream in self._manifest.streams if stream.name in paths]
        with ExitStack() as stack:
            targets = [
                _Target(self._manifest, one, paths[one.name], stack.enter_context(created(paths[one.name], one.size)))
                for one in streams
            ]
            await self._read(streams, targets)

    async def verify(self) -> None:
        """Read all of it and keep nothing, and the tails of its packs, which a fetch does without."""
        await self._read(self._manifest.streams, [])
        await run_all((self._check_tail(pack) for pack in self._manifest.packs), width=_WIDTH, name="check packs")

    async def _read(self, streams: Collection[Stream], targets: Collection[_Target]) -> None:
        wanted = ranges(self._manifest, frames_of(self._manifest, streams))
        await run_all((self._read_range(one, targets) for one in wanted), width=_WIDTH, name="read packs")

    async def _check_tail(self, pack: Pack) -> None:
        try:
            await self._use(pack, tail_start(pack), None, lambda data, _: parse_end(data, pack, self._ring))
        except Corrupt as error:
            key = pack_key(self._manifest.domain, pack.id)
            raise Corrupt(f"the snapshot is damaged: the tail of {key}", detail=error.detail) from error

    async def _use(self, pack: Pack, start: int, length: int | None, use: Callable[[bytes, Stop], object]) -> None:
        """Read a part of a pack for `use`. A damaged one is read once more: it may have been damaged on its way."""
        try:
            await self._use_once(pack, start, length, use)
        except Corrupt:
            await self._use_once(pack, start, length, use)

    async def _use_once(self, pack: Pack, start: int, length: int | None, use: Callable[[bytes, Stop], object]) -> None:
        data = await self._get(pack, start, length)
        await self._workers.run(lambda stop: use(data, stop))

    async def _get(self, pack: Pack, start: int, length: int | None) -> bytes:
        key = pack_key(self._manifest.domain, pack.id)
        try:
            return await self._store.get(key, start=start, length=length)
        except NotFound as error:
            raise Corrupt(f"the snapshot is damaged: {key} is missing") from error

    async def _read_range(self, one: Range, targets: Collection[_Target]) -> None:
        def unpack(data: bytes, stop: Stop) -> None:
            self._unpack(one, data, targets, stop)

        await self._use(self._manifest.packs[one.pack], one.start, one.length, unpack)

    def _unpack(self, one: Range, data: bytes, targets: Collection[_Target], stop: Stop) -> None:
        view = memoryview(data)
        for frame in one.frames:
            if stop.is_set():
                return
            row = self._manifest.frames[frame]
            at = int(row["offset"]) - one.start
            plain = memoryview(self._opener.open(frame, view[at : at + int(row["length"])]))
            for target in targets:
                target.place(frame, plain)
