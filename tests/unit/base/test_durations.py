"""Durations at their edges: the smallest, the longest, and letters and digits that only look like Go's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.units import MAX_DURATION_S, format_duration, parse_duration


@pytest.mark.parametrize("text", ["1\u00b5s", "1\u03bcs", "1us", "1000ns", "0.001ms", "1.us", ".000001s"])
def test_a_microsecond_in_every_spelling_of_go(text: str) -> None:
    assert parse_duration(text) == pytest.approx(1e-6)


@pytest.mark.parametrize("text", ["\u0663s", "\uff13s", "3\u017f", "+3s", ".s", "3S", "0x3s", "inf", "nans", "3s "])
def test_what_only_looks_like_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_the_longest_duration() -> None:
    assert parse_duration("2562047h47m") <= MAX_DURATION_S
    with pytest.raises(ValueError, match="longer than the longest"):
        parse_duration("2562048h")
    with pytest.raises(ValueError, match="longer than the longest"):
        parse_duration("9" * 63 + "h")


@given(st.floats(min_value=1e-9, max_value=1, exclude_max=True))
def test_less_than_a_second_survives_to_the_nanosecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.floats(min_value=0, max_value=9e9))
def test_what_is_written_can_be_read(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (0.25, "250ms"), (1e-8, "0.00001ms"), (1, "1s"), (59.9994, "59.999s"), (59.9996, "1m0s"),
        (119.99999, "2m0s"), (300, "5m0s"), (3600, "1h0m0s"), (5400, "1h30m0s"), (86400.5, "24h0m0.5s"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
