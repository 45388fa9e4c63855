"""Fixtures of the stories."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatchvm.testing.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A house of its own."""
    async with World.running(tmp_path) as world:
        yield world
