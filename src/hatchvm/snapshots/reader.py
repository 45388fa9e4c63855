"""Reading packs back: every byte is verified before it is used, and whatever is wrong is Corrupt."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hatchvm.base.errors import Corrupt, NotFound
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.codec import decode, digest
from hatchvm.snapshots.local import created, local_errors, write_at
from hatchvm.snapshots.manifest import Pack, Stream
from hatchvm.snapshots.workers import Stop, Workers, run_all

#: Two packs being unpacked and one on its way from the store.
_WIDTH: Final = 3


class Reader:
    """Reads streams from the store."""

    def __init__(self, store: ObjectStore, workers: Workers) -> None:
        self._store = store
        self._workers = workers

    async def fetch(self, stream: Stream, path: Path) -> None:
        """Write the stream to `path`, sparse; not yet synced."""
        with created(path, stream.size) as fd, local_errors(path):
            await self._read(stream, fd)

    async def verify(self, stream: Stream) -> None:
        """Read all of it and keep nothing."""
        await self._read(stream, None)

    async def _read(self, stream: Stream, fd: int | None) -> None:
        jobs = (self._read_pack(stream, pack, fd) for pack in stream.packs)
        await run_all(jobs, width=_WIDTH, name=f"read {stream.name}")

    async def _read_pack(self, stream: Stream, pack: Pack, fd: int | None) -> None:
        try:
            # One byte more than there should be: enough to notice a longer object without loading it.
            data = await self._store.get(pack.key, length=pack.size + 1)
        except NotFound as error:
            raise Corrupt(f"the snapshot is damaged: {pack.key} is missing") from error
        await self._workers.run(lambda stop: _unpack(stream, pack, data, fd, stop))


def _unpack(stream: Stream, pack: Pack, data: bytes, fd: int | None, stop: Stop) -> None:
    if len(data) != pack.size or digest(data) != pack.digest:
        raise Corrupt(f"the snapshot is damaged: {pack.key} is not what was stored")
    view = memoryview(data)
    for block in pack.blocks:
        if stop.is_set():
            return
        try:
            stored = view[block.offset : block.offset + block.length]
            plain = decode(block.codec, stored, stream.plain_bytes(block.index))
        except ValueError as error:
            raise Corrupt(f"the snapshot is damaged: {pack.key} cannot be unpacked", detail=str(error)) from error
        if digest(plain) != block.digest:
            raise Corrupt(f"the snapshot is damaged: {pack.key} holds another block {block.index}")
        if fd is not None:
            write_at(fd, plain, block.index * stream.block_size)
