"""The seed disk, read back the way a guest would."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pycdlib
import pytest

from hatchvm.images.seed import write_seed


def read(path: Path, names: str) -> dict[str, bytes]:
    """The two files by the names of Rock Ridge (`rr_path`) or Joliet (`joliet_path`)."""
    disk = pycdlib.PyCdlib()
    disk.open(str(path))
    assert disk.pvd.volume_identifier.decode().strip() == "cidata"
    found = {}
    for name in ("meta-data", "user-data"):
        content = io.BytesIO()
        disk.get_file_from_iso_fp(content, **{names: f"/{name}"})
        found[name] = content.getvalue()
    disk.close()
    return found


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_both_naming_schemes_hold_both_files(tmp_path: Path, names: str) -> None:
    seed = tmp_path / "seed.iso"
    write_seed(seed, instance_id="vm-0123456789ab", hostname="web", user_data="#!/bin/sh\necho höi\n")
    found = read(seed, names)
    assert found["meta-data"] == b'instance-id: "vm-0123456789ab"\nlocal-hostname: "web"\n'
    assert found["user-data"].decode() == "#!/bin/sh\necho höi\n"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600


def test_no_user_data_is_an_empty_file(tmp_path: Path) -> None:
    write_seed(tmp_path / "seed.iso", instance_id="i", hostname="h", user_data=None)
    assert read(tmp_path / "seed.iso", "rr_path")["user-data"] == b""


def test_a_mebibyte_of_user_data_fits_and_a_new_seed_replaces_the_old(tmp_path: Path) -> None:
    seed = tmp_path / "seed.iso"
    write_seed(seed, instance_id="i", hostname="h", user_data="x" * 2**20)
    write_seed(seed, instance_id="j", hostname="h", user_data="y" * 2**20)
    assert read(seed, "rr_path")["user-data"] == b"y" * 2**20
    assert list(tmp_path.iterdir()) == [seed]
