"""Talk to a Hatch daemon from Python."""

from __future__ import annotations

from hatchvm.client.client import Client
from hatchvm.client.errors import ApiError

__all__ = ["ApiError", "Client"]
