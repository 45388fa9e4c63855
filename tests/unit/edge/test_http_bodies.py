"""Where bodies end. `tests/fuzz` shows that it does not matter how the network cuts them."""

from __future__ import annotations

import pytest

from hatchvm.edge.http.proto.body import Chunked, Sized
from hatchvm.edge.http.proto.fields import Malformed

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
