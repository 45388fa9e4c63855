"""How long to leave a broken thing alone."""

from __future__ import annotations


def delay_s(failures: int, *, first_s: float = 1.0, cap_s: float = 60.0) -> float:
    """Seconds to wait after `failures` failures in a row: 0, first, then doubling up to the cap."""
    if failures <= 0:
        return 0.0
    return float(min(cap_s, first_s * 2 ** min(failures - 1, 30)))
