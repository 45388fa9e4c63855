"""A file tree in memory: what goes into an initrd or a root disk, whoever builds it, always owned by root."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

DEFAULT_DIR: Final = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file, folder, link or character device. `mode` carries the type bits, as in `struct stat`."""

    path: str  # relative, `/`-separated, no leading slash
    mode: int
    data: bytes = b""  # a file's content, a link's target
    device: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> int:
        """`stat.S_IFREG`, `S_IFDIR`, `S_IFLNK` or `S_IFCHR`."""
        return stat.S_IFMT(self.mode)


class Tree:
    """Entries by path; folders above an entry come into being with it. Iterates in path order, parents first."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries[path] for path in sorted(self._entries))

    def folder(self, path: str, mode: int = DEFAULT_DIR) -> None:
        self._add(Entry(path=path, mode=stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(Entry(path=path, mode=stat.S_IFREG | mode, data=data))

    def program(self, path: str, data: bytes) -> None:
        self.file(path, data, 0o755)

    def link(self, path: str, target: str) -> None:
        self._add(Entry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode()))

    def device(self, path: str, mode: int, major: int, minor: int) -> None:
        self._add(Entry(path=path, mode=stat.S_IFCHR | mode, device=(major, minor)))

    def _add(self, entry: Entry) -> None:
        for parent in PurePosixPath(entry.path).parents:
            if str(parent) != ".":
                self._entries.setdefault(str(parent), Entry(path=str(parent), mode=stat.S_IFDIR | DEFAULT_DIR))
        self._entries[entry.path] = entry
