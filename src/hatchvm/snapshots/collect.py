"""Mark and sweep: removes packs that no snapshot needs, and the manifests of snapshots that were deleted long ago.

What is removed, with every age told by the store's own clock, and N a moment before anything else is looked at:

    a pack            older at N than the grace period, and neither a manifest nor a young trashed one refers to it
    a trashed one     older at N than the grace period, unless its manifest is still there (it will be trashed again)

Why no pack is removed that a snapshot needs, however many writers, deleters and collectors run meanwhile:

- A manifest that is there throughout is listed, by a list that is not believed at its word: see `Shelf.under`. One that
  is deleted while we look is trashed before it goes, and the trash is listed after the manifests were read: one of the
  two is seen. If a snapshot that is said to be stored is not listed all the same, nothing is removed.
- A writer refers to a pack of three kinds: of a manifest that it read after it began, stored by an earlier attempt less
  than half the grace period before it began, or stored by itself. It commits within a quarter of the grace period, or
  never. So when a pack of the second or third kind is older than the grace period at N, the writer has committed before
  N, and its manifest was listed. The same for the first kind: whoever deleted the manifest that it read did so after
  the writer began, and the trash protects the pack for a whole grace period from then on.
- Once nothing refers to an old pack, nothing ever will. So it does not matter how long a sweep takes, nor that two do
  the same one. The look before it must be quick, because another collector may remove trash that has become old
  meanwhile: one that took a quarter of the grace period is given up.

A shorter grace period than the writers count on is safe only if none of them had begun at N, and none uses packs of
earlier attempts later: `allow` and `Tails.forget_uploads` see to that, for one Hatch per store.

Killed anywhere, it can be repeated: each removal is one object, and of the trash only what has no duty any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from hatchvm.base.clock import Clock
from hatchvm.base.errors import Corrupt, HatchError, Unavailable, Unsupported
from hatchvm.base.units import format_duration
from hatchvm.domain.stored import Amount, Collected
from hatchvm.ports.objects import ObjectInfo, ObjectStore
from hatchvm.snapshots.layout import PACKS, SNAPSHOTS, TRASH, SnapshotKeys
from hatchvm.snapshots.shelf import CLOCK, Entry, Shelf, is_pack, manifests, pack_keys
from hatchvm.snapshots.workers import run_all

#: Removals at the same time.
_WIDTH: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How old is old enough. `grace`: for this collection. `usual`: what writers count on.

    `rows` tells the ids of the snapshots that are said to be stored; each has a manifest for as long as it is told.

    `allow` is called if `grace` is shorter than that, once N is known: it raises if a writer or a reader is under way,
    and makes sure that none uses packs of an earlier attempt.
    """

    grace: timedelta
    usual: timedelta
    rows: Callable[[], Awaitable[Collection[str]]]
    allow: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Marks:
    """Keys of packs, and trash that may go."""

    needed: set[str]
    trashed: set[str]
    expired: list[ObjectInfo]


async def collect(shelf: Shelf, clock: Clock, rule: Rule) -> tuple[Collected, set[str]]:
    """Remove what nobody needs; what was done, and the keys of the packs that are left.

    Raises Corrupt or Unsupported if a manifest is missing or cannot be read, so that nobody knows what it refers to:
    then nothing is removed at all. Raises Unavailable if the store cannot be used; what is not removed then goes the
    next time.
    """
    began_s = clock.monotonic()
    now = await store_now(shelf.store)
    if rule.grace < rule.usual:
        rule.allow()
    marks = await _mark(shelf, now - rule.grace, rule)
    if clock.monotonic() - began_s > rule.usual.total_seconds() / 4:
        raise Unavailable("looking through the object store took too long, nothing was removed; it is tried again")
    packs = [info for info in await shelf.under(PACKS) if is_pack(info.key)]
    doomed = [info for info in packs if _is_doomed(info, marks, now - rule.grace)]
    # The packs first: as long as one is left, what is left of the trash tells whose it was.
    await _remove(shelf.store, doomed)
    await _remove(shelf.store, marks.expired)
    gone = {info.key for info in doomed}
    kept = [info for info in packs if info.key not in gone]
    done = Collected(
        deleted=amount([*doomed, *marks.expired]),
        kept=amount(kept),
        waiting=amount(info for info in kept if info.key not in marks.needed),
    )
    return done, {info.key for info in kept}


async def store_now(store: ObjectStore) -> datetime:
    """The store's time, by which the ages of its objects are told; never later than this moment."""
    await store.put(CLOCK, b"")
    return (await store.info(CLOCK)).modified_at


def amount(infos: Iterable[ObjectInfo]) -> Amount:
    sizes = [info.size for info in infos]
    return Amount(len(sizes), sum(sizes))


async def _mark(shelf: Shelf, before: datetime, rule: Rule) -> _Marks:
    """In this order: see above. `before`: what is from before is old."""
    live = await _live(shelf, rule)
    needed = await shelf.read(live)
    for entry in needed:
        if entry.error is not None:
            raise _blocked(entry, entry.error, f"delete that snapshot (or {entry.info.key}, if no VM has it)")
    trash = manifests(await shelf.under(TRASH))
    young = {keys: info for keys, info in trash.items() if info.modified_at >= before}
    trashed = await shelf.read(young)
    copied = {entry.keys for entry in needed}
    for entry in trashed:
        # With its manifest still there it is only a copy: a delete was cut off.
        if entry.error is not None and entry.keys not in copied:
            left_s = (entry.info.modified_at - before).total_seconds()
            raise _blocked(entry, entry.error, f"it was deleted and is forgotten in {format_duration(round(left_s))}")
    expired = [info for keys, info in trash.items() if keys not in young and keys not in live]
    return _Marks(pack_keys(needed), pack_keys(trashed), expired)


async def _live(shelf: Shelf, rule: Rule) -> dict[SnapshotKeys, ObjectInfo]:
    rows = set(await rule.rows())
    live = manifests(await shelf.under(SNAPSHOTS))
    lost = rows - {keys.snapshot_id for keys in live}
    if lost:
        lost &= set(await rule.rows())  # some may have been deleted meanwhile
    if lost:
        sentence = f"nothing was removed, because the manifest of snapshot {min(lost)} is missing"
        raise Corrupt(f"{sentence}: put it back, or delete that snapshot")
    return live


def _is_doomed(pack: ObjectInfo, marks: _Marks, before: datetime) -> bool:
    # Not "at or before": clocks of stores stand still for up to a second.
    return pack.modified_at < before and pack.key not in marks.needed and pack.key not in marks.trashed


def _blocked(entry: Entry, error: HatchError, way_out: str) -> HatchError:
    snapshot_id = entry.keys.snapshot_id
    if isinstance(error, Unsupported):
        sentence = f"nothing was removed, because what snapshot {snapshot_id} refers to cannot be read: {error}"
        return Unsupported(f"{sentence}; put that right, or {way_out}", detail=entry.info.key)
    sentence = f"nothing was removed, because the manifest of snapshot {snapshot_id} is damaged"
    return Corrupt(f"{sentence}: {way_out}", detail=f"{entry.info.key}: {error.detail}")


async def _remove(store: ObjectStore, infos: Iterable[ObjectInfo]) -> None:
    await run_all((store.delete(info.key) for info in infos), width=_WIDTH, name="remove objects")
