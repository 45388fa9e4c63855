"""What this host remembers of packs can be lost or damaged at any time, and nothing comes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from hatchvm.snapshots.manifest import Pack
from hatchvm.snapshots.pack import build
from hatchvm.snapshots.seal import OPEN, Ring
from hatchvm.snapshots.tails import Tails
from hatchvm.testing.sleeper import BLOCK

VM: Final = "vm-0123456789ab"
OTHER: Final = "vm-ba9876543210"
ONE: Final = Pack("1" * 32, 100, OPEN)
TWO: Final = Pack("2" * 32, 200, bytes(range(8)))


@pytest.fixture
def tails(tmp_path: Path) -> Tails:
    (tmp_path / "packs").mkdir()
    return Tails(tmp_path / "packs")


def test_uploads_are_remembered_by_vm_and_age(tails: Tails) -> None:
    tails.begun(VM, ONE, 10.0)
    tails.begun(VM, TWO, 20.0)
    tails.begun(OTHER, ONE, 30.0)
    assert tails.unfinished(VM, 9.9) == [ONE, TWO]
    assert tails.unfinished(VM, 10.0) == [TWO]
    assert tails.unfinished(VM, 20.0) == []
    tails.finished(VM)
    tails.finished(VM)
    assert tails.unfinished(VM, 0) == []
    assert tails.unfinished(OTHER, 0) == [ONE]


@pytest.mark.parametrize(
    "torn", ["", "[", '["3"]', "{}", '["3", "x", "", 99]', '["3", 1, "zz", 99]', '["3", 1, "", ""]']
)
def test_a_line_that_is_torn_is_left_out(tails: Tails, tmp_path: Path, torn: str) -> None:
    tails.begun(VM, ONE, 10.0)
    with (tmp_path / f"packs/{VM}.unfinished").open("a") as file:
        file.write(torn + "\n")
    tails.begun(VM, TWO, 10.0)
    assert tails.unfinished(VM, 0) == [ONE, TWO]


def test_a_file_that_is_no_text_is_left_out(tails: Tails, tmp_path: Path) -> None:
    (tmp_path / f"packs/{VM}.unfinished").write_bytes(b"\xff\xfe")
    assert tails.unfinished(VM, 0) == []


def test_nothing_to_forget_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "packs").write_text("no folder")
    Tails(tmp_path / "packs").finished(VM)


def test_a_tail_is_kept_until_it_is_damaged(tmp_path: Path) -> None:
    tails = Tails(tmp_path / "new/packs")
    pack, tail, _, stored = build("3" * 32, [(bytes(BLOCK), bytes(24))], BLOCK, Ring())
    assert tails.get(pack, Ring()) is None
    tails.put(pack, stored)
    kept = tails.get(pack, Ring())
    assert kept is not None
    assert kept.digests.tobytes() == tail.digests.tobytes()
    assert tails.get(replace(pack, key_id=TWO.key_id), Ring()) is None
    path = tmp_path / "new/packs" / f"{pack.id}.tail"
    path.write_bytes(stored[:-1])
    assert tails.get(pack, Ring()) is None


def test_other_tails_are_forgotten(tmp_path: Path) -> None:
    tails = Tails(tmp_path / "packs")
    made = [build(digit * 32, [(bytes(BLOCK), bytes(24))], BLOCK, Ring()) for digit in "345"]
    for pack, _, _, stored in made:
        tails.put(pack, stored)
    tails.begun(VM, ONE, 1.0)
    tails.keep_only({"4" * 32})
    assert [tails.get(pack, Ring()) is not None for pack, *_ in made] == [False, True, False]
    assert tails.unfinished(VM, 0) == [ONE]


def test_a_folder_that_cannot_be_written_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tails = Tails(tmp_path / "file")
    tails.put(ONE, b"tail")
    tails.begun(VM, ONE, 10.0)
    assert tails.unfinished(VM, 0) == []
