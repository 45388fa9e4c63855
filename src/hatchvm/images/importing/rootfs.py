"""A root file system as a tree in memory: names and metadata here, contents in numbered files of a scratch folder.

No name of an archive ever reaches the host's file system, so there is nothing on it that a link could lead to. Links
are followed inside the tree as the guest would follow them: `/` is its root, and `..` stops there.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Invalid

MAX_ENTRIES: Final = 500_000
#: The time to write a folder grows with the square of its entries; 30,000 take half a minute.
MAX_IN_FOLDER: Final = 30_000
MAX_DEPTH: Final = 256
MAX_NAME_BYTES: Final = 255
MAX_TARGET_BYTES: Final = 4095
_MAX_LINKS_FOLLOWED: Final = 40


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """One inode. Names that share it are hard links."""

    mode: int  # with the type bits
    uid: int = 0
    gid: int = 0
    mtime: int = 0  # seconds since 1970
    content: Path | None = None  # of a regular file
    target: str = ""  # of a symbolic link
    device: tuple[int, int] = (0, 0)
    capability: bytes = b""  # the xattr security.capability
    children: dict[str, Node] = field(default_factory=dict)
    born: dict[str, int] = field(default_factory=dict)  # child's name -> the layer that made it

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


def folder(mode: int = 0o755) -> Node:
    return Node(mode=stat.S_IFDIR | mode)


class Rootfs:
    """Layers are applied with rising numbers. Every method raises Invalid for a path that cannot be."""

    def __init__(self) -> None:
        self.root = folder()
        self._entries = 0

    def put(self, path: str, node: Node, layer: int) -> None:
        """Make the name `path` stand for `node`. A folder over a folder changes its metadata only."""
        parts = parts_of(path)
        if not parts:
            if not node.is_folder:
                raise Invalid("its root is not a folder")
            _dress(self.root, node)
            return
        parent, name = self._parent(parts, layer), parts[-1]
        old = parent.children.get(name)
        if old and old.is_folder and node.is_folder:
            _dress(old, node)
            parent.born[name] = layer
        else:
            self._set(parent, name, node, layer)

    def link(self, path: str, target: str, layer: int) -> None:
        """Make `path` one more name of what `target` names."""
        parts = parts_of(target)
        parent = self._walk(parts[:-1])
        node = parent.children.get(parts[-1]) if parent and parts else None
        if node is None or node.is_folder:
            raise Invalid(f"its hard link {path!r} leads to nothing", detail=f"to {target!r}")
        self.put(path, node, layer)

    def hide(self, path: str, layer: int) -> None:
        """Remove what layers below `layer` have put at `path`."""
        parts = parts_of(path)
        parent = self._walk(parts[:-1])
        if parent and parts and parts[-1] in parent.children:
            _prune(parent, parts[-1], layer)

    def hide_content(self, path: str, layer: int) -> None:
        """Remove what layers below `layer` have put into the folder `path`."""
        node = self._walk(parts_of(path))
        for name in list(node.children) if node else ():
            assert node is not None
            _prune(node, name, layer)

    def find(self, path: str) -> Node | None:
        """What the guest would find at an absolute `path`, links followed; None for nothing."""
        parts = parts_of(path)
        return self._walk(parts, follow_to_anything=True)

    def folders(self) -> Iterator[tuple[int, str, Node]]:
        """(depth, name, folder) of every folder below the root, parents first, siblings by name."""
        waiting = [(1, name, node) for name, node in _subfolders(self.root)]
        while waiting:
            depth, name, node = waiting.pop()
            yield depth, name, node
            waiting += [(depth + 1, name, child) for name, child in _subfolders(node)]

    def _parent(self, parts: list[str], layer: int) -> Node:
        node = self._walk(parts[:-1], make=layer)
        assert node is not None
        return node

    def _walk(self, parts: list[str], *, make: int | None = None, follow_to_anything: bool = False) -> Node | None:
        """The folder at the end of `parts`; with `make`, folders of that layer come into being where none is."""
        stack, waiting, followed = [self.root], parts[::-1], 0
        while waiting:
            name = waiting.pop()
            if name == "..":
                del stack[max(1, len(stack) - 1) :]
                continue
            child = stack[-1].children.get(name)
            if child and child.is_link:
                followed += 1
                if followed > _MAX_LINKS_FOLLOWED:
                    raise Invalid(f"its symbolic link {name!r} leads in a circle")
                if child.target.startswith("/"):
                    del stack[1:]
                waiting += _split(child.target)[::-1]
                continue
            if child is None or not child.is_folder:
                if make is None:
                    return child if follow_to_anything and not waiting else None
                child = folder()
                self._set(stack[-1], name, child, make)
            stack.append(child)
            if len(stack) > MAX_DEPTH:
                raise Invalid(f"it has more than {MAX_DEPTH} folders within one another")
        return stack[-1]

    def _set(self, parent: Node, name: str, node: Node, layer: int) -> None:
        _check_name(name)
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise Invalid(f"it has more than {MAX_ENTRIES} entries")
        parent.children[name] = node
        parent.born[name] = layer
        if len(parent.children) > MAX_IN_FOLDER:
            raise Invalid(f"it has more than {MAX_IN_FOLDER} entries in one folder")


def parts_of(path: str) -> list[str]:
    """The names in an archive's path. A leading `/` is the tree's root. Raises Invalid for `..`."""
    parts = _split(path)
    if ".." in parts:
        raise Invalid(f"its entry {path[:200]!r} leads out of its folder")
    return parts


def check_target(target: str) -> None:
    """Raises Invalid for what cannot be the target of a symbolic link."""
    _check_text(target)
    if not target or len(target.encode(errors="surrogateescape")) > MAX_TARGET_BYTES:
        raise Invalid("it has a symbolic link whose target is empty or too long")


def _split(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _check_name(name: str) -> None:
    _check_text(name)
    if len(name.encode(errors="surrogateescape")) > MAX_NAME_BYTES:
        raise Invalid(f"it has a name of more than {MAX_NAME_BYTES} bytes")


def _check_text(text: str) -> None:
    # The program that writes the root disk is told about each entry in one line.
    if any(character in text for character in "\0\n\r"):
        raise Invalid(f"it has a name with a line break, {text[:200]!r}")


def _dress(old: Node, new: Node) -> None:
    old.mode, old.uid, old.gid, old.mtime = new.mode, new.uid, new.gid, new.mtime


def _subfolders(node: Node) -> list[tuple[str, Node]]:
    return [(name, child) for name, child in sorted(node.children.items(), reverse=True) if child.is_folder]


def _prune(parent: Node, name: str, layer: int) -> None:
    """Remove what is older than `layer`. A folder that `layer` has put something into stays, as if it were new."""
    node = parent.children[name]
    for child in list(node.children):
        _prune(node, child, layer)
    if parent.born[name] >= layer:
        return
    if node.children:
        _dress(node, folder())
        parent.born[name] = layer
    else:
        del parent.children[name], parent.born[name]
