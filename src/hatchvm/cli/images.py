"""`hatchvm image`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final, Literal, cast

from cyclopts import App

from hatchvm.base import paths
from hatchvm.cli import render
from hatchvm.cli.options import given
from hatchvm.cli.session import InSession
from hatchvm.client.answers import NewImage

app = App(name="image", help="Manage what VMs boot from.")

_COLUMNS: Final = ("id", "name", "size_bytes", "builtin", "created_at")


@app.command
def create(
    *,
    kernel: Path,
    initrd: Path | None = None,
    rootfs: Path | None = None,
    boot_args: str | None = None,
    name: str | None = None,
    session: InSession,
) -> None:
    """Register files of the daemon's host as an image.

    Parameters
    ----------
    kernel
        Kernel.
    initrd
        Initial RAM disk.
    rootfs
        Root disk, raw or qcow2.
    boot_args
        Kernel arguments.
    name
        A name for it, unique.
    """
    fields = given(
        name=name,
        initrd_path=initrd and str(initrd.absolute()),
        rootfs_path=rootfs and str(rootfs.absolute()),
        boot_args=boot_args,
    )
    with session.client() as client:
        session.show(client.create_image(str(kernel.absolute()), **cast(NewImage, fields)))


@app.command(name="list")
def list_images(*, session: InSession) -> None:
    """List images, newest first."""
    with session.client() as client:
        session.show_all(client.list_images(), _COLUMNS)


@app.command
def get(image: str, /, *, session: InSession) -> None:
    """Show one image, by id or name."""
    with session.client() as client:
        session.show(client.get_image(image))


@app.command
def delete(image: str, /, *, session: InSession) -> None:
    """Delete an image that no VM uses, by id or name."""
    with session.client() as client:
        client.delete_image(image)
    session.show_deleted(image)


@app.command
def build(image: Literal["tiny"], /, *, session: InSession) -> None:
    """Build a built-in image into the cache. Needs no daemon."""
    from hatchvm.images.tiny import build_tiny

    def progress(words: str) -> None:
        print(words, file=sys.stderr, flush=True)

    built = asyncio.run(build_tiny(cache_dir(), progress))
    fields = {"name": built.name, "digest": built.digest, "size_bytes": built.size_bytes}
    render.thing(fields | {"kernel_path": str(built.boot.kernel)}, as_json=session.json)


def cache_dir() -> Path:
    """`HATCH_CACHE_DIR`, else `hatchvm` in the user's cache directory."""
    own = os.environ.get("HATCH_CACHE_DIR")
    if own:
        return Path(own)
    return paths.cache_dir()
