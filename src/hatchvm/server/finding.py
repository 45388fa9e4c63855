"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fail`: no VM can run here; `warn`: something is slower or missing.

    `mend`: what to do; commands are lines of their own.
    """

    verdict: Literal["ok", "warn", "fail"]
    subject: str
    found: str
    mend: str = ""


def of_error(verdict: Literal["ok", "warn", "fail"], subject: str, error: Exception) -> Finding:
    """Our sentences have what to do behind their first semicolon."""
    found, _, mend = str(error).partition("; ")
    return Finding(verdict, subject, found, mend)
