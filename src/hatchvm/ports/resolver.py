"""The resolver port: what the DNS says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Resolver(Protocol):
    """Asks the DNS, afresh each time."""

    async def txt(self, name: str) -> Sequence[str]:
        """The texts of the TXT records with this full name; empty if there are none. Raises Unavailable."""
