"""What a run of the `hatchvm` command left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code and output."""

    code: int
    out: str
    err: str


#: Runs a command line, e.g. `cli("vm", "list")`.
Cli = Callable[..., Outcome]
