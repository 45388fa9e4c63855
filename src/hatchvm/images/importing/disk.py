"""A root disk from a tree of any size: a sparse ext4 file with owners, devices and capabilities, made without root.

`mke2fs -d` takes a folder: the archive's names would have to be on this host, and owners and devices would be lost.
`debugfs` is told of every entry in a script and reads contents from numbered files. 20,000 files with owner, mode and
time in 2,000 folders take it 3 s, so nothing faster is needed.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Invalid
from hatchvm.base.units import MIB
from hatchvm.images import ext4
from hatchvm.images.ext4 import BLOCK, INODE_BYTES
from hatchvm.images.importing.rootfs import Node, Rootfs

#: Room for the guest. A hole in the file until it is used.
FREE_MIB: Final = 4096
_JOURNAL_MIB: Final = 16
_MIN_INODES: Final = 65536
_MAX_HARD_LINKS: Final = 65000
#: What a block made by `expand_dir` holds of names: all but its checksum, and what one more name may need.
_NAMES_IN_BLOCK: Final = BLOCK - 12
_LOST_AND_FOUND: Final = "lost+found"


def make(disk: Path, rootfs: Rootfs, scratch: Path) -> None:
    """Write the tree to the new file `disk`. `scratch` is an empty folder for temporary files.

    Raises Invalid for a file with more names than ext4 can count.
    """
    # mke2fs makes its own.
    rootfs.root.children.pop(_LOST_AND_FOUND, None)
    names = _names(rootfs)
    inodes = max(_MIN_INODES, 2 * (len(names) + sum(1 for _ in rootfs.folders())))
    size_mib = FREE_MIB + _JOURNAL_MIB + (_content_bytes(names) + inodes * (INODE_BYTES + BLOCK // 8)) * 21 // 20 // MIB
    ext4.blank(disk, size_mib=size_mib, inodes=inodes, journal_mib=_JOURNAL_MIB, more_features=",dir_nlink")
    script = scratch / "debugfs.commands"
    with script.open("w", encoding="utf-8", errors="surrogateescape") as file:
        file.writelines(f"{command}\n" for command in _Script(rootfs, names, scratch).commands())
    ext4.fill(disk, script)


class _Script:
    def __init__(self, rootfs: Rootfs, names: Counter[Node], scratch: Path) -> None:
        self._rootfs = rootfs
        self._scratch = scratch
        self._shared = [node for node, count in names.items() if count > 1]
        self._number = {node: number for number, node in enumerate(self._shared)}
        self._names = names
        # debugfs finds a link's target by its path, whose length is bounded: shared files are made in a short one.
        self._nursery = "hatch"
        while self._nursery in rootfs.root.children:
            self._nursery += "-"

    def commands(self) -> Iterator[str]:
        yield from self._make_shared()
        yield from self._fill(self._rootfs.root)
        depth = 0
        for level, name, folder in self._rootfs.folders():
            yield from ["cd .."] * (depth + 1 - level)
            yield f"cd {_here(name)}"
            yield from self._fill(folder)
            depth = level
        yield "cd /"
        yield from self._drop_nursery()
        yield from _fields("/", self._rootfs.root)

    def _make_shared(self) -> Iterator[str]:
        if self._shared:
            yield f"mkdir {self._nursery}"
            yield f"cd {self._nursery}"
            for number, node in enumerate(self._shared):
                yield from self._create(str(number), node)
                yield f"set_inode_field {_here(str(number))} links_count {self._names[node]}"
            yield "cd /"

    def _drop_nursery(self) -> Iterator[str]:
        if self._shared:
            yield f"cd {self._nursery}"
            yield from (f"unlink {_here(str(number))}" for number in range(len(self._shared)))
            yield "cd /"
            yield f"rmdir {self._nursery}"

    def _fill(self, folder: Node) -> Iterator[str]:
        """The entries of the current folder. `ln`, unlike the others, does not make room in a folder for its name."""
        room = 0
        for name, node in sorted(folder.children.items()):
            if node not in self._number:
                yield from self._create(name, node)
                continue
            needed = 16 + len(name.encode(errors="surrogateescape"))
            if room < needed:
                yield "expand_dir ."
                room = _NAMES_IN_BLOCK - 16
            room -= needed
            yield f"ln /{self._nursery}/{self._number[node]} {_quoted(name)}"

    def _create(self, name: str, node: Node) -> Iterator[str]:
        kind = stat.S_IFMT(node.mode)
        if kind == stat.S_IFDIR:
            yield f"mkdir {_quoted(name)}"
        elif kind == stat.S_IFLNK:
            yield f"symlink {_quoted(name)} {_quoted(node.target)}"
        elif kind == stat.S_IFREG:
            yield f"write {_quoted(str(node.content))} {_quoted(name)}"
        elif kind == stat.S_IFIFO:
            yield f"mknod {_quoted(name)} p"
        else:
            yield f"mknod {_quoted(name)} {'c' if kind == stat.S_IFCHR else 'b'} {node.device[0]} {node.device[1]}"
        yield from _fields(_here(name), node)
        if node.capability:
            value = self._scratch / f"capability-{node.capability.hex()}"
            value.write_bytes(node.capability)
            yield f"ea_set -f {_quoted(str(value))} {_here(name)} security.capability"


def _fields(where: str, node: Node) -> Iterator[str]:
    if not node.is_link:
        yield f"set_inode_field {where} mode 0{node.mode:o}"
    if node.uid:
        yield f"set_inode_field {where} uid {node.uid}"
    if node.gid:
        yield f"set_inode_field {where} gid {node.gid}"
    yield f"set_inode_field {where} mtime @{node.mtime}"


def _names(rootfs: Rootfs) -> Counter[Node]:
    """How many names each inode has that is not a folder. Raises Invalid for more than ext4 can count."""
    names: Counter[Node] = Counter()
    for folder in (rootfs.root, *(node for _, _, node in rootfs.folders())):
        names.update(node for node in folder.children.values() if not node.is_folder)
    if names and max(names.values()) > _MAX_HARD_LINKS:
        raise Invalid(f"it has a file with more than {_MAX_HARD_LINKS} hard links")
    return names


def _content_bytes(names: Counter[Node]) -> int:
    sizes = (node.content.stat().st_size for node in names if node.content)
    return sum(-(-size // BLOCK) * BLOCK for size in sizes)


def _here(name: str) -> str:
    """A name in the current folder. With `./` it is never taken for an option, or `<12>` for an inode's number."""
    return _quoted(f"./{name}")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
