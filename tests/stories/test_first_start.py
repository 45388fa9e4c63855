"""The first start makes a key for the owner of the data directory; the next ones leave it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatchvm.base.errors import Exhausted
from hatchvm.server import first_start
from hatchvm.server.config import load
from hatchvm.server.vmm import qemu
from hatchvm.server.wiring import Built, build


@pytest.fixture
async def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Built]:
    monkeypatch.setenv("HATCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("HATCH_CACHE_DIR", str(tmp_path / "cache"))
    parts = build(load(), qemu(load()))
    await parts.store.open()
    yield parts
    await parts.store.close()
    parts.lock.close()


def secret(built: Built) -> str:
    return built.paths.api_key.read_text().strip()


async def test_the_key_in_the_file_opens_the_door_and_is_made_once(built: Built) -> None:
    said: list[str] = []
    await first_start.ensure_key(built, said.append)
    assert await built.verifier.verify(secret(built))
    assert built.paths.api_key.stat().st_mode & 0o777 == 0o600
    assert secret(built) in said[0]
    before = secret(built)
    await first_start.ensure_key(built, said.append)
    assert (secret(built), len(said)) == (before, 2)


async def test_a_start_that_ends_between_file_and_row_locks_nobody_out(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise Exhausted("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(built.ctx.clock, "now", full)  # called between the two
        with pytest.raises(Exhausted):
            await first_start.ensure_key(built, lambda line: None)
    assert not await built.verifier.verify(secret(built))
    await first_start.ensure_key(built, lambda line: None)
    assert await built.verifier.verify(secret(built))
