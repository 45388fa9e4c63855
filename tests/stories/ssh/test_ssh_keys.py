"""Users' SSH keys in the control plane: known at once, forgotten at once, and known again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, NotFound, Unavailable
from hatchvm.control.ssh_keys import SSHKeyCases
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"


async def test_ssh_keys(tmp_path: Path) -> None:
    async with World.running(tmp_path) as world:
        keys = world.house.ssh_keys
        key = await keys.create("ann", f"{LINE} ann@laptop")
        assert (key.public_key, await keys.knows(key.fingerprint)) == (LINE, True)
        with pytest.raises(Conflict, match="this SSH key is already in use"):
            await keys.create("bob", LINE)
        assert list(await keys.list()) == [key]

        restarted = SSHKeyCases(world.ctx)
        assert not await restarted.knows(key.fingerprint)
        await restarted.load()
        assert await restarted.knows(key.fingerprint)

        await keys.delete(key.id)
        assert not await keys.knows(key.fingerprint)
        with pytest.raises(NotFound):
            await keys.delete(key.id)


async def test_a_key_that_cannot_be_removed_is_refused_all_the_same(tmp_path: Path) -> None:
    async with World.running(tmp_path) as world:
        keys = world.house.ssh_keys
        key = await keys.create("ann", LINE)
        world.step.fail_at("commit", Unavailable("the database is gone"))
        with pytest.raises(Unavailable):
            await keys.delete(key.id)
        world.step.interfere = no_hook
        assert not await keys.knows(key.fingerprint)
        await keys.delete(key.id)
        assert not await keys.list()
