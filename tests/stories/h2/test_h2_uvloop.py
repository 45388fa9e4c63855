"""HTTP/2 on uvloop: where a connection changes its protocol under way, and pauses."""

from __future__ import annotations

import uvloop

from hatchvm.testing.http.h2 import H2Client
from hatchvm.testing.stage import Stage, Wire

SIZE = 2_000_000


async def story() -> None:
    async def guest(wire: Wire) -> None:
        while True:
            head = await wire.head()
            if b"PUT" in head:
                await wire.exactly(SIZE)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))

    async with Stage.open() as stage:
        await stage.guest(guest)
        client = await H2Client.open(stage)
        for stream in [await client.ask() for _ in range(4)]:
            assert len((await client.answer(stream)).body) == SIZE
        upload = await client.ask(method="PUT", end=False, fields=[("content-length", str(SIZE))])
        left = SIZE
        while left:
            room = min(left, client.conn.local_flow_control_window(upload), 16_384)
            if room:
                left -= room
                await client.say(upload, bytes(room), end=not left)
            else:
                await client.read()
        assert len((await client.answer(upload)).body) == SIZE
        plain = await stage.client()
        await plain.send(b"GET / HTTP/1.1\r\nHost: app.hatch.local\r\n\r\n" * 2)
        for _ in range(2):
            assert len((await plain.answer())[1]) == SIZE
        client.wire.close()


def test_on_uvloop() -> None:
    uvloop.run(story())
