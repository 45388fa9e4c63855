"""What a stand-in's guest serves on its network: how many requests it has answered in its life."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

PORT: Final = 8080
PATH: Final = "/cgi-bin/count"


class Web:
    """`count` answers one request; a guest that is paused answers none. One request a connection."""

    def __init__(self, count: Callable[[], int], running: asyncio.Event) -> None:
        self._count = count
        self._running = running

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            await self._running.wait()
            found = head.split(b" ", 2)[1:2] == [PATH.encode()]
            status, body = ("200 OK", str(self._count()).encode()) if found else ("404 Not Found", b"")
            fields = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close"
            writer.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()
