"""Reading messages that the relay wrote, in whatever pieces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.edge.http.h2.message import Data, End, Fields, Head, MessageReader, Part

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def read(pieces: list[bytes], *, answer: bool = True, bodiless: bool = False, eof: bool = False) -> list[Part]:
    """The parts, with neighbouring data joined."""
    reader = MessageReader(answer=answer, bodiless=bodiless)
    parts: list[Part] = []
    for part in [*(part for piece in pieces for part in reader.feed(piece)), *(reader.eof() if eof else [])]:
        if isinstance(part, Data) and parts and isinstance(parts[-1], Data):
            parts[-1] = Data(parts[-1].data + part.data)
        else:
            parts.append(part)
    assert reader.done == isinstance(parts[-1] if parts else None, End)
    return parts


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"HTTP/1.1 204 No\r\n\r\n", [Head(b"HTTP/1.1 204 No", [], last=True), End()]),
        (
            b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok",
            [Head(b"HTTP/1.1 200 ", [(b"content-length", b"2")]), Data(b"ok"), End()],
        ),
        (
            b"HTTP/1.1 200 \r\ncontent-length:0\r\n\r\n",
            [Head(b"HTTP/1.1 200 ", [(b"content-length", b"0")], last=True), End()],
        ),
        (
            b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n",
            [
                Head(b"HTTP/1.1 100 ", [], interim=True),
                Head(b"HTTP/1.1 304 ", [(b"content-length", b"9")], last=True),
                End(),
            ],
        ),
        (
            CHUNKED + b"2;e=1\r\nab\r\n1\r\nc\r\n0\r\nA: 1 \r\nb:\r\n\r\n",
            [
                Head(b"HTTP/1.1 200 OK", [(b"transfer-encoding", b"chunked")]),
                Data(b"abc"),
                End([(b"a", b"1"), (b"b", b"")]),
            ],
        ),
    ],
)
@given(cut=st.data())
def test_answers_in_pieces(data: bytes, parts: list[Part], cut: st.DataObject) -> None:
    cuts = sorted(cut.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    assert read(pieces) == parts


def test_an_answer_to_head_has_no_body() -> None:
    head = b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\n"
    assert read([head], bodiless=True) == [Head(b"HTTP/1.1 200 ", [(b"content-length", b"5")], last=True), End()]


def test_a_body_until_the_end_of_the_connection() -> None:
    fields: Fields = []
    assert read([b"HTTP/1.1 200 \r\n\r\n", b"ab"], eof=True) == [Head(b"HTTP/1.1 200 ", fields), Data(b"ab"), End()]


def test_other_bodies_do_not_end_with_the_connection() -> None:
    reader = MessageReader(answer=True)
    reader.feed(CHUNKED + b"2\r\nab")
    assert reader.eof() == []
    assert not reader.done


def test_a_request_without_framing_has_no_body() -> None:
    assert read([b"GET / HTTP/1.1\r\n\r\n"], answer=False) == [Head(b"GET / HTTP/1.1", [], last=True), End()]
