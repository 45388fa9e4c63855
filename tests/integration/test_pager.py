"""A pager over real mounts: files that are complete from the first look, and what becomes of it when it dies."""

from __future__ import annotations

import errno
import functools
import http.server
import mmap
import os
import random
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Corrupt, HatchError
from hatchvm.base.paths import VMPaths
from hatchvm.pager import ledger, mount
from hatchvm.testing.lazy import BLOCK, KEYS, Pager, Stored, paging, prepare, store

TROUBLE: Final = mount.probe()
pytestmark = pytest.mark.skipif(TROUBLE is not None, reason=TROUBLE or "")

_DICE: Final = random.Random(7)


def content(blocks: int) -> bytes:
    """Zeros, repetitions and noise."""
    kinds = [lambda: bytes(BLOCK), lambda: b"same" * (BLOCK // 4), lambda: _DICE.randbytes(BLOCK)]
    return b"".join(_DICE.choice(kinds)() for _ in range(blocks))


MEMORY: Final = content(2048)
DISK: Final = content(300) + b"the last block is short"


@pytest.fixture
async def stored(tmp_path: Path) -> Stored:
    return await store(tmp_path, memory=MEMORY, disk=DISK, order=[5, 1000, 6])


@pytest.fixture
def paths(tmp_path: Path, stored: Stored) -> VMPaths:
    paths = VMPaths(tmp_path / "vm")
    prepare(paths, stored.manifest)
    return paths


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def damage(stored: Stored) -> None:
    """Every frame of every pack."""
    for place in stored.where.values():
        pack = bytearray(Path(place).read_bytes())
        pack[:] = bytes(255 - byte for byte in pack)
        Path(place).chmod(0o600)
        Path(place).write_bytes(pack)


def test_files_are_whole_from_the_first_look(paths: VMPaths, stored: Stored) -> None:
    with paging(paths, stored.work(paths)):
        assert (paths.lazy / "disk").read_bytes() == DISK
        with mapped(paths.lazy / "memory") as memory:
            assert memory[1000 * BLOCK : 1001 * BLOCK] == MEMORY[1000 * BLOCK : 1001 * BLOCK]
            assert memory[:] == MEMORY
        with pytest.raises(FileNotFoundError):
            (paths.lazy / "other").stat()


def test_what_is_written_stays_and_ends_in_the_real_files(paths: VMPaths, stored: Stored) -> None:
    expected, disk = bytearray(MEMORY), bytearray(DISK)
    with paging(paths, stored.work(paths)) as pager:
        with mapped(paths.lazy / "memory") as memory, (paths.lazy / "disk").open("r+b") as file:
            for spot in (3, 777 * BLOCK + 5, 2000 * BLOCK):
                expected[spot : spot + 9] = memory[spot : spot + 9] = b"new words"
            file.seek(100 * BLOCK + 17)
            file.write(b"new words")
            disk[100 * BLOCK + 17 : 100 * BLOCK + 26] = b"new words"
            file.seek(0, os.SEEK_END)
            file.write(b", and it grows" * 1000)
            disk += b", and it grows" * 1000
            memory.flush()
        pager.ask("finish")
        assert paths.disk.read_bytes() == disk
        pager.ask("end")
        pager.child.wait()
    assert paths.memory.read_bytes() == bytes(expected)
    assert paths.disk.read_bytes() == bytes(disk)
    assert ledger.source(paths) is None
    assert not mount.is_mounted(paths.lazy)


def test_holes_are_punched_and_files_cut(paths: VMPaths, stored: Stored) -> None:
    path = paths.lazy / "disk"
    with paging(paths, stored.work(paths)) as pager:
        punch = ["fallocate", "--punch-hole", "--offset", str(10 * BLOCK + 100), "--length", str(5 * BLOCK), str(path)]
        subprocess.run(punch, check=True)
        os.truncate(path, 200 * BLOCK + 50)
        expected = bytearray(DISK[: 200 * BLOCK + 50])
        expected[10 * BLOCK + 100 : 15 * BLOCK + 100] = bytes(5 * BLOCK)
        assert path.read_bytes() == expected
        pager.ask("finish")
    assert paths.disk.read_bytes() == expected


def test_what_was_synced_survives_a_kill_and_the_rest_can_be_completed(paths: VMPaths, stored: Stored) -> None:
    with paging(paths, stored.work(paths)), (paths.lazy / "disk").open("r+b") as file:
        file.seek(40 * BLOCK)
        file.write(b"synced" * 1000)
        file.flush()
        os.fsync(file.fileno())
    expected = bytearray(DISK)
    expected[40 * BLOCK : 40 * BLOCK + 6000] = b"synced" * 1000
    if ledger.source(paths) is not None:
        with paging(paths, stored.work(paths, mounted=False)) as again:
            again.ask("finish")
    assert paths.disk.read_bytes() == expected


def test_a_killed_pager_is_an_error_for_its_readers_and_its_mount_can_be_taken_away(
    paths: VMPaths, stored: Stored
) -> None:
    with paging(paths, stored.work(paths)) as pager:
        fd = os.open(paths.lazy / "memory", os.O_RDONLY)
        pager.kill()
        with pytest.raises(OSError, match="not connected"):
            os.pread(fd, BLOCK, 1500 * BLOCK)
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
        assert mount.is_mounted(paths.lazy)
        mount.unmount(paths.lazy)
        assert not mount.is_mounted(paths.lazy)


def test_a_damaged_snapshot_is_never_served(paths: VMPaths, stored: Stored) -> None:
    damage(stored)
    with paging(paths, stored.work(paths)) as pager:
        with (paths.lazy / "disk").open("rb", buffering=0) as file, pytest.raises(OSError) as caught:
            while file.read(BLOCK):
                pass
        assert caught.value.errno == errno.EIO
        with pytest.raises(Corrupt, match="packs/"):
            pager.ask("finish")
        assert "packs/" in pager.ask("status")["wrong"]["error"]
    assert "packs/" in paths.pager_log.read_text()
    assert ledger.source(paths) == KEYS
    present = paths.memory.read_bytes()
    assert all(
        present[at : at + BLOCK] in (bytes(BLOCK), MEMORY[at : at + BLOCK]) for at in range(0, len(present), BLOCK)
    )


def test_a_missing_pack_is_damage(paths: VMPaths, stored: Stored) -> None:
    for place in stored.where.values():
        Path(place).unlink()
    with paging(paths, stored.work(paths)) as pager, pytest.raises(Corrupt):
        pager.ask("finish")


def test_a_manifest_that_is_damaged_ends_it_before_it_serves(paths: VMPaths, stored: Stored) -> None:
    work = stored.work(paths)
    broken = type(work)(
        folder=work.folder,
        source=KEYS,
        where=work.where,
        ring=(),
        mounted=True,
        faults=False,
        manifest=work.manifest[:-1] + b"!",
    )
    with pytest.raises(Corrupt):
        Pager(paths, broken)
    assert not mount.is_mounted(paths.lazy)


class _Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder. `ranges`: 206 with what was asked for; else 200 with all of it, as some servers do."""

    ranges = True

    def do_GET(self) -> None:
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked is not None
        if self.ranges:
            data = data[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206 if self.ranges else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


class _Whole(_Server):
    ranges = False


@contextmanager
def serving(handler: type[_Server], folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("handler", [_Server, _Whole])
def test_packs_are_read_from_a_server(paths: VMPaths, stored: Stored, handler: type[_Server], tmp_path: Path) -> None:
    with serving(handler, tmp_path / "objects") as base:
        where = {pack: base + place.removeprefix(str(tmp_path / "objects")) for pack, place in stored.where.items()}
        with paging(paths, stored.work(paths, where=where)) as pager:
            assert (paths.lazy / "memory").read_bytes() == MEMORY
            pager.ask("finish")
    assert paths.disk.read_bytes() == DISK


def test_a_server_that_is_gone_is_waited_for_and_named_without_its_url(paths: VMPaths, stored: Stored) -> None:
    where = dict.fromkeys(stored.where, "http://127.0.0.1:9/secret?signature=secret")
    with paging(paths, stored.work(paths, where=where)) as pager:
        with pytest.raises(HatchError) as caught:
            pager.ask("finish")
        assert "cannot be reached" in str(caught.value)
        assert "secret" not in f"{caught.value}{caught.value.detail}{paths.pager_log.read_text()}"
