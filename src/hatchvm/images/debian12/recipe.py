"""What the built-in image `debian` is made of: Debian 12 with its own kernel, and the initrd of `tiny`.

The archive that mmdebstrap writes is put onto the root disk without being unpacked on this host, so that nobody need be
root, and the same packages give the same bytes on every host.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Internal
from hatchvm.base.units import MIB
from hatchvm.domain.image import Boot
from hatchvm.images import content, debian, initrd, kernel, libraries, recipe
from hatchvm.images.debian12.bootstrap import bootstrap
from hatchvm.images.importing import archive, disk
from hatchvm.images.importing.rootfs import Node, Rootfs
from hatchvm.images.importing.streams import Allowance

#: The card stays eth0.
BOOT_ARGS: Final = f"{recipe.BOOT_ARGS} net.ifnames=0"

_MAX_BYTES: Final = 4096 * MIB
#: Sources elsewhere that shape the image. Other changes of the house are not worth a build of minutes.
_SHAPING: Final = (
    *("recipe.py", "initrd.py", "guest/initrd.sh", "cpio.py", "kernel.py", "modules.py"),
    *("importing/archive.py", "importing/disk.py", "importing/rootfs.py"),
)
#: When a password was last changed, in days.
_CHANGED: Final = re.compile(rb"^([^:\n]*:[^:\n]*):\d+:", re.MULTILINE)


def key() -> str:
    """A digest of everything of ours that shapes the image."""
    package = resources.files("hatchvm.images")
    return content.of_sources(package / "debian12", *(package / name for name in _SHAPING))


def build(target: Path, scratch: Path, progress: Callable[[str], None]) -> Boot:
    """Write kernel, initrd and root disk into `target`, using the empty folder `scratch`. Takes two to three minutes.

    Needs mmdebstrap, apt and e2fsprogs. Raises Unavailable or Unsupported.
    """
    progress("fetching what unpacks the kernel")
    tools = debian.unpack(scratch, ("lz4",))
    lz4 = libraries.runnable(tools, tools / "usr/bin/lz4", scratch / "lz4")
    tar = scratch / "root.tar"
    began = int(scratch.stat().st_mtime)
    bootstrap(tar, scratch, progress)
    progress("writing kernel, initrd and root disk")
    rootfs = _read(tar, scratch)
    _forget_today(rootfs, began)
    tar.unlink()
    _write_boot_files(rootfs, target, scratch, lz4)
    staging = scratch / "disk"
    staging.mkdir()
    disk.make(target / "rootfs.img", rootfs, staging)
    return recipe.boot(target, BOOT_ARGS)


def _read(tar: Path, scratch: Path) -> Rootfs:
    contents = scratch / "contents"
    contents.mkdir()
    rootfs = Rootfs()
    with tar.open("rb") as file:
        archive.apply(rootfs, file, archive.Spool(contents, Allowance(_MAX_BYTES)), layer=0, whiteouts=False)
    return rootfs


def _write_boot_files(rootfs: Rootfs, target: Path, scratch: Path, lz4: tuple[str, ...]) -> None:
    boot, releases = _folder(rootfs, "/boot"), _folder(rootfs, "/usr/lib/modules")
    (release,) = releases.children
    bzimage = scratch / "bzimage"
    shutil.copyfile(_content(boot.children[f"vmlinuz-{release}"]), bzimage)
    kernel.unpack(bzimage, target / "kernel", lz4)
    modules = scratch / "modules"
    modules.mkdir()
    for name, node in _files(releases.children[release]):
        (modules / name).symlink_to(_content(node))
    busybox = rootfs.find("/bin/busybox")
    if busybox is None:
        raise Internal("the Debian packages have no busybox")
    initrd.write(target / "initrd", busybox=_content(busybox).read_bytes(), modules=modules)


def _files(folder: Node) -> Iterator[tuple[str, Node]]:
    for name, node in folder.children.items():
        if node.is_folder:
            yield from _files(node)
        elif node.is_file:
            yield name, node


def _forget_today(rootfs: Rootfs, began: int) -> None:
    """What was made since `began` gets the time of the newest file that came in a package."""
    folders = [rootfs.root, *(folder for _, _, folder in rootfs.folders())]
    nodes = [node for folder in folders for node in (folder, *folder.children.values())]
    newest = max(node.mtime for node in nodes if node.mtime < began)
    for node in nodes:
        node.mtime = min(node.mtime, newest)
    etc = _folder(rootfs, "/etc")
    for name in ("shadow", "shadow-"):
        content = _content(etc.children[name])
        content.write_bytes(_CHANGED.sub(rb"\g<1>:%d:" % (newest // 86400), content.read_bytes()))


def _folder(rootfs: Rootfs, path: str) -> Node:
    found = rootfs.find(path)
    if found is None or not found.is_folder:
        raise Internal(f"the Debian packages made no folder {path}")
    return found


def _content(node: Node) -> Path:
    if node.content is None:
        raise Internal("a file of a Debian package is not a file")
    return node.content
