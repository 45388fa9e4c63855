"""Durations as Go writes them (`1h30m`, `250ms`), and sizes for people."""

from __future__ import annotations

import re
from typing import Final

MIB: Final = 1024 * 1024

_UNIT_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")
#: Go holds durations in 64-bit nanoseconds; nothing longer is accepted.
MAX_DURATION_S: Final = 2**63 / 1e9


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `30s`, `5m`, `1h30m`; `0` needs no unit.

    Raises ValueError with a sentence for anything else, negative durations included.
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
    """The shortest Go form, e.g. `1h30m0s`, `5m0s`, `250ms`."""
    if seconds < 1:
        return f"{seconds * 1000:g}ms" if seconds else "0s"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{tail}"
    return f"{minutes}m{tail}" if minutes else tail


def format_bytes(count: int) -> str:
    """`1.5 GiB`, `58 KiB`, `12 B`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
