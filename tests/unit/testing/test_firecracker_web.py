"""The stand-in's guest answers nobody while it stands still."""

from __future__ import annotations

import asyncio

from hatchvm.testing.firecracker.web import Web


async def test_a_request_that_meets_a_paused_guest_waits() -> None:
    running, answered = asyncio.Event(), 0

    def count() -> int:
        nonlocal answered
        assert running.is_set()
        answered += 1
        return answered

    server = await asyncio.start_server(Web(count, running).connected, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"GET /cgi-bin/count HTTP/1.0\r\n\r\n")
        await writer.drain()
        asyncio.get_running_loop().call_later(0.05, running.set)
        assert (await reader.read()).endswith(b"\r\n\r\n1")
        writer.close()
