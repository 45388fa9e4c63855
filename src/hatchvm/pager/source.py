"""Where packs are read from: files of a directory, or a server by presigned URLs. URLs are secrets: none is shown."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hatchvm.base.errors import Corrupt, Unavailable
from hatchvm.snapshots.manifest import Pack

if TYPE_CHECKING:
    import urllib3

_CONNECT_S: Final = 5.0
_READ_S: Final = 20.0
#: Reading past this much to get to a range is cheaper than giving up on a server that ignores ranges.
_SKIP_BYTES: Final = 64 * 1024


class Source:
    """Reads ranges of packs. `where`: pack id -> http(s) URL or absolute path. For many threads at once."""

    def __init__(self, packs: Sequence[Pack], where: Mapping[str, str], *, width: int) -> None:
        self._packs = packs
        self._where = where
        self._width = width
        self._pool: urllib3.PoolManager | None = None
        self._making = threading.Lock()

    def read(self, pack: int, start: int, lengths: Sequence[int]) -> Iterator[memoryview]:
        """Consecutive pieces of a pack from `start`, as they come. What they hold is not looked at.

        Raises Unavailable if the store cannot be read now, Corrupt if it does not have the pack, or a shorter one.
        """
        place = self._where.get(self._packs[pack].id, "")
        if place.startswith("/"):
            yield from self._from_file(place, start, lengths)
        else:
            yield from self._from_server(self._packs[pack], place, start, lengths)

    def _from_file(self, path: str, start: int, lengths: Sequence[int]) -> Iterator[memoryview]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = memoryview(os.pread(fd, sum(lengths), start))
            finally:
                os.close(fd)
        except FileNotFoundError as error:
            if Path(path).parent.is_dir():
                raise _missing() from error
            raise Unavailable("the snapshot store's directory is missing", detail=path) from error
        except OSError as error:
            raise Unavailable(f"the snapshot store cannot be read: {error.strerror}", detail=path) from error
        for length in lengths:
            yield _whole(data[:length], length)
            data = data[length:]

    def _from_server(self, pack: Pack, url: str, start: int, lengths: Sequence[int]) -> Iterator[memoryview]:
        from urllib3.exceptions import HTTPError

        total = sum(lengths)
        try:
            answer = self._http().request(
                "GET", url, headers={"Range": f"bytes={start}-{start + total - 1}"}, preload_content=False
            )
            try:
                _expect(answer, pack, start, total)
                for length in lengths:
                    yield _whole(memoryview(answer.read(length, decode_content=False)), length)
            finally:
                if answer.length_remaining:  # what was not read must not be taken for the next answer
                    answer.close()
                answer.release_conn()
        except HTTPError as error:
            raise Unavailable("the snapshot store cannot be reached", detail=type(error).__name__) from None

    def _http(self) -> urllib3.PoolManager:
        import urllib3

        with self._making:
            if self._pool is None:
                timeout = urllib3.Timeout(connect=_CONNECT_S, read=_READ_S)
                self._pool = urllib3.PoolManager(maxsize=self._width, retries=False, timeout=timeout)
            return self._pool


def _expect(answer: urllib3.BaseHTTPResponse, pack: Pack, start: int, total: int) -> None:
    """Bring the answer to where the range begins. Some servers send a range with status 200, some the whole object."""
    if answer.status in (404, 416):
        raise _missing()
    if answer.status not in (200, 206):
        raise Unavailable(f"the snapshot store answers {answer.status}")
    length = answer.headers.get("Content-Length", "")
    if length == str(total):
        return
    if answer.status == 206 or length != str(pack.size):
        raise Unavailable("the snapshot store answers with another range than asked for")
    skipped = 0
    while skipped < start:
        piece = answer.read(min(_SKIP_BYTES, start - skipped), decode_content=False)
        if not piece:
            raise Unavailable("the snapshot store ended its answer too early")
        skipped += len(piece)


def _whole(piece: memoryview, length: int) -> memoryview:
    if len(piece) != length:
        raise Unavailable("the snapshot store ended its answer too early")
    return piece


def _missing() -> Corrupt:
    return Corrupt("the snapshot is damaged: a part of it is missing from the store")
