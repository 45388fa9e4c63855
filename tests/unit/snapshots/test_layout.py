"""Keys are made of ids only, and lead back to them."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid, Unsupported
from hatchvm.snapshots.layout import (
    MAX_BLOCK_BYTES,
    MAX_BLOCKS,
    MIN_BLOCK_BYTES,
    SnapshotKeys,
    block_bytes_for,
    domain_of,
    keys_of,
    vm_prefix,
)

KEYS: Final = SnapshotKeys("vm-0123456789ab", "snap-0123456789ab")


@pytest.mark.parametrize(
    "bad", ["", "..", "vm-0123456789AB", "snap-0123456789ab", "vm-0123456789ab/", "vm-0123456789ab\n"]
)
def test_ids_become_keys_only_if_they_are_ids(bad: str) -> None:
    with pytest.raises(Invalid):
        SnapshotKeys(bad, KEYS.snapshot_id)
    with pytest.raises(Invalid):
        SnapshotKeys(KEYS.vm_id, bad.replace("snap", "vm"))
    with pytest.raises(Invalid):
        vm_prefix(bad)


def test_keys_know_their_snapshot() -> None:
    assert keys_of(KEYS.manifest) == keys_of(KEYS.trash) == KEYS
    assert (KEYS.memory, KEYS.state, KEYS.disk) == tuple(
        f"{KEYS.manifest}#{name}" for name in ("memory", "state", "disk")
    )
    for key in (
        "snapshots/x",
        "trash/clock",
        KEYS.manifest + "/x",
        KEYS.manifest.replace("manifest", "memory"),
        KEYS.manifest.replace("vm-", "mv-"),
        KEYS.manifest.replace("snapshots", "trash"),
        KEYS.trash.replace("trash", "snapshots"),
    ):
        assert keys_of(key) is None


def test_images_share_nothing() -> None:
    assert len({domain_of(image) for image in ("a", "b", "")}) == 3
    assert domain_of("a") == domain_of("a")
    assert len(domain_of("a")) == 32


@settings(deadline=None)
@given(st.lists(st.integers(0, MAX_BLOCKS * MAX_BLOCK_BYTES // 3), min_size=2, max_size=3))
def test_a_snapshot_never_has_too_many_blocks(sizes: list[int]) -> None:
    def blocks(block: int) -> int:
        return sum(-(-size // block) for size in sizes)

    try:
        block = block_bytes_for(sizes)
    except Unsupported:
        assert blocks(MAX_BLOCK_BYTES) > MAX_BLOCKS
    else:
        assert blocks(block) <= MAX_BLOCKS
        assert block == MIN_BLOCK_BYTES or blocks(block // 2) > MAX_BLOCKS
        assert MIN_BLOCK_BYTES <= block <= MAX_BLOCK_BYTES


def test_the_largest_guests() -> None:
    gib = 1024**3
    assert block_bytes_for([32 * gib]) == 4096
    assert block_bytes_for([32 * gib + 1]) == 8192
    assert block_bytes_for([2048 * gib]) == 256 * 1024
    with pytest.raises(Unsupported):
        block_bytes_for([2048 * gib, 1])
