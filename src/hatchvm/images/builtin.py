"""The built-in images: each is built once a recipe, then found again at once.

    <cache>/
      <name>-<digest>/{kernel,initrd,rootfs.img,image.json}   never changed once there
      <name>.<recipe key>                                     names the folder that this recipe made
      .<name>.lock                                            one builder at a time, over all processes
      .<name>-build.*                                         what a killed builder left; the next one removes it

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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hatchvm.base import ids
from hatchvm.base.errors import Internal
from hatchvm.base.files import sync_file, write_atomic
from hatchvm.domain.image import DEBIAN, TINY, Boot, Builtin, Image
from hatchvm.images import content, recipe
from hatchvm.images.debian12 import recipe as debian12
from hatchvm.images.faults import translated

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`key`: a digest of what shapes the image. `build(target, scratch, progress)` writes its files into `target`."""

    key: Callable[[], str]
    build: Callable[[Path, Path, Progress], Boot]


RECIPES: Final[dict[Builtin, Recipe]] = {
    TINY: Recipe(recipe.key, recipe.build),
    DEBIAN: Recipe(debian12.key, debian12.build),
}
_RECORD: Final = "image.json"


async def build(name: Builtin, cache: Path, progress: Progress) -> Image:
    """The image `name` in `cache`, built now if its recipe has not built it there before.

    `progress` is called in the event loop with a few words at each step of a build. Raises Unsupported if this host
    lacks a program, Unavailable if packages cannot be fetched, Exhausted if the disk is full.
    """
    loop = asyncio.get_running_loop()

    def report(step: str) -> None:
        loop.call_soon_threadsafe(progress, step)

    return await asyncio.to_thread(_ensure, name, cache, report)


def find(name: Builtin, cache: Path) -> Image | None:
    """The image `name`, if its recipe has built it in `cache` already."""
    try:
        return _load(name, cache / _pointer(name, cache).read_text())
    except FileNotFoundError:
        return None


def _ensure(name: Builtin, cache: Path, progress: Progress) -> Image:
    with translated(f"building the image {name} in {cache}"):
        found = find(name, cache)
        if found:
            return found
        cache.mkdir(parents=True, exist_ok=True)
        with _only_builder(name, cache, progress):
            return find(name, cache) or _build(name, cache, progress)


def _load(name: Builtin, folder: Path) -> Image | None:
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
        name=name,
        boot=boot,
        digest=record["digest"],
        size_bytes=record["size_bytes"],
        created_at=created_at,
        builtin=True,
    )


def _build(name: Builtin, cache: Path, progress: Progress) -> Image:
    builds = f".{name}-build."
    for leftover in cache.glob(f"{builds}*"):
        shutil.rmtree(leftover)
    # Before the build, which may outlast a change of the sources.
    pointer = _pointer(name, cache)
    with tempfile.TemporaryDirectory(prefix=builds, dir=cache) as temporary:
        result, scratch = Path(temporary, "result"), Path(temporary, "scratch")
        result.mkdir()
        scratch.mkdir()
        boot = RECIPES[name].build(result, scratch, progress)
        record = {"digest": content.digest(boot), "size_bytes": content.size_bytes(boot), "boot_args": boot.boot_args}
        write_atomic(result / _RECORD, json.dumps(record).encode(), mode=0o644)
        for file in result.iterdir():
            file.chmod(0o444)
            sync_file(file)
        folder = cache / f"{name}-{record['digest']}"
        if _load(name, folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
            result.rename(folder)
    write_atomic(pointer, folder.name.encode(), mode=0o644)
    image = _load(name, folder)
    if image is None:
        raise Internal(f"the image {name} vanished while it was built")
    return image


def _pointer(name: Builtin, cache: Path) -> Path:
    return cache / f"{name}.{RECIPES[name].key()}"


@contextmanager
def _only_builder(name: Builtin, cache: Path, progress: Progress) -> Iterator[None]:
    with (cache / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another build of the image")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
