"""Several verifiers as one."""

from __future__ import annotations

from collections.abc import Sequence

from hatchvm.ports.identity import Verifier


class AnyOf:
    """Implements `ports.identity.Verifier`: asks in order until one says yes, so the cheapest goes first."""

    def __init__(self, verifiers: Sequence[Verifier]) -> None:
        self._verifiers = tuple(verifiers)

    async def verify(self, secret: str) -> bool:
        for verifier in self._verifiers:
            if await verifier.verify(secret):
                return True
        return False
