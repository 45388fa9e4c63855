"""What only the directory store has: temporary files, folders, and a disk that fills up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hatchvm.base.errors import Invalid, NotFound, Unavailable
from hatchvm.objects.directory import DirectoryStore

FILL = """
import asyncio, resource, sys
from pathlib import Path
from hatchvm.base.errors import Exhausted
from hatchvm.objects.directory import DirectoryStore

async def main():
    root = Path(sys.argv[1])
    store = DirectoryStore(root)
    await store.put("a/small", b"fits")
    if "limit" in sys.argv:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        await store.put("a/large", bytes(3_000_000))
    except Exhausted as error:
        print("exhausted:", error)
    print([info.key async for info in store.list("")], await store.get("a/small"), list((root / "~tmp").iterdir()))

asyncio.run(main())
"""
EXPECTED = "exhausted: the object store is full\n['a/small'] b'fits' []\n"


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_file_size_limit_is_exhausted_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FILL, str(tmp_path / "objects"), "limit"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == EXPECTED


def test_a_full_disk_is_exhausted_and_leaves_nothing(tmp_path: Path) -> None:
    inside = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$@"'
    own_mounts = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*own_mounts, inside, "sh", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this host lets nobody mount a small disk")
    command = [*own_mounts, inside, "sh", sys.executable, "-c", FILL, str(tmp_path / "objects")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == EXPECTED


async def test_old_temporary_files_are_swept_and_young_ones_are_not(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("k", b"1")
    old, young = tmp_path / "~tmp" / "old", tmp_path / "~tmp" / "young"
    for path in (old, young):
        path.write_bytes(b"half an object")
    past = young.stat().st_mtime - 3700
    os.utime(old, (past, past))
    assert [info.key async for info in store.list("")] == ["k"]
    await store.check()
    assert files(tmp_path) == ["k", "~tmp/young"]


async def test_objects_and_their_folders_are_for_the_owner_only(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    await store.put("a/k", b"guest memory")
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "objects/a/k").stat().st_mode & 0o777 == 0o600


async def test_empty_folders_go_with_their_last_object(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("a/b/c", b"")
    await store.put("a/d", b"")
    await store.delete("a/b/c")
    assert not (tmp_path / "a/b").exists()
    assert (tmp_path / "a/d").exists()


@pytest.mark.parametrize("if_absent", [False, True])
async def test_a_key_is_either_an_object_or_a_folder(tmp_path: Path, if_absent: bool) -> None:
    store = DirectoryStore(tmp_path)
    await store.put("a/b", b"1")
    for key in ("a/b/c", "a/b/c/d"):
        with pytest.raises(Invalid):
            await store.put(key, b"", if_absent=if_absent)
    with pytest.raises(Invalid):
        await store.put("a", b"")
    assert files(tmp_path) == ["a/b"]


async def test_a_root_that_cannot_be_used_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = DirectoryStore(tmp_path / "file")
    with pytest.raises(Unavailable):
        await store.put("k", b"")
    with pytest.raises(Unavailable):
        await store.check()


def test_a_folder_without_permission_is_unavailable(tmp_path: Path) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from hatchvm.base.errors import Unavailable
from hatchvm.objects.directory import DirectoryStore

async def main():
    store = DirectoryStore(Path(sys.argv[1]) / "objects")
    await asyncio.to_thread(int)  # loads what the new user may not read
    if os.getuid() == 0:
        os.setuid(65534)
    for call in (lambda: store.put("k", b""), lambda: store.get("k"), store.check):
        try:
            await call()
        except Unavailable as error:
            print(error)

asyncio.run(main())
"""
    folder = tmp_path / "closed"
    (folder / "objects").mkdir(parents=True)
    folder.chmod(0)
    try:
        done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o700)
    assert done.stdout == "the object store cannot be used\n" * 3, done.stderr


async def test_a_store_that_was_never_written_has_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "objects")
    with pytest.raises(NotFound):
        await store.get("k")
    await store.delete("k")
    assert not (tmp_path / "objects").exists()
