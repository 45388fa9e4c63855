"""What the store has already: the packs of earlier snapshots, and of uploads that were cut off."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.snapshots.layout import SnapshotKeys, pack_key
from hatchvm.snapshots.manifest import Manifest, Pack
from hatchvm.snapshots.pack import Tail, parse_end, tail_start
from hatchvm.snapshots.shelf import Shelf
from hatchvm.snapshots.since import Base, Since
from hatchvm.snapshots.tails import Tails
from hatchvm.snapshots.workers import run_all

#: Blocks beyond this many are not looked for: 40 MiB of index. The VM's own come first.
_MAX_BLOCKS: Final = 1024 * 1024
_WIDTH: Final = 16


class Known:
    """Looks up packs of one domain, sealed as this writer seals: a key that is being retired falls out of use."""

    def __init__(self, shelf: Shelf, tails: Tails, domain: str) -> None:
        self._shelf = shelf
        self._store = shelf.store
        self._ring = shelf.ring
        self._tails = tails
        self._domain = domain

    async def of(
        self, bases: Iterable[SnapshotKeys], recent: Sequence[Pack], since: Since | None = None
    ) -> tuple[list[tuple[Pack, Tail]], Base | None]:
        """The packs that these snapshots refer to, and `recent` ones, with their tails; each is in the store now.

        And the snapshot of `since`, which is one of the bases, the first. What cannot be read (deleted meanwhile,
        damaged) is left out: its blocks are then stored once more.
        """
        found: dict[str, tuple[Pack, Tail]] = {}
        base = None
        blocks = await self._add(recent, found)
        for keys in dict.fromkeys([*([since.keys] if since else []), *bases]):
            if blocks >= _MAX_BLOCKS:
                break
            manifest = await self._manifest(keys)
            if manifest is not None and manifest.domain == self._domain:
                blocks += await self._add(manifest.packs, found)
                if since is not None and keys == since.keys:
                    base = Base(manifest, since.pages)
        return list(found.values()), base

    async def _add(self, packs: Sequence[Pack], found: dict[str, tuple[Pack, Tail]]) -> int:
        wanted = [pack for pack in packs if pack.id not in found and pack.key_id == self._ring.current]
        tails: dict[str, Tail | None] = {}

        async def look(pack: Pack) -> None:
            tails[pack.id] = await self._tail(pack)

        await run_all((look(pack) for pack in wanted), width=_WIDTH, name="look for packs")
        here = {pack.id: (pack, tail) for pack in wanted if (tail := tails[pack.id]) is not None}
        found.update(here)
        return sum(len(tail.digests) for _, tail in here.values())

    async def _manifest(self, keys: SnapshotKeys) -> Manifest | None:
        try:
            _, said = await self._shelf.look(keys, keys.manifest)
        except NotFound:
            return None
        return said if isinstance(said, Manifest) else None

    async def _tail(self, pack: Pack) -> Tail | None:
        key = pack_key(self._domain, pack.id)
        try:
            kept = self._tails.get(pack, self._ring)
            if kept is not None:
                return kept if (await self._store.info(key)).size == pack.size else None
            tail, stored = parse_end(await self._store.get(key, start=tail_start(pack)), pack, self._ring)
        except (NotFound, Corrupt, Unsupported):
            return None
        self._tails.put(pack, stored)
        return tail
