"""The object store over S3, or a server that speaks it.

What must be new is written with one conditional PutObject (`If-None-Match: *`). Servers exist that ignore the
condition without a word, so it is tried once before it is relied on; on such a store one process at a time may
create objects (`caution` says so), and looks before it writes.

A write whose answer got lost is sent again. So a conditional one may be refused because of itself: Conflict then says
that the key exists, not who made it.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import structlog
from botocore.session import Session

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, NotFound, Unavailable, Unsupported
from hatchvm.base.units import MIB
from hatchvm.objects.keys import checked, folder_of, is_key
from hatchvm.objects.s3.bulk import Reads
from hatchvm.objects.s3.control import Body, Control, Found, Place
from hatchvm.objects.s3.faults import DELETE, LIST, READ, WRITE
from hatchvm.objects.s3.multipart import put_in_parts
from hatchvm.objects.s3.requests import ATTEMPTS, Requests
from hatchvm.ports.objects import ObjectInfo
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: No key begins so: what lies here is never listed.
_PROBES: Final = "~probe/"
_PROBE: Final = b"hatch"
#: A start or a health check must not wait as long as an upload may.
_CHECK_ATTEMPTS: Final = 3
_MULTIPART_ABOVE: Final = 16 * MIB
#: From this size on a body is sent so that it can be broken off; it costs one more round trip.
_BREAKABLE_FROM: Final = MIB
_READ_S: Final = 15 * 60
_LOCATE_S: Final = 12 * 3600
_CAUTION: Final = (
    "the object store ignores conditional writes (If-None-Match): "
    "no other Hatch may use the same bucket and prefix at the same time"
)


class S3Store:
    """`ports.objects.ObjectStore` in a bucket that exists. Nothing is asked before the first call.

    A cancelled call returns at once, but one that creates an object on a store without conditional writes, and an
    upload in parts: these wait for their requests under way. A cancelled `put` may still take effect if its body was
    sent already.
    """

    def __init__(self, place: Place, *, first_pause_s: float = 0.2) -> None:
        """`first_pause_s`: before a failed request is sent again; doubled each time. Raises ValueError for a `place`
        that is none."""
        self._prefix = place.prefix
        self._probe = f"{place.prefix}{_PROBES}{secrets.token_hex(8)}"
        session = Session()
        self._control = Control(place, session)
        self._reads = Reads(place.endpoint or "https://s3.amazonaws.com", session)
        self._requests = Requests(place.bucket, first_pause_s)
        self._checking = asyncio.Lock()
        self._conditional: bool | None = None
        self._creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        name = self._name(key)
        if if_absent:
            await self._create(name, data)
        elif len(data) > _MULTIPART_ABOVE:
            await put_in_parts(self._control, self._requests, name, data)
        else:
            await self._put(name, data)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        name = self._name(key)
        if length == 0:  # not to be said in HTTP
            await self.info(key)
            return b""
        return await self._requests.ask(READ, name, lambda: self._read(name, start, length))

    async def info(self, key: str) -> ObjectInfo:
        name = self._name(key)
        return self._told(await self._requests.ask(READ, name, lambda: self._control.info(name)))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        folder_of(prefix)
        name = self._prefix + prefix
        token: str | None = None
        while True:
            page, token = await self._requests.ask(LIST, name, partial(self._control.page, name, token))
            for found in page:
                if is_key(found.name):  # a bucket may hold objects that are not ours
                    yield self._told(found)
            if token is None:
                return

    async def delete(self, key: str) -> None:
        name = self._name(key)
        try:
            await self._requests.ask(DELETE, name, lambda: self._control.delete(name))
        except Unavailable as error:
            # A server over a file system may fail to remove what is a folder there, and so no object at all.
            try:
                await self._requests.ask(READ, name, lambda: self._control.info(name), attempts=1)
            except NotFound:
                return
            raise error from None

    async def locate(self, key: str) -> str:
        return await self.presign(key, _LOCATE_S)

    async def presign(self, key: str, expires_s: int) -> str:
        """A URL with which anybody can read the object for `expires_s` (at most 7 days), by ranges too: a secret.

        Temporary credentials, as a role gives them, may end earlier, and the URL with them.
        """
        name = self._name(key)
        return await self._requests.ask(READ, name, lambda: self._control.presign(name, expires_s))

    async def check(self) -> None:
        """Write, read, list and delete an object of its own; the first time, find out whether conditions are kept."""
        await self._is_conditional()
        async with self._checking:
            name, ask, attempts = self._probe, self._requests.ask, _CHECK_ATTEMPTS
            await self._put(name, _PROBE, attempts=attempts)
            read = await ask(READ, name, lambda: self._read(name, 0, None), attempts=attempts)
            listed, _ = await ask(LIST, name, lambda: self._control.page(name, None), attempts=attempts)
            if read != _PROBE or [found.name for found in listed] != [name]:
                raise Unavailable("the object store does not return what was written", detail=name)
            await ask(DELETE, name, lambda: self._control.delete(name), attempts=attempts)

    def caution(self) -> str | None:
        """What this store cannot promise, as a sentence; None if nothing, or not known before the first `check`."""
        return _CAUTION if self._conditional is False else None

    async def _is_conditional(self) -> bool:
        async with self._checking:
            if self._conditional is None:
                self._conditional = await self._keeps_conditions()
                if not self._conditional:
                    _log.warning(logs.SINGLE_WRITER)
            return self._conditional

    async def _keeps_conditions(self) -> bool:
        """Whether the second of two creations of one object is refused."""
        kept = False
        try:
            for _ in range(2):
                await self._put(self._probe, _PROBE, if_absent=True, attempts=_CHECK_ATTEMPTS)
        except Conflict:
            kept = True
        except Unsupported:  # it refuses the condition itself
            pass
        await self._requests.ask(DELETE, self._probe, lambda: self._control.delete(self._probe))
        return kept

    async def _create(self, name: str, data: bytes) -> None:
        if await self._is_conditional():
            return await self._put(name, data, if_absent=True)
        async with self._creating.setdefault(name, asyncio.Lock()):
            try:
                await self._requests.ask(READ, name, lambda: self._control.info(name))
            except NotFound:
                # To its end: sent on after the lock is free, it could replace what the next one created.
                return await tasks.finish(self._put(name, data), name=f"create {name}")
        raise Conflict("the object exists already")

    async def _put(self, name: str, data: bytes, *, if_absent: bool = False, attempts: int = ATTEMPTS) -> None:
        abandoned = threading.Event()

        def send() -> None:
            body = Body(data, abandoned) if len(data) >= _BREAKABLE_FROM else data
            self._control.put(name, body, if_absent=if_absent)

        try:
            await self._requests.ask(WRITE, name, send, attempts=attempts)
        except asyncio.CancelledError:
            abandoned.set()
            raise

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        return self._reads.read(self._control.presign(name, _READ_S), start, length)

    def _name(self, key: str) -> str:
        return checked(self._prefix + key)

    def _told(self, found: Found) -> ObjectInfo:
        return ObjectInfo(found.name.removeprefix(self._prefix), found.size, found.modified_at)
