"""One frame in, one frame out, and nothing larger on the way."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.snapshots.codec import Codec, Encoder, decode


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=3000) | st.integers(1, 70_000).map(bytes))
def test_a_frame_comes_back_and_never_grows(plain: bytes) -> None:
    codec, stored = Encoder().encode(plain)
    assert (len(stored) < len(plain)) is (codec is Codec.ZSTD)
    assert decode(codec, memoryview(stored), len(plain)) == plain


@pytest.mark.parametrize("codec", list(Codec))
def test_a_frame_of_another_size_is_refused(codec: Codec) -> None:
    plain = b"a" * 5000
    stored = Encoder().encode(plain)[1] if codec is Codec.ZSTD else plain
    for size in (4999, 5001):
        with pytest.raises(ValueError, match="size"):
            decode(codec, memoryview(stored), size)


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    _, bomb = Encoder().encode(bytes(64 * 1024 * 1024))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="size"):
            decode(Codec.ZSTD, memoryview(bomb), 256 * 1024)
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()
