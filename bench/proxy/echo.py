"""WebSocket clients that each send a message, wait for its echo, and send the next.

Arguments: port, host name, connections, bytes of a message, seconds. Prints a line like load.lua's.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final, cast

from bench.proxy import frames
from hatchvm.base.loop import loop_factory

_ASK: Final = (
    "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Client(asyncio.Protocol):
    """`echoes`: how many messages came back whole. `broken`: the connection ended or something else came back."""

    def __init__(self, host: str, size: int) -> None:
        self.echoes = 0
        self.broken = False
        self.switched = asyncio.get_running_loop().create_future()
        self._ask = _ASK.format(host=host).encode()
        self._message = frames.masked(b"m" * size)
        self._answer = frames.frame(b"m" * size)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._ask)

    def data_received(self, data: bytes) -> None:
        self._kept += data
        if not self.switched.done():
            head, found, _ = self._kept.partition(b"\r\n\r\n")
            if found:
                self._kept = b""
                self.switched.set_result(head.startswith(b"HTTP/1.1 101 "))
        elif self._kept == self._answer:
            self._kept = b""
            self.echoes += 1
            self.send()
        elif len(self._kept) >= len(self._answer):
            self.broken = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.broken = True
        if not self.switched.done():
            self.switched.set_result(False)

    def send(self) -> None:
        self._transport.write(self._message)


async def drive(port: int, host: str, connections: int, size: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    clients = [Client(host, size) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    refused = [await client.switched for client in clients].count(False)
    began = time.perf_counter()
    for client in clients:
        client.send()
    await asyncio.sleep(seconds)
    return {
        "requests": sum(client.echoes for client in clients),
        "seconds": time.perf_counter() - began,
        "refused": refused,
        "broken": sum(client.broken for client in clients),
    }


def main() -> None:
    port, host, connections, size, seconds = sys.argv[1:]
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        print(json.dumps(runner.run(drive(int(port), host, int(connections), int(size), float(seconds)))))


if __name__ == "__main__":
    main()
