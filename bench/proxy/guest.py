"""A guest that reads a POST's body before it answers, and one that echoes WebSocket messages: `--port`, on loopback.

Just enough of HTTP for what `load.lua` and `echo.py` send.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sys
from typing import Final, cast

from bench.proxy import frames
from hatchvm.base.loop import loop_factory

_OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Guest(asyncio.Protocol):
    """One connection: requests, or messages after an upgrade."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._kept = b""
        self._body_left = 0
        self._echoes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._body_left:
            taken = min(self._body_left, len(data))
            self._body_left -= taken
            data = data[taken:]
            if not self._body_left:
                self._transport.write(_OK)
        if not data:
            return
        self._kept += data
        if self._echoes:
            self._echo()
        else:
            self._heads()

    def _heads(self) -> None:
        head, found, rest = self._kept.partition(b"\r\n\r\n")
        if not found:
            return
        self._kept = b""
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        if b"upgrade" in fields:
            accept = base64.b64encode(hashlib.sha1(fields[b"sec-websocket-key"] + _MAGIC).digest())
            self._transport.write(frames.SWITCHED % accept)
            self._echoes = True
            return
        self._body_left = int(fields.get(b"content-length", b"0"))
        if self._body_left:
            self.data_received(rest)
        else:
            self._transport.write(_OK)

    def _echo(self) -> None:
        payloads, self._kept = frames.unmasked(self._kept)
        if payloads:
            self._transport.write(b"".join(map(frames.frame, payloads)))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Guest, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(int(sys.argv[1])))
