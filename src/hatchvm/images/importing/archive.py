"""Tar archives from strangers, put into a tree entry by entry, as one layer over others.

A layer's names with the prefix `.wh.` remove things of layers below (OCI image specification, layer.md, "Whiteouts").
"""

from __future__ import annotations

import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from hatchvm.base.errors import Invalid
from hatchvm.images.importing.rootfs import Node, Rootfs, check_target
from hatchvm.images.importing.streams import CHUNK, Allowance, Reader

_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_CAPABILITY: Final = "SCHILY.xattr.security.capability"
_MAX_CAPABILITY_BYTES: Final = 64
#: tarfile holds an entry's headers in memory. A real one, with its long names, has a few kilobytes.
_MAX_HEADER_BYTES: Final = 1024 * 1024
_MAX_ID: Final = 2**32 - 2
_MAX_DEVICE: Final = 2**16 - 1
#: ext4's last second is in 2446.
_MAX_MTIME: Final = 2**33
_ORDINARY_ENDS: Final = ("EOFHeaderError", "EmptyHeaderError")


class Spool:
    """A folder of numbered files. What is put into it counts against an allowance; holes stay holes."""

    def __init__(self, root: Path, allowance: Allowance) -> None:
        self._root = root
        self._allowance = allowance
        self._number = 0

    def add(self, source: Reader, size: int) -> Path:
        """A new file with the `size` bytes of `source`. Raises Invalid if there are fewer, or it would be too large."""
        self._allowance.check(size)
        path = self._root / str(self._number)
        self._number += 1
        with path.open("xb") as file:
            left = size
            while left:
                data = source.read(min(CHUNK, left))
                if not data:
                    raise Invalid("it is cut short")
                self._allowance.take(len(data))
                left -= len(data)
                if data.count(0) == len(data):
                    file.seek(len(data), 1)
                else:
                    file.write(data)
            file.truncate(size)
        return path


def members(reader: Reader) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Every entry of a tar stream, with the content of regular files, to be read before the next one is asked for.

    Raises Invalid for anything that is not, from its first byte to its last, a tar archive.
    """
    metered = _Metered(reader)
    with _damage(), tarfile.open(fileobj=cast(IO[bytes], metered), mode="r|", tarinfo=_Member, bufsize=CHUNK) as tar:
        while True:
            metered.left = _MAX_HEADER_BYTES
            member = tar.next()
            if member is None:
                return
            metered.left = None
            yield member, tar.extractfile(member) if member.isreg() else None
            # tarfile remembers every entry, and each global header for all that follow.
            tar.members.clear()  # type: ignore[attr-defined]
            cast(dict[str, str], tar.pax_headers).clear()


def table(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Every entry of an uncompressed tar archive, by its headers alone: `offset_data` and `size` say where it is.

    Raises Invalid as `members` does.
    """
    metered = _MeteredFile(file)
    with _damage(), tarfile.open(fileobj=cast(IO[bytes], metered), mode="r:", tarinfo=_Member) as tar:
        while True:
            metered.left = _MAX_HEADER_BYTES
            member = tar.next()
            if member is None:
                return
            metered.left = None
            yield member
            tar.members.clear()  # type: ignore[attr-defined]
            cast(dict[str, str], tar.pax_headers).clear()


def apply(rootfs: Rootfs, reader: Reader, spool: Spool, *, layer: int, whiteouts: bool) -> None:
    """Put the tar archive in `reader` into the tree as layer number `layer`. Raises Invalid."""
    with _damage():
        for member, content in members(reader):
            folder, _, name = member.name.rstrip("/").rpartition("/")
            if whiteouts and name.startswith(_WHITEOUT):
                _white_out(rootfs, folder, name, layer)
            elif member.islnk():
                rootfs.link(member.name, member.linkname, layer)
            else:
                rootfs.put(member.name, _node(member, content, spool), layer)


def _white_out(rootfs: Rootfs, folder: str, name: str, layer: int) -> None:
    if name == _OPAQUE:
        rootfs.hide_content(folder, layer)
    elif not name.startswith(_WHITEOUT * 2):  # AUFS kept notes of its own under such names
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise Invalid(f"its whiteout {name!r} names no file")
        rootfs.hide(f"{folder}/{hidden}", layer)


def _node(member: tarfile.TarInfo, content: IO[bytes] | None, spool: Spool) -> Node:
    if not (0 <= member.uid <= _MAX_ID and 0 <= member.gid <= _MAX_ID):
        raise Invalid(f"its entry {member.name[:200]!r} has an impossible owner")
    node = Node(
        mode=_type(member) | stat.S_IMODE(member.mode),
        uid=member.uid,
        gid=member.gid,
        mtime=max(0, min(int(member.mtime), _MAX_MTIME)),
        capability=_capability(member),
    )
    if content is not None:
        if member.size < 0:
            raise Invalid(f"its entry {member.name[:200]!r} has an impossible size")
        node.content = spool.add(content, member.size)
    elif node.is_link:
        check_target(member.linkname)
        node.target = member.linkname
    elif member.ischr() or member.isblk():
        node.device = (member.devmajor, member.devminor)
        if not all(0 <= number <= _MAX_DEVICE for number in node.device):
            raise Invalid(f"its device {member.name[:200]!r} has impossible numbers")
    return node


def _type(member: tarfile.TarInfo) -> int:
    kinds = (
        (member.isreg, stat.S_IFREG),
        (member.isdir, stat.S_IFDIR),
        (member.issym, stat.S_IFLNK),
        (member.ischr, stat.S_IFCHR),
        (member.isblk, stat.S_IFBLK),
        (member.isfifo, stat.S_IFIFO),
    )
    for is_kind, kind in kinds:
        if is_kind():
            return kind
    raise Invalid(f"its entry {member.name[:200]!r} is of an unknown type")


def _capability(member: tarfile.TarInfo) -> bytes:
    value = member.pax_headers.get(_CAPABILITY, "").encode(errors="surrogateescape")
    if len(value) > _MAX_CAPABILITY_BYTES:
        raise Invalid(f"its entry {member.name[:200]!r} has impossible capabilities")
    return value


class _Member(tarfile.TarInfo):
    """tarfile takes a header that it cannot read for the end of the archive, unless it is the first one."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Member:
        return _whole(super().fromtarfile, tarfile)


def _whole(read: object, tar: tarfile.TarFile) -> _Member:
    try:
        return cast(_Member, read(tar))  # type: ignore[operator]
    except tarfile.HeaderError as error:
        if type(error).__name__ in _ORDINARY_ENDS:
            raise
        raise Invalid("it is damaged: a header cannot be read", detail=str(error)) from error


class _Metered:
    """Passes reads on, as long as they stay within `left` bytes."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.left: int | None = _MAX_HEADER_BYTES  # tarfile reads the first entry's headers as it opens

    def read(self, size: int, /) -> bytes:
        data = self._reader.read(size)
        if self.left is not None:
            self.left -= len(data)
            if self.left < 0:
                raise Invalid("it is damaged: an entry's headers do not end")
        return data


class _MeteredFile(_Metered):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file

    def seek(self, position: int, whence: int = 0, /) -> int:
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError) as error:
        raise Invalid("it is damaged, or not a tar archive", detail=str(error)) from error
