"""The object store over a directory: one file an object, the key is its path.

An object is written to a file in `~tmp` (no key can reach that name), synced, then renamed into place, or hard-linked
where the key must be new: the file system lets exactly one of many linkers win. What a crash leaves in `~tmp` is
invisible, and `check` removes it once it is old.

One limit that S3 has not: a key cannot be an object and the folder of other objects at once (Invalid).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Conflict, Exhausted, Invalid, NotFound, Unavailable
from hatchvm.base.files import NO_ROOM, sync_dir
from hatchvm.base.units import MIB
from hatchvm.objects.keys import checked, folder_of
from hatchvm.ports.objects import ObjectInfo

_TEMPORARY: Final = "~tmp"
_TEMPORARY_MAX_AGE_S: Final = 3600
_PROBE: Final = b"hatch"
_PUBLISH_ATTEMPTS: Final = 16


class DirectoryStore:
    """`ports.objects.ObjectStore` in the folder `root`, which is made (mode 0700) when first written to.

    A cancelled `put` returns at once; its thread gives up before the next MiB and publishes nothing.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / _TEMPORARY

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._path(key)
        abandoned = threading.Event()
        try:
            await asyncio.to_thread(self._put, path, data, if_absent, abandoned)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return await asyncio.to_thread(_read, self._path(key), key, start, length)

    async def info(self, key: str) -> ObjectInfo:
        return await asyncio.to_thread(_stat, self._path(key), key)

    async def delete(self, key: str) -> None:
        await asyncio.to_thread(self._delete, self._path(key))

    async def locate(self, key: str) -> str:
        return str(self._path(key).absolute())

    async def check(self) -> None:
        await asyncio.to_thread(self._check)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        ahead: list[ObjectInfo | str] = [folder_of(prefix)]
        while ahead:
            entry = ahead.pop()
            if isinstance(entry, ObjectInfo):
                yield entry
            else:
                ahead.extend(await asyncio.to_thread(_scan, self._root, entry, prefix))

    def _path(self, key: str) -> Path:
        return self._root / checked(key)

    def _put(self, path: Path, data: bytes, if_absent: bool, abandoned: threading.Event) -> None:
        with _translated(path), self._temporary_file(data, abandoned) as temporary:
            if not abandoned.is_set():
                self._publish(temporary, path, if_absent)

    @contextlib.contextmanager
    def _temporary_file(self, data: bytes, abandoned: threading.Event | None = None) -> Iterator[Path]:
        """A synced file holding `data` (a part of it once `abandoned`), removed at the end if it is still there."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._temporary.mkdir(mode=0o700, exist_ok=True)
        path = self._temporary / secrets.token_hex(16)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", buffering=0) as file:
                view = memoryview(data)
                while view and not (abandoned and abandoned.is_set()):
                    view = view[file.write(view[:MIB]) :]
                if not view:
                    os.fsync(fd)
            yield path
        finally:
            path.unlink(missing_ok=True)

    def _publish(self, temporary: Path, path: Path, if_absent: bool) -> None:
        place = _link if if_absent else os.replace
        for _ in range(_PUBLISH_ATTEMPTS):
            try:
                _make_folder(path.parent)
                place(temporary, path)
            except FileNotFoundError:
                continue  # a `delete` pruned the folder after it was made
            except (NotADirectoryError, IsADirectoryError) as error:
                raise Invalid("the key is a folder of other objects, or runs through another object") from error
            return self._sync_folders(path.parent)
        raise Unavailable("the object store cannot be written", detail=f"{path.parent} vanishes again and again")

    def _sync_folders(self, folder: Path) -> None:
        """Sync every folder from `folder` up to the root: whoever made one may not have synced its parent yet."""
        while folder.is_relative_to(self._root):
            with contextlib.suppress(FileNotFoundError):  # the object was deleted again, its folder pruned
                sync_dir(folder)
            folder = folder.parent

    def _delete(self, path: Path) -> None:
        with _translated(path):
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return
            folder = path.parent
            with contextlib.suppress(FileNotFoundError):
                sync_dir(folder)
            with contextlib.suppress(OSError):  # not empty: in use
                while folder != self._root:
                    folder.rmdir()
                    folder = folder.parent

    def _check(self) -> None:
        with _translated(self._root), self._temporary_file(_PROBE) as probe:
            linked = probe.with_suffix(".link")
            try:
                os.link(probe, linked)
                if linked.read_bytes() != _PROBE:
                    raise Unavailable("the object store does not return what was written", detail=str(self._root))
            finally:
                linked.unlink(missing_ok=True)
            # The store's own clock on both sides: right on a network file system whose clock differs too.
            newest_stale = probe.stat().st_mtime - _TEMPORARY_MAX_AGE_S
            for path in self._temporary.iterdir():
                with contextlib.suppress(FileNotFoundError):  # its put has just ended
                    if path.stat().st_mtime < newest_stale:
                        path.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise NotADirectoryError(folder) from error


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise Conflict("the object exists already") from error


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise Exhausted("the object store is full", detail=f"{path}: {error}") from error
        raise Unavailable("the object store cannot be used", detail=f"{path}: {error}") from error


@contextlib.contextmanager
def _found(path: Path, key: str) -> Iterator[None]:
    with _translated(path):
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFound(f"no object {key}") from error


def _read(path: Path, key: str, start: int, length: int | None) -> bytes:
    with _found(path, key), path.open("rb") as file:
        file.seek(start)
        return file.read(-1 if length is None else length)


def _stat(path: Path, key: str) -> ObjectInfo:
    with _found(path, key):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(path)
        return _info(key, status)


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _scan(root: Path, folder: str, prefix: str) -> list[ObjectInfo | str]:
    """What in one folder leads to keys with `prefix`: objects, and folders still to scan; in reverse key order."""
    found: list[tuple[str, ObjectInfo | str]] = []
    with _translated(root / folder):
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    is_folder = entry.is_dir(follow_symlinks=False)
                    # A folder sorts as its children do: `a.b` < `a/b`, though `a` < `a.b`.
                    order = key + "/" if is_folder else key
                    if order.startswith(prefix) and entry.name != _TEMPORARY:
                        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                            found.append((order, key if is_folder else _info(key, entry.stat(follow_symlinks=False))))
        except (FileNotFoundError, NotADirectoryError):
            return []
    found.sort(key=lambda pair: pair[0], reverse=True)
    return [item for _, item in found]
