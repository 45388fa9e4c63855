"""Users of VMs: one each, for life."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Exhausted
from hatchvm.base.paths import VMPaths
from hatchvm.vmm.firecracker import uids
from hatchvm.vmm.firecracker.uids import claim


def vm(vms: Path, name: str) -> VMPaths:
    paths = VMPaths(vms / name)
    paths.root.mkdir(exist_ok=True)
    return paths


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_every_vm_has_one_of_its_own_as_long_as_it_exists(turns: list[tuple[int, bool]]) -> None:
    """A turn: a VM claims, or is deleted."""
    uids = range(100, 106)
    held: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, claims in turns:
            paths = vm(Path(folder), f"vm-{number}")
            if claims:
                uid = claim(paths, uids)
                assert uid in uids and held.setdefault(number, uid) == uid
            else:
                paths.uid.unlink(missing_ok=True)
                held.pop(number, None)
            assert len(set(held.values())) == len(held)


def test_two_that_claim_at_once_differ(tmp_path: Path) -> None:
    places = [vm(tmp_path, f"vm-{number}") for number in range(8)] * 3
    with ThreadPoolExecutor(8) as threads:
        claimed = list(threads.map(claim, places))
    assert claimed[:8] == claimed[8:16] == claimed[16:] and len(set(claimed)) == 8


def test_a_record_that_lost_its_content_is_made_anew(tmp_path: Path) -> None:
    claim(vm(tmp_path, "a"))
    lost = vm(tmp_path, "b")
    lost.uid.write_bytes(b"")
    assert claim(lost) == uids.RANGE[1]


def test_a_vm_keeps_its_user_when_the_range_moves(tmp_path: Path) -> None:
    paths = vm(tmp_path, "a")
    assert claim(paths, range(5, 6)) == claim(paths, range(7, 8)) == 5


def test_all_are_taken(tmp_path: Path) -> None:
    claim(vm(tmp_path, "a"), range(5, 6))
    with pytest.raises(Exhausted, match="all 1 users for VMs are taken; delete VMs, or widen their range"):
        claim(vm(tmp_path, "b"), range(5, 6))
    assert not VMPaths(tmp_path / "b").uid.exists()


def test_the_range_is_nobodys() -> None:
    """systemd: containers end at 1879048191, foreign users begin at 2147352576; shadow: SUB_UID_MAX is 600100000."""
    assert uids.RANGE.start > 1_879_048_191 and uids.RANGE.stop <= 2_147_352_576
