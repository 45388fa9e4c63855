"""Durations as Go writes them (`1h30m`, `250ms`), and sizes for people."""

from __future__ import annotations

import re
from typing import Final

MIB: Final = 1024 * 1024

_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")
#: Go holds durations in 64-bit nanoseconds; nothing longer is accepted.
MAX_DURATION_S: Final = 2**63 / 1e9


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `30s`, `5m`, `1h30m`; `0` needs no unit.

    Raises ValueError with a sentence for anything else, signs included.
    """
    if text == "0":
        return 0.0
    if len(text) > 64 or not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[:64]!r} is not a duration; write it like 30s, 5m or 1h30m")
    seconds = sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))
    if seconds > MAX_DURATION_S:
        raise ValueError(f"{text!r} is longer than the longest duration, about 292 years")
    return seconds


def format_duration(seconds: float) -> str:
    """The form Go writes, e.g. `1h30m0s`, `5m0s`, `250ms`; to the millisecond from one second on."""
    if seconds < 1:
        return f"{seconds * 1000:.6f}".rstrip("0").rstrip(".") + "ms" if seconds else "0s"
    minutes, rest_ms = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest_ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


_SIZES: Final = {"": 1, "B": 1, "KiB": 1024, "MiB": MIB, "GiB": 1024 * MIB, "TiB": 1024 * 1024 * MIB}
_SIZE: Final = re.compile(r"([0-9]{1,16}(?:\.[0-9]{1,6})?) ?([KMGT]iB|B|)")


def parse_bytes(text: str) -> int:
    """What `format_bytes` writes, such as `1.5 GiB` or `64MiB`, or a plain number of bytes; ValueError otherwise."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:64]!r} is not a size; write it like 64MiB or 1.5GiB")
    return round(float(match[1]) * _SIZES[match[2]])


def format_bytes(count: int) -> str:
    """`1.5 GiB`, `58.0 KiB`, `12 B`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
