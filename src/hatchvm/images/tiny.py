"""The built-in image `tiny`: built once a recipe, then found again at once.

    <cache>/
      tiny-<digest>/{kernel,initrd,rootfs.img,image.json}   never changed once there
      tiny.<recipe key>                                     names the folder that this recipe made
      .tiny.lock                                            one builder at a time, over all processes
      .tiny-build.*                                         what a killed builder left; the next one removes it

A build happens in a folder beside and is renamed into place whole, so readers need no lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hatchvm.base import ids
from hatchvm.base.errors import Internal
from hatchvm.base.files import sync_file, write_atomic
from hatchvm.domain.image import TINY, Image
from hatchvm.images import content, recipe
from hatchvm.images.faults import translated

Progress = Callable[[str], None]

_BUILDS: Final = f".{TINY}-build."
_RECORD: Final = "image.json"


async def build_tiny(cache: Path, progress: Progress) -> Image:
    """The image `tiny` in `cache`, built now if this recipe has not built it there before.

    `progress` is called in the event loop with a few words at each step of a build. Raises Unsupported if this host
    lacks a program, Unavailable if packages cannot be fetched, Exhausted if the disk is full.
    """
    loop = asyncio.get_running_loop()

    def report(step: str) -> None:
        loop.call_soon_threadsafe(progress, step)

    return await asyncio.to_thread(_ensure, cache, report)


def find_tiny(cache: Path) -> Image | None:
    """The image `tiny`, if this recipe has built it in `cache` already."""
    return _find(cache, recipe.key())


def _ensure(cache: Path, progress: Progress) -> Image:
    key = recipe.key()
    with translated(f"building the image {TINY} in {cache}"):
        found = _find(cache, key)
        if found:
            return found
        cache.mkdir(parents=True, exist_ok=True)
        with _only_builder(cache, progress):
            return _find(cache, key) or _build(cache, key, progress)


def _find(cache: Path, key: str) -> Image | None:
    try:
        return _load(cache / _pointer(cache, key).read_text())
    except FileNotFoundError:
        return None


def _load(folder: Path) -> Image | None:
    """The image in a finished folder, or None if a file of it is missing or cut short."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        boot = recipe.boot(folder, record["boot_args"])
        if content.size_bytes(boot) != record["size_bytes"]:
            return None
        created_at = datetime.fromtimestamp((folder / _RECORD).stat().st_mtime, UTC)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return None
    return Image(
        id=f"{ids.IMAGE}-{record['digest'][:12]}",
        name=TINY,
        boot=boot,
        digest=record["digest"],
        size_bytes=record["size_bytes"],
        created_at=created_at,
        builtin=True,
    )


def _build(cache: Path, key: str, progress: Progress) -> Image:
    for leftover in cache.glob(f"{_BUILDS}*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=_BUILDS, dir=cache) as temporary:
        result = Path(temporary, "result")
        result.mkdir()
        boot = recipe.build(result, Path(temporary), progress)
        record = {"digest": content.digest(boot), "size_bytes": content.size_bytes(boot), "boot_args": boot.boot_args}
        write_atomic(result / _RECORD, json.dumps(record).encode(), mode=0o644)
        for file in result.iterdir():
            file.chmod(0o444)
            sync_file(file)
        folder = cache / f"{TINY}-{record['digest']}"
        if _load(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            result.rename(folder)
    write_atomic(_pointer(cache, key), folder.name.encode(), mode=0o644)
    image = _load(folder)
    if image is None:
        raise Internal(f"the image {TINY} vanished while it was built")
    return image


def _pointer(cache: Path, key: str) -> Path:
    return cache / f"{TINY}.{key}"


@contextmanager
def _only_builder(cache: Path, progress: Progress) -> Iterator[None]:
    with (cache / f".{TINY}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the image")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
