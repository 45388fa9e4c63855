"""The outside verifier, against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest

from hatchvm.base.errors import Invalid, Unavailable
from hatchvm.identity import remote
from hatchvm.identity.anyof import AnyOf
from hatchvm.identity.remote import RemoteVerifier

TTL_S = 5.0


@dataclass
class HandClock:
    """Moved by hand."""

    at_s: float = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at_s, UTC)

    def monotonic(self) -> float:
        return self.at_s


@dataclass
class Outside:
    """A verifier that knows some keys, or answers as told; it keeps what it was asked."""

    good: set[str] = field(default_factory=set)
    answer: tuple[int, bytes] | None = None
    silent: bool = False
    asked: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        key = json.loads(await reader.readexactly(length))["key"]
        self.requests.append(head)
        self.asked.append(key)
        if self.silent:
            await reader.read()
        else:
            status, body = self.answer or (200, json.dumps({"valid": key in self.good}).encode())
            close = b"content-type: application/json\r\nconnection: close"
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n%s\r\n\r\n%s" % (status, len(body), close, body))
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    outside = Outside(good={"good"})
    server = await asyncio.start_server(outside.serve, "127.0.0.1", 0)
    outside.port = server.sockets[0].getsockname()[1]
    async with server:
        yield outside


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def verifier(outside: Outside, clock: HandClock) -> AsyncIterator[RemoteVerifier]:
    url = f"http://127.0.0.1:{outside.port}/verify"
    verifier = RemoteVerifier(url, timeout_s=10, ttl_s=TTL_S, clock=clock)
    yield verifier
    await verifier.close()


async def test_it_posts_the_key_and_believes_the_answer(verifier: RemoteVerifier, outside: Outside) -> None:
    assert await verifier.verify("good")
    assert not await verifier.verify("bad")
    assert outside.asked == ["good", "bad"]
    assert all(head.startswith(b"POST /verify HTTP/1.1\r\n") for head in outside.requests)


@pytest.mark.parametrize("key", ["good", "bad"])
async def test_an_answer_is_believed_for_a_while(
    verifier: RemoteVerifier, outside: Outside, clock: HandClock, key: str
) -> None:
    first = await verifier.verify(key)
    outside.good ^= {key}
    clock.at_s = TTL_S - 0.001
    assert await verifier.verify(key) is first
    clock.at_s = TTL_S
    assert await verifier.verify(key) is not first
    assert outside.asked == [key, key]


async def test_a_flood_of_keys_is_forgotten_oldest_first(
    verifier: RemoteVerifier, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_REMEMBERED", 2)
    for key in ("a", "b", "c", "c", "b", "a"):
        await verifier.verify(key)
    assert outside.asked == ["a", "b", "c", "a"]


async def test_no_key_is_kept(verifier: RemoteVerifier) -> None:
    await verifier.verify("good")
    assert "good" not in repr(vars(verifier))


@pytest.mark.parametrize(
    "answer",
    [
        (500, b'{"valid": true}'),
        (302, b'{"valid": true}'),
        (200, b"yes"),
        (200, b"[true]"),
        (200, b"{}"),
        (200, b'{"valid": "true"}'),
        (200, b'{"valid": 1}'),
        (200, b"\xff\xfe"),
    ],
)
async def test_anything_else_is_no_answer_and_not_remembered(
    verifier: RemoteVerifier, outside: Outside, answer: tuple[int, bytes]
) -> None:
    outside.answer = answer
    with pytest.raises(Unavailable, match="the key verifier did not answer"):
        await verifier.verify("good")
    outside.answer = None
    assert await verifier.verify("good")


async def test_a_verifier_that_is_down_is_unavailable(outside: Outside, clock: HandClock) -> None:
    closed = await asyncio.start_server(outside.serve, "127.0.0.1", 0)
    port = closed.sockets[0].getsockname()[1]
    closed.close()
    await closed.wait_closed()
    verifier = RemoteVerifier(f"http://127.0.0.1:{port}/", timeout_s=10, ttl_s=TTL_S, clock=clock)
    with pytest.raises(Unavailable) as caught:
        await verifier.verify("good")
    assert "good" not in caught.value.message + caught.value.detail
    await verifier.close()


async def test_a_verifier_that_is_silent_is_unavailable(outside: Outside, clock: HandClock) -> None:
    outside.silent = True
    verifier = RemoteVerifier(f"http://127.0.0.1:{outside.port}/", timeout_s=0.05, ttl_s=TTL_S, clock=clock)
    with pytest.raises(Unavailable):
        await verifier.verify("good")
    await verifier.close()


@pytest.mark.parametrize("url", ["", "ftp://host/", "http://", "host:80", "http://[::1/", "http://host:x/"])
def test_a_bad_url_is_invalid(url: str, clock: HandClock) -> None:
    with pytest.raises(Invalid):
        RemoteVerifier(url, timeout_s=1, ttl_s=1, clock=clock)


@dataclass
class Fixed:
    """A verifier with one opinion."""

    opinion: bool | Unavailable

    async def verify(self, secret: str) -> bool:
        if isinstance(self.opinion, Unavailable):
            raise self.opinion
        return self.opinion


DOWN = Unavailable("down")


@pytest.mark.parametrize(
    ("opinions", "good"),
    [([], False), ([False, False], False), ([False, True], True), ([True, False], True), ([True, DOWN], True)],
)
async def test_any_of_several_is_enough(opinions: list[bool | Unavailable], good: bool) -> None:
    assert await AnyOf([Fixed(opinion) for opinion in opinions]).verify("key") is good


async def test_a_key_that_nobody_else_knows_depends_on_the_one_that_is_down() -> None:
    with pytest.raises(Unavailable):
        await AnyOf([Fixed(False), Fixed(DOWN)]).verify("key")
