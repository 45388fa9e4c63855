"""What lies in the object store: how much, what of it is needed, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


@dataclass(frozen=True, slots=True)
class Amount:
    """So many objects, so many bytes."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection did. `waiting`: those of the packs it kept that no snapshot needs any more."""

    deleted: Amount
    kept: Amount
    waiting: Amount


class Kind(StrEnum):
    """What can be wrong with stored snapshots."""

    DAMAGED = "damaged_manifest"  # it cannot be read: what it refers to is unknown
    MISSING = "missing_data"  # a manifest refers to packs that are not there, or have another size
    NO_MANIFEST = "no_manifest"  # a row says that the snapshot is stored, and it is not
    NO_ROW = "no_row"  # the snapshot is stored, and this Hatch does not know it
    UNKNOWN = "unknown_object"  # lies among ours and is none of ours


#: The kinds that mean that a snapshot cannot be restored.
FATAL: Final = frozenset({Kind.DAMAGED, Kind.MISSING, Kind.NO_MANIFEST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong. `key`: of the object concerned. `message`: a sentence, with what to do about it."""

    kind: Kind
    key: str
    message: str
    snapshot_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """What is stored under one encryption key; None: not encrypted.

    `current`: what is stored from now on is. `held`: this Hatch has the key.
    """

    key_id: str | None
    bytes: int
    current: bool
    held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """What an audit found.

    `manifests`, `packs`: all there are. `shared`: packs that more than one snapshot needs. `trash`: deleted manifests,
    and the packs that only they refer to. `orphaned`: packs that nothing refers to; `due`: those of them that are older
    than the grace period, so the next collection removes them. `unknown`: objects of which `problems` names the first.
    """

    manifests: Amount
    packs: Amount
    shared: Amount
    trash: Amount
    orphaned: Amount
    due: Amount
    unknown: Amount
    stored_bytes: int
    keys: Sequence[Sealed]
    problems: Sequence[Problem]
