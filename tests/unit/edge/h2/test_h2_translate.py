"""Heads from HTTP/2 to HTTP/1.1 and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.edge.http.h2.message import Head
from hatchvm.edge.http.h2.translate import (
    Malformed,
    answer_fields,
    answer_head,
    chunk,
    request_fields,
    request_head,
    trailer_section,
)
from hatchvm.edge.http.proto import fields as proto
from hatchvm.edge.http.proto.request import parse_request

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a.b"), (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]


def changed(**values: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, values.get(name[1:].decode(), value)) for name, value in GET]


@pytest.mark.parametrize(
    ("headers", "ended", "head"),
    [
        (GET, True, b"GET / HTTP/1.1\r\nhost: a.b\r\n"),
        ([*GET, (b"host", b"A.B")], True, b"GET / HTTP/1.1\r\nhost: a.b\r\n"),
        ([GET[0], GET[1], GET[3], (b"host", b"c")], True, b"GET / HTTP/1.1\r\nhost: c\r\n"),
        ([GET[0], GET[1], GET[3]], True, b"GET / HTTP/1.1\r\n"),
        (POST, True, b"POST / HTTP/1.1\r\nhost: a.b\r\ncontent-length: 0\r\n"),
        (POST, False, b"POST / HTTP/1.1\r\nhost: a.b\r\ntransfer-encoding: chunked\r\n"),
        ([*POST, (b"content-length", b"3")], False, b"POST / HTTP/1.1\r\nhost: a.b\r\ncontent-length: 3\r\n"),
        (changed(method=b"OPTIONS", path=b"*"), True, b"OPTIONS * HTTP/1.1\r\nhost: a.b\r\n"),
        ([(b":method", b"CONNECT"), GET[2]], True, b"CONNECT a.b HTTP/1.1\r\nhost: a.b\r\n"),
        ([*GET, (b"te", b"trailers"), (b"x", b"")], True, b"GET / HTTP/1.1\r\nhost: a.b\r\nte: trailers\r\nx: \r\n"),
        (
            [*GET, (b"cookie", b"a=1"), (b"z", b"0"), (b"cookie", b"b=2")],
            True,
            b"GET / HTTP/1.1\r\nhost: a.b\r\nz: 0\r\ncookie: a=1; b=2\r\n",
        ),
    ],
)  # fmt: skip
def test_request_heads(headers: list[tuple[bytes, bytes]], ended: bool, head: bytes) -> None:
    translated = request_head(headers, ended=ended)
    assert translated.data == head + b"connection: close\r\n\r\n"
    assert translated.chunked == (b"chunked" in head)


@pytest.mark.parametrize(
    "headers",
    [
        *([field for field in GET if field[0] != name] for name in (b":method", b":scheme", b":path")),
        *([*GET, field] for field in GET),
        [(b"x", b"y"), *GET],
        [*GET, (b":status", b"200")],
        [*GET, (b":protocol", b"websocket")],
        changed(path=b""),
        changed(path=b"a"),
        changed(path=b"*"),
        changed(path=b"/ HTTP/1.1"),
        changed(path=b"http://a.b/"),
        changed(path=b"/\xff"),
        changed(path=b"/\r\nx: y"),
        changed(method=b"GET /"),
        changed(method=b""),
        changed(scheme=b"ht tp"),
        changed(authority=b"a.b\r\nx: y"),
        [*GET, (b"host", b"other")],
        [*GET, (b"host", b"a.b"), (b"host", b"a.b")],
        *([*GET, (name, b"x")] for name in (b"connection", b"upgrade", b"keep-alive", b"transfer-encoding", b"te")),
        *([*GET, (name, b"x")] for name in (b"X", b"", b"a b", b"a:b", b"a\r\nb", b"\xe4", b"proxy-connection")),
        *([*GET, (b"x", value)] for value in (b"\r", b"a\nb", b"\0", b" a", b"a\t")),
        [*GET, (b"content-length", b"1")],
        [*GET, (b"content-length", b"0"), (b"content-length", b"0")],
        [(b":method", b"CONNECT"), *GET[1:]],
        [(b":method", b"CONNECT")],
        [(b":method", b"CONNECT"), (b":authority", b"a b")],
    ],
)
def test_malformed_requests(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Malformed):
        request_head(headers, ended=True)


_BYTES = st.binary(max_size=12) | st.sampled_from([b"GET", b"/", b"a.b", b"http", b"trailers", b"0", b"chunked"])
_NAMES = _BYTES | st.sampled_from([b":method", b":path", b":scheme", b":authority", b"host", b"te", b"content-length"])


@given(st.lists(st.tuples(_NAMES, _BYTES), max_size=6), st.booleans(), st.booleans())
def test_nothing_breaks_out_of_its_line(extra: list[tuple[bytes, bytes]], ended: bool, usual: bool) -> None:
    """Whatever is let through is one head, with no more lines than fields, and with one framing only."""
    headers = [*(POST if usual else []), *extra]
    try:
        data = request_head(headers, ended=ended).data
    except Malformed:
        return
    assert data.count(b"\r\n\r\n") == 1
    assert data.endswith(b"\r\n\r\n")
    lines = data[:-4].split(b"\r\n")
    assert not any(b"\r" in line or b"\n" in line for line in lines)
    assert len(lines) <= len(headers) + 3
    try:
        request = parse_request(data[:-4])
    except proto.Malformed:
        return
    assert not request.keep_alive
    assert not (ended and request.length)


def test_trailers() -> None:
    assert trailer_section([(b"a", b"1"), (b"b", b"")]) == b"a: 1\r\nb: \r\n\r\n"
    for field in [(b":path", b"/"), (b"A", b"1"), (b"a", b"1\r\n")]:
        with pytest.raises(Malformed):
            trailer_section([field])


def test_answers_for_clients() -> None:
    fields = [(b"server", b"x"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"set-cookie", b"a")]
    head = Head(b"HTTP/1.1 404 Not Found", [*fields, (b"set-cookie", b"b")])
    assert answer_fields(head) == [
        (b":status", b"404"), (b"server", b"x"), (b"set-cookie", b"a"), (b"set-cookie", b"b"),
    ]  # fmt: skip


def test_requests_for_guests() -> None:
    fields = [(b"host", b"a.b"), (b"te", b"trailers"), (b"connection", b"TE"), (b"transfer-encoding", b"chunked")]
    assert request_fields(Head(b"POST /s/M HTTP/1.1", fields)) == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/s/M"),
        (b":authority", b"a.b"),
        (b"te", b"trailers"),
    ]


def test_answers_from_guests() -> None:
    fields = [(b":status", b"200"), (b"grpc-status", b"0"), (b"content-length", b"7")]
    assert answer_head(fields, ended=False) == (
        b"HTTP/1.1 200 \r\ngrpc-status: 0\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    assert answer_head(fields, ended=True) == b"HTTP/1.1 200 \r\ngrpc-status: 0\r\ncontent-length: 0\r\n\r\n"
    assert answer_head([(b":status", b"103")], ended=False) == b"HTTP/1.1 103 \r\n\r\n"
    for malformed in [[], [(b":status", b"20")], [(b":status", b"abc")], [(b":status", b"200"), (b"x", b"\r\n")]]:
        with pytest.raises(Malformed):
            answer_head(malformed, ended=True)


def test_chunks() -> None:
    assert chunk(bytes(17)) == b"11\r\n" + bytes(17) + b"\r\n"
