"""The identity port: who may come in."""

from __future__ import annotations

from typing import Protocol


class SSHKeys(Protocol):
    """The SSH keys of those who may reach VMs through Hatch's own SSH door."""

    async def knows(self, fingerprint: str) -> bool:
        """True if a user's key has this fingerprint (`SHA256:…`)."""


class Verifier(Protocol):
    """Tells good keys from bad ones. Called for every request: an answer may be a few seconds old."""

    async def verify(self, secret: str) -> bool:
        """True if `secret` is a key that may be used. Raises Unavailable if that cannot be told now."""
