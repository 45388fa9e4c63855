"""Fixtures: the API over a house in memory, spoken to without a socket.

A plugin (`pytest_plugins = [...]` in a test module) and not a conftest: mypy takes all conftests for one module.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Counter

from hatchvm.api.app import create_app
from hatchvm.testing.house import FakeHouse


@pytest.fixture
def house() -> FakeHouse:
    return FakeHouse()


@pytest.fixture
def app(house: FakeHouse) -> FastAPI:
    registry = CollectorRegistry()
    Counter("hatch_wakes", "wakes", registry=registry).inc()
    return create_app(
        house,
        house.keys,
        base_url_for=lambda subdomain: f"http://{subdomain}.hatch.localhost:9090",
        socket_path_for=lambda vm_id: f"/data/vms/{vm_id}/qmp.sock",
        version="1.2.3",
        registry=registry,
    )


@pytest.fixture
async def stranger(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without a key."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://hatch") as client:
        yield client


@pytest.fixture
async def client(app: FastAPI, house: FakeHouse) -> AsyncIterator[httpx2.AsyncClient]:
    """A client with a key."""
    _, secret = await house.keys.create("test")
    headers = {"Authorization": f"Bearer {secret}"}
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://hatch", headers=headers) as client:
        yield client
