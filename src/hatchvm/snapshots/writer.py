"""Storing files: cut into blocks, leave out zeros, hash, compress, put packs.

A pack is one job: it covers a fixed number of candidate blocks, so which bytes land in which object does not depend on
timing, and repeating an upload that was cut off writes the same objects again.
"""

from __future__ import annotations

import itertools
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.codec import Encoder, digest
from hatchvm.snapshots.layout import PACK_BYTES, SnapshotKeys
from hatchvm.snapshots.local import Source, opened
from hatchvm.snapshots.manifest import Block, Pack, Stream
from hatchvm.snapshots.workers import Stop, Workers, run_all

#: Two packs being filled and one on its way to the store.
_WIDTH: Final = 3


class Writer:
    """Stores the streams of one snapshot."""

    def __init__(self, store: ObjectStore, workers: Workers, keys: SnapshotKeys) -> None:
        self._store = store
        self._workers = workers
        self._keys = keys

    async def write(self, files: dict[str, Path]) -> tuple[Stream, ...]:
        """Store every file (stream name -> path). When it raises or is cancelled, packs may be left in the store."""
        packs: dict[str, list[Pack]] = {name: [] for name in files}
        with ExitStack() as stack:
            sources = [stack.enter_context(opened(name, path)) for name, path in files.items()]
            await run_all(self._jobs(sources, packs), width=_WIDTH, name=f"store {self._keys.snapshot_id}")
        return tuple(_stream(source, packs[source.name]) for source in sources)

    def _jobs(self, sources: Sequence[Source], packs: dict[str, list[Pack]]) -> Iterator[Coroutine[Any, Any, None]]:
        for source in sources:
            for number, indexes in enumerate(_batches(source)):
                yield self._store_pack(source, self._keys.pack(source.name, number), indexes, packs[source.name])

    async def _store_pack(self, source: Source, key: str, indexes: Sequence[int], packs: list[Pack]) -> None:
        pack, data = await self._workers.run(lambda stop: _fill(source, key, indexes, stop))
        if data:
            await self._store.put(key, data)
            packs.append(pack)


def _batches(source: Source) -> Iterator[tuple[int, ...]]:
    """Candidate blocks, a pack's worth at a time."""
    candidates = itertools.chain.from_iterable(source.data_blocks())
    while batch := tuple(itertools.islice(candidates, PACK_BYTES // source.block_size)):
        yield batch


def _fill(source: Source, key: str, indexes: Sequence[int], stop: Stop) -> tuple[Pack, bytes]:
    encoder, blocks, packed = Encoder(), [], BytesIO()
    for index in indexes:
        if stop.is_set():
            break
        plain = source.read(index)
        if not source.is_zero(plain):
            codec, stored = encoder.encode(plain)
            blocks.append(Block(index, packed.tell(), len(stored), codec, digest(plain)))
            packed.write(stored)
    data = packed.getvalue()
    return Pack(key=key, size=len(data), digest=digest(data), blocks=tuple(blocks)), data


def _stream(source: Source, packs: list[Pack]) -> Stream:
    in_order = sorted(packs, key=lambda pack: pack.blocks[0].index)
    return Stream(name=source.name, size=source.size, block_size=source.block_size, packs=tuple(in_order))
