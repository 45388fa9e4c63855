"""Where bodies end, and that it does not matter how the network cuts them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.edge.http.proto.body import Chunked, Sized
from hatchvm.edge.http.proto.fields import Malformed
from hatchvm.testing.edge.relay import Command, Conversation, SendClient, SendUpstream

BODY = b"5;ext=1\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\nX-B:\r\n\r\n"


def test_a_sized_body() -> None:
    body = Sized(5)
    assert body.feed(b"abc") == (b"abc", b"")
    assert not body.done
    assert body.feed(b"defg") == (b"de", b"fg")
    assert body.done


def test_a_chunked_body_passes_as_it_is() -> None:
    body = Chunked()
    assert body.feed(BODY + b"next") == (BODY, b"next")
    assert body.done


def test_an_unfinished_line_waits() -> None:
    body = Chunked()
    assert body.feed(b"5\r\nhel") == (b"5\r\nhel", b"")
    assert body.feed(b"lo\r") == (b"lo", b"")
    assert body.feed(b"\n0") == (b"\r\n", b"")
    assert body.feed(b"\r\n\r\n") == (b"0\r\n\r\n", b"")
    assert body.done


def test_unwrapped_only_the_payload_passes() -> None:
    body = Chunked(unwrap=True)
    assert body.feed(BODY + b"next") == (b"hello0123456789", b"next")


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1 \r\n",
        b" 1\r\n",
        b"1\n",
        b"\n",
        b"1;a\n",
        b"1;a\rb\r\n",
        b"1;\x00\r\n",
        b"1_0\r\n",
        b"F" * 16 + b"\r\n",
        b"1;" + b"a" * 5000,
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"1\r\na\rb",
        b"0\r\nX\r\n",
        b"0\r\n X: 1\r\n",
        b"0\r\nX: 1\n",
        b"0\r\nX: 1\r2\r\n",
        b"0\r\nX: \x00\r\n",
        b"0\r\nContent-Length: 1\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n",
        b"0\r\nHost: a\r\n",
        b"0\r\n" + b"X-A: 1\r\n" * 5000,
    ],
)
@pytest.mark.parametrize("size", [1, 10**6])
def test_refused_chunks(data: bytes, size: int) -> None:
    body = Chunked()
    with pytest.raises(Malformed):
        for at in range(0, len(data), size):
            body.feed(data[at : at + size])


REQUESTS = (
    b"POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"
    b"GET /b HTTP/1.1\r\nHost: app\r\n\r\n"
    b"PUT /c HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY
) + b"GET /d HTTP/1.1\r\nHost: app\r\n\r\n"
ANSWERS = [
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 304 Not Modified\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    at = [0, *sorted({cut % len(data) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(at) if a < b]


def merged(commands: list[Command]) -> list[Command]:
    """Writes in a row are one write: only the bytes and their place among other commands count."""
    out: list[Command] = []
    for command in commands:
        match out[-1] if out else None, command:
            case SendClient(before), SendClient(after):
                out[-1] = SendClient(before + after)
            case SendUpstream(before), SendUpstream(after):
                out[-1] = SendUpstream(before + after)
            case _:
                out.append(command)
    return out


def talk(request_pieces: list[bytes], answer_cuts: list[int]) -> list[Command]:
    """The whole conversation: every request answered as soon as all of the client's bytes are there."""
    relay = Conversation(forwarded=b"")
    commands = [command for piece in request_pieces for command in relay.client_data(piece)]
    for answer in ANSWERS:
        commands += relay.upstream_ready(reused=False)
        for piece in pieces(answer, answer_cuts):
            commands += relay.upstream_data(piece)
    return merged(commands + relay.upstream_eof())


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**4), max_size=20), st.lists(st.integers(0, 10**4), max_size=20))
def test_the_cuts_of_the_network_do_not_matter(request_cuts: list[int], answer_cuts: list[int]) -> None:
    assert talk(pieces(REQUESTS, request_cuts), answer_cuts) == talk([REQUESTS], [])


def test_byte_by_byte() -> None:
    assert talk([bytes([byte]) for byte in REQUESTS], list(range(500))) == talk([REQUESTS], [])
