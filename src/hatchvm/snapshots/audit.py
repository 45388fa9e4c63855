"""A look at everything that is stored, from the lists and the manifests alone: no block is read, nothing is changed.

What is stored or deleted while it looks may show as what it no longer is; look again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from hatchvm.base.errors import Unsupported
from hatchvm.domain.stored import Amount, Audit, Kind, Problem, Sealed
from hatchvm.ports.objects import ObjectInfo
from hatchvm.snapshots.collect import amount
from hatchvm.snapshots.layout import PACKS, SNAPSHOTS, TRASH, keys_of
from hatchvm.snapshots.seal import OPEN, Ring
from hatchvm.snapshots.shelf import Entry, Shelf, is_pack, manifests, pack_keys

#: So many objects that are none of ours are named, the others counted.
_NAMED: Final = 100


async def audit(shelf: Shelf, rows: Collection[str], before: datetime) -> Audit:
    """What is stored, and what is wrong with it.

    `rows`: ids of the snapshots that are said to be stored. `before`: orphaned packs from before are due. Manifests are
    looked at first: the packs of each were stored before it was.
    """
    snapshots = await shelf.under(SNAPSHOTS)
    live = await shelf.read(manifests(snapshots))
    thrown = await shelf.under(TRASH)
    trash = await shelf.read(manifests(thrown))
    stored = await shelf.under(PACKS)
    packs = {info.key: info for info in stored if is_pack(info.key)}
    unknown = [info for info in [*snapshots, *thrown, *stored] if keys_of(info.key) is None and info.key not in packs]
    needed = pack_keys(live)
    dropped = pack_keys(trash) - needed
    orphaned = [info for key, info in packs.items() if key not in needed and key not in dropped]
    return Audit(
        manifests=amount(entry.info for entry in live),
        packs=amount(packs.values()),
        shared=_shared(live, packs),
        trash=amount([*(entry.info for entry in trash), *(packs[key] for key in dropped if key in packs)]),
        orphaned=amount(orphaned),
        due=amount(info for info in orphaned if info.modified_at < before),
        unknown=amount(unknown),
        stored_bytes=sum(info.size for info in [*snapshots, *thrown, *stored]),
        keys=_sealed([*live, *trash], packs, shelf.ring),
        problems=[*_damaged(live), *_missing(live, packs), *_rows(live, rows), *_unknown(unknown)],
    )


def _shared(live: Iterable[Entry], packs: Mapping[str, ObjectInfo]) -> Amount:
    uses = Counter(key for entry in live for key in entry.packs)
    return amount(packs[key] for key, count in uses.items() if count > 1 and key in packs)


def _sealed(entries: Iterable[Entry], packs: Mapping[str, ObjectInfo], ring: Ring) -> list[Sealed]:
    """Of orphaned packs it is not known, and not of interest: nobody will read them."""
    sizes = {ring.current: 0}
    sealed = {key: pack.key_id for entry in entries for key, pack in entry.packs.items() if key in packs}
    objects = [(entry.key_id, entry.info.size) for entry in entries if entry.key_id is not None]
    for key_id, size in [*objects, *((key_id, packs[key].size) for key, key_id in sealed.items())]:
        sizes[key_id] = sizes.get(key_id, 0) + size
    return [
        Sealed(
            key_id=None if key_id == OPEN else key_id.hex(),
            bytes=size,
            current=key_id == ring.current,
            held=_holds(ring, key_id),
        )
        for key_id, size in sizes.items()
    ]


def _holds(ring: Ring, key_id: bytes) -> bool:
    try:
        ring.sealer(key_id, b"")
    except Unsupported:
        return False
    return True


def _damaged(live: Iterable[Entry]) -> Iterator[Problem]:
    for entry in live:
        if entry.error is not None:
            yield _problem(Kind.DAMAGED, entry, f"{entry.error}; nothing is collected until that is put right")


def _missing(live: Iterable[Entry], packs: Mapping[str, ObjectInfo]) -> Iterator[Problem]:
    for entry in live:
        wrong = [key for key, pack in entry.packs.items() if key not in packs or packs[key].size != pack.size]
        if wrong:
            count = f"{len(wrong)} of its {len(entry.packs)} packs"
            message = f"{count} are missing or have another size, first {wrong[0]}: it cannot be restored whole"
            yield _problem(Kind.MISSING, entry, message)


def _rows(live: Iterable[Entry], rows: Collection[str]) -> Iterator[Problem]:
    here = {entry.keys.snapshot_id for entry in live}
    for entry in live:
        if entry.keys.snapshot_id not in rows:
            message = "no VM of this Hatch has it; if none of another has either, remove this object"
            yield _problem(Kind.NO_ROW, entry, message)
    for snapshot_id in sorted(set(rows) - here):
        message = "it is said to be stored, and is not: delete it"
        yield Problem(kind=Kind.NO_MANIFEST, key="", message=message, snapshot_id=snapshot_id)


def _unknown(unknown: Sequence[ObjectInfo]) -> Iterator[Problem]:
    for info in unknown[:_NAMED]:
        yield Problem(kind=Kind.UNKNOWN, key=info.key, message="this is no object of Hatch's; it is left alone")


def _problem(kind: Kind, entry: Entry, message: str) -> Problem:
    return Problem(kind=kind, key=entry.info.key, message=message, snapshot_id=entry.keys.snapshot_id)
