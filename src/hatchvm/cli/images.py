"""`hatchvm image`."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

from cyclopts import App

from hatchvm.base import paths
from hatchvm.base.errors import HatchError, Invalid, Unavailable
from hatchvm.base.units import MIB
from hatchvm.cli import render
from hatchvm.cli.options import given
from hatchvm.cli.session import InSession, Session
from hatchvm.client.answers import NewImage
from hatchvm.client.errors import ApiError
from hatchvm.domain.image import TINY, Boot, Builtin
from hatchvm.images.faults import translated

app = App(name="image", help="Manage what VMs boot from.")

_SIZE: Final = re.compile(r"([0-9]{1,9})(MiB|GiB|TiB)")
_UNITS: Final = {"MiB": MIB, "GiB": 1024 * MIB, "TiB": 1024 * 1024 * MIB}
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
def build(image: Builtin, /, *, session: InSession) -> None:
    """Build a built-in image into the cache, and register it with the daemon if one answers.

    Parameters
    ----------
    image
        tiny: busybox and SSH, boots in seconds. debian: Debian 12 with systemd, cloud-init and OpenSSH.
    """
    from hatchvm.images import builtin

    built = asyncio.run(builtin.build(image, cache_dir(), _say))
    fields = {"name": built.name, "digest": built.digest, "size_bytes": built.size_bytes}
    render.thing(fields | {"kernel_path": str(built.boot.kernel)}, as_json=session.json)
    _say(_register(image, session))


def _register(image: Builtin, session: Session) -> str:
    """What came of it, in a sentence."""
    try:
        with session.client() as client:
            client.add_builtin_image(image)
    except Unavailable:
        return f'no daemon answers at {session.url}; one that starts with this cache knows the image as "{image}"'
    except (HatchError, ApiError) as error:
        return f"the daemon at {session.url} did not register it: {error}"
    return f'the daemon at {session.url} knows it as "{image}": hatchvm vm create --image {image}'


@app.command(name="import")
def import_image(
    path: Path,
    /,
    *,
    name: str | None = None,
    boot_args: str | None = None,
    max_size: str | None = None,
    session: InSession,
) -> None:
    """Make an image of a container image, a root file system or a cloud image, and register it.

    Parameters
    ----------
    path
        OCI layout (folder or tar archive), `docker save` archive, root file system's tar archive, qcow2 or raw disk.
    name
        A name for it, unique.
    boot_args
        Kernel arguments instead of what suits the source.
    max_size
        What the source may unpack to, such as 64GiB; 32GiB if left out.
    """
    _import(lambda _: path, session, name=name, boot_args=boot_args, max_size=max_size)


@app.command
def pull(
    reference: str,
    /,
    *,
    name: str | None = None,
    boot_args: str | None = None,
    max_size: str | None = None,
    tls_verify: bool = True,
    session: InSession,
) -> None:
    """Fetch a container image from a registry with skopeo, make an image of it, and register it.

    Parameters
    ----------
    reference
        What to fetch, such as docker.io/library/nginx:1.27.
    name
        A name for it, unique.
    boot_args
        Kernel arguments instead of what suits a container.
    max_size
        What it may unpack to, such as 64GiB; 32GiB if left out.
    tls_verify
        Whether the registry must have a valid certificate.
    """
    from hatchvm.images.importing import pulling

    def fetch(work: Path) -> Path:
        _say(f"pulling {reference}")
        pulling.pull(reference, work / "layout", tls_verify=tls_verify)
        return work / "layout"

    _import(fetch, session, name=name, boot_args=boot_args, max_size=max_size)


def _import(
    fetch: Callable[[Path], Path], session: Session, *, name: str | None, boot_args: str | None, max_size: str | None
) -> None:
    """Import what `fetch` gets, with the help of a folder that is gone afterwards, and register it."""
    from hatchvm.images import builtin
    from hatchvm.images.importing import importer

    max_bytes = importer.MAX_BYTES if max_size is None else _parsed_size(max_size)
    cache = cache_dir()

    def tiny() -> Boot:
        return asyncio.run(builtin.build(TINY, cache, _say)).boot

    with translated(f"importing with the help of {cache}"):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".import.", dir=cache) as temporary:
            results = Path(temporary, "results")
            results.mkdir()
            boot = importer.Importer(results, tiny, _say, max_bytes).run(fetch(Path(temporary)), boot_args)
            _say("registering the image")
            fields = given(
                name=name,
                initrd_path=boot.initrd and str(boot.initrd),
                rootfs_path=str(boot.rootfs),
                boot_args=boot.boot_args,
            )
            with session.client() as client:
                session.show(client.create_image(str(boot.kernel), **cast(NewImage, fields)))


def _parsed_size(size: str) -> int:
    match = _SIZE.fullmatch(size)
    if match is None:
        raise Invalid("--max-size must be a number of MiB, GiB or TiB, such as 64GiB")
    return int(match[1]) * _UNITS[match[2]]


def _say(words: str) -> None:
    """A line of progress: not what the command was run for, so not on stdout."""
    print(words, file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """`HATCH_CACHE_DIR`, else `hatchvm` in the user's cache directory."""
    own = os.environ.get("HATCH_CACHE_DIR")
    if own:
        return Path(own)
    return paths.cache_dir()
