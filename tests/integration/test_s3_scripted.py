"""What no server does on demand: a peer on loopback, scripted byte by byte."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.base.units import MIB
from hatchvm.objects.s3.control import Place
from hatchvm.objects.s3.requests import ATTEMPTS
from hatchvm.objects.s3.store import _CHECK_ATTEMPTS, S3Store

Answer = Callable[[bytes, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[S3Store]:
    """A store over a server that answers each request by `answer(head, reader, writer)`, then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await answer(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        place = Place("bucket", endpoint, "us-east-1", "key", "secret", path_style=True)
        yield S3Store(place, first_pause_s=0.001)
    finally:
        server.close()


async def test_of_a_whole_object_only_the_range_is_kept() -> None:
    """A server without ranges: what comes after the range is not waited for, and never was asked to be sent."""
    sent = 0

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        assert b"bytes=3145728-3145737" in head
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1024 * MIB))
        for number in range(1024):
            writer.write(bytes([number % 256]) * MIB)
            await writer.drain()
            sent += MIB

    async with scripted(answer) as store:
        assert await store.get("k", start=3 * MIB, length=10) == b"\x03" * 10
    assert sent < 64 * MIB  # what sockets hold


async def test_a_cancelled_upload_is_broken_off_before_its_end() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()
    arrived = 0

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        begun.set()
        await cancelled.wait()
        while data := await reader.read(65536):
            arrived += len(data)
        ended.set()

    cancelled = asyncio.Event()
    size = 16 * MIB
    async with scripted(answer) as store:
        task = asyncio.ensure_future(store.put("k", bytes(size)))  # noqa: TID251  # awaited below
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        cancelled.set()
        await ended.wait()
    assert arrived < size


@pytest.mark.parametrize("method", ["get", "put", "check"])
async def test_a_silent_server_is_given_up(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read()

    monkeypatch.setattr("hatchvm.objects.s3.control.READ_S", 0.05)
    monkeypatch.setattr("hatchvm.objects.s3.bulk.READ_S", 0.05)
    async with scripted(answer) as store:
        calls = {"get": store.get("k"), "put": store.put("k", b"1"), "check": store.check()}
        with pytest.raises(Unavailable, match="does not answer; check HATCH_S3_ENDPOINT"):
            await calls.pop(method)
        for call in calls.values():
            call.close()
        while asked < (_CHECK_ATTEMPTS if method == "check" else ATTEMPTS):  # the last may still be on its way
            await asyncio.sleep(0)
    assert asked == (_CHECK_ATTEMPTS if method == "check" else ATTEMPTS)


async def test_a_store_that_refuses_conditions_altogether_is_written_by_one() -> None:
    stored: dict[bytes, bytes] = {}

    async def answer(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = head.split(b" ", 2)
        name = path.split(b"?")[0]
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
        body = await reader.readexactly(int(fields.get(b"content-length", 0)))
        status, content = b"200 OK", b""
        if b"if-none-match" in fields:
            status, content = b"501 Not Implemented", b"<Error><Code>NotImplemented</Code></Error>"
        elif method == b"PUT":
            stored[name] = body
        elif b"list-type=2" in path:
            entry = b"<Contents><Key>%s</Key><Size>5</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            content = b"".join(entry % name.removeprefix(b"/bucket/") for name in stored)
            content = b"<ListBucketResult>%s</ListBucketResult>" % content
        elif method == b"DELETE":
            stored.pop(name, None)
        elif name in stored:
            content = stored[name]
        else:
            status = b"404 Not Found"
        writer.write(
            b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content)
        )

    async with scripted(answer) as store:
        await store.put("k", b"1", if_absent=True)
        assert store.caution()
    assert stored == {b"/bucket/k": b"1"}
