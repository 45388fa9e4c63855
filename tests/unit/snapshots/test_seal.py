"""Keys come from a file, and never appear in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Invalid, Unsupported
from hatchvm.snapshots.seal import OPEN, Ring, Sealer, key_id

OLD: Final = "00112233445566778899aabbccddeeff" * 2
NEW: Final = "FFeeddccbbaa99887766554433221100" * 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_key_seals_and_every_key_opens(path: Path) -> None:
    ring = Ring.load(written(path, f"# newest first\n\n{NEW}  # 2026\n  {OLD}\n"))
    assert ring.current == key_id(bytes.fromhex(NEW))
    assert ring.dump() == [NEW.lower(), OLD]
    old = Ring([bytes.fromhex(OLD)])
    sealer, opener = old.sealer(old.current, b"context"), ring.sealer(old.current, b"context")
    assert sealer is not None
    assert opener is not None
    assert opener.open(7, sealer.seal(7, b"plain")) == b"plain"


def test_a_piece_opens_in_its_own_place_only() -> None:
    sealer = Sealer(bytes(32), b"context")
    sealed = sealer.seal(1, b"plain")
    assert len(sealed) == len(b"plain") + 16
    assert sealer.open(1, memoryview(sealed)) == b"plain"
    others = [(Sealer(bytes(32), b"other"), 1), (Sealer(b"\1" * 32, b"context"), 1), (sealer, 2)]
    for other, number in others:
        with pytest.raises(ValueError, match="decrypted"):
            other.open(number, sealed)
    for damaged in (b"", sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:]):
        with pytest.raises(ValueError, match="decrypted"):
            sealer.open(1, damaged)


def test_without_keys_nothing_is_sealed() -> None:
    assert Ring().current == OPEN
    assert Ring().sealer(OPEN, b"") is None
    assert Ring([bytes(32)]).sealer(OPEN, b"") is None


def test_a_lost_key_is_named_by_its_id() -> None:
    lost = key_id(bytes.fromhex(OLD))
    with pytest.raises(Unsupported, match=lost.hex()) as caught:
        Ring([bytes.fromhex(NEW)]).sealer(lost, b"")
    assert OLD not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    with pytest.raises(Invalid, match="chmod 600"):
        Ring.load(written(path, OLD, mode))


@pytest.mark.parametrize(
    "text", [OLD[:-1], OLD + "0", OLD[:-2] + "  ", OLD[:31] + "  " + OLD[33:], "g" * 64, f"{OLD}\n{NEW} {OLD}"]
)
def test_what_is_no_key_is_refused_without_showing_it(path: Path, text: str) -> None:
    with pytest.raises(Invalid, match=r"line \d is not a key") as caught:
        Ring.load(written(path, text))
    assert OLD[:16] not in f"{caught.value} {caught.value.detail}"


@pytest.mark.parametrize("text", ["", "\n \n", "# none yet\n"])
def test_a_file_without_keys_is_refused(path: Path, text: str) -> None:
    with pytest.raises(Invalid, match="holds no key"):
        Ring.load(written(path, text))


def test_a_file_that_cannot_be_read_is_refused(path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be read"):
        Ring.load(path)
    written(path, "")
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(Invalid, match="cannot be read"):
        Ring.load(path)
