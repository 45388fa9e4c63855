"""All the manifests of a store, read for what they refer to: what `collect` and `audit` begin with."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from hatchvm.base.errors import Corrupt, HatchError, NotFound, Unsupported
from hatchvm.ports.objects import ObjectInfo, ObjectStore
from hatchvm.snapshots.layout import MAX_MANIFEST_BYTES, PACKS, TRASH, SnapshotKeys, keys_of, pack_key
from hatchvm.snapshots.manifest import HEAD, MAGIC, Manifest, Pack
from hatchvm.snapshots.parse import decode
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.workers import Workers, run_all

#: Written to learn what time the store has. It stays: there is no moment at which a killed process could leave more.
CLOCK: Final = f"{TRASH}clock"

_PACK: Final = re.compile(rf"{PACKS}[0-9a-f]{{32}}/[0-9a-f]{{32}}")
#: Manifests in memory at the same time.
_WIDTH: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A manifest as it lies in the store. `packs`: key -> what the manifest says. `key_id`: which key sealed it.

    `error`: why it cannot be read; `packs` is empty then, and `key_id` is None if not even its head can be read.
    """

    keys: SnapshotKeys
    info: ObjectInfo
    key_id: bytes | None
    packs: Mapping[str, Pack]
    error: HatchError | None = None


class Shelf:
    """Where manifests are read from."""

    def __init__(self, store: ObjectStore, workers: Workers, ring: Ring) -> None:
        self.store = store
        self.ring = ring
        self._workers = workers

    async def under(self, prefix: str) -> list[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order.

        Nothing tells a damaged list from a sound one, and a snapshot it hides is one whose packs go. So it is asked for
        twice, and where the two differ (as they also do while others write) the object itself is.
        """
        first, second = await self._list(prefix), await self._list(prefix)
        found = {info.key: info for info in first & second}

        async def ask(key: str) -> None:
            with contextlib.suppress(NotFound):
                found[key] = await self.store.info(key)

        doubtful = sorted({info.key for info in first ^ second})
        await run_all((ask(key) for key in doubtful), width=_WIDTH, name="look at objects")
        return [found[key] for key in sorted(found) if key != CLOCK]

    async def _list(self, prefix: str) -> set[ObjectInfo]:
        return {info async for info in self.store.list(prefix)}

    async def read(self, wanted: Mapping[SnapshotKeys, ObjectInfo]) -> list[Entry]:
        """Those that are still there, in no order. Raises Unavailable if the store cannot be read."""
        found: list[Entry] = []

        async def one(keys: SnapshotKeys, info: ObjectInfo) -> None:
            with contextlib.suppress(NotFound):
                data, said = await self.look(keys, info.key)
                error = said if isinstance(said, HatchError) else None
                packs = {} if isinstance(said, HatchError) else _packs(said)
                found.append(Entry(keys=keys, info=info, key_id=_key_id(data), packs=packs, error=error))

        await run_all((one(*pair) for pair in wanted.items()), width=_WIDTH, name="read manifests")
        return found

    async def look(self, keys: SnapshotKeys, key: str) -> tuple[bytes, Manifest | Corrupt | Unsupported]:
        """A manifest as stored under `key`, and what it says or why it cannot be read. Raises NotFound.

        A damaged one is asked for once more: it may have been damaged on its way.
        """
        data, said = await self._look(keys, key)
        return await self._look(keys, key) if isinstance(said, Corrupt) else (data, said)

    async def _look(self, keys: SnapshotKeys, key: str) -> tuple[bytes, Manifest | Corrupt | Unsupported]:
        data = await self.store.get(key, length=MAX_MANIFEST_BYTES + 1)
        try:
            return data, await self._workers.run(lambda _: decode(data, keys, self.ring))
        except (Corrupt, Unsupported) as error:
            return data, error


def manifests(infos: Iterable[ObjectInfo]) -> dict[SnapshotKeys, ObjectInfo]:
    """Those that are manifests, trashed or not."""
    return {keys: info for info in infos if (keys := keys_of(info.key)) is not None}


def is_pack(key: str) -> bool:
    """Whether the object is a pack of ours."""
    return _PACK.fullmatch(key) is not None


def pack_keys(entries: Iterable[Entry]) -> set[str]:
    """Every pack that these refer to."""
    return {key for entry in entries for key in entry.packs}


def _packs(manifest: Manifest) -> Mapping[str, Pack]:
    domain = manifest.domain
    return {pack_key(domain, pack.id): pack for pack in manifest.packs}


def _key_id(data: bytes) -> bytes | None:
    if len(data) < HEAD.size or not data.startswith(MAGIC):
        return None
    key_id: bytes = HEAD.unpack_from(data)[2]
    return key_id
