"""`/readyz`: a house that cannot run VMs, store snapshots or read its rows says which."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatchvm.base.errors import HatchError, Unavailable, Unsupported
from hatchvm.testing.world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.running(tmp_path) as world:
        yield world


async def test_a_whole_house_is_ready(world: World) -> None:
    await world.house.ready()


async def test_a_missing_vmm_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing() -> str:
        raise Unsupported("qemu is not installed")

    monkeypatch.setattr(world.driver, "check", missing)
    with pytest.raises(Unavailable, match="not ready: qemu is not installed"):
        await world.house.ready()


async def test_a_store_that_cannot_be_written_is_named(world: World) -> None:
    shutil.rmtree(world.paths.objects, ignore_errors=True)
    world.paths.objects.write_text("a file where the folder should be")
    with pytest.raises(HatchError, match="not ready: "):
        await world.house.ready()
