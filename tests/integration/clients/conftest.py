"""Fixtures of the tests with real clients."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hatchvm.testing.edge.web import WebStage


@pytest.fixture
async def web() -> AsyncIterator[WebStage]:
    async with WebStage.open() as web:
        yield web
