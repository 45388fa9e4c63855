"""Killed again and again at random: what was promised is there, and nothing that nobody needs stays for ever."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Unavailable
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.kills import VMS, Host, Journal
from hatchvm.testing.objects import MemoryStore, no_hook
from hatchvm.testing.storeroom import Storeroom

CRASHES: Final = 200
SHARES: Final = 4

things = st.one_of(
    st.tuples(st.just("write"), st.integers(0, VMS - 1)),
    st.tuples(st.just("cut"), st.integers(0, VMS - 1)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(st.just("retain"), st.integers(0, VMS - 1)),
    st.tuples(st.just("delete vm"), st.integers(0, VMS - 1)),
    st.tuples(st.just("collect"), st.just(0)),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 1, 2.9, 3.1, 5.9, 6.1, 13])),
)


async def refuse_manifests(step: str, key: str) -> None:
    if step == "put" and key.endswith("/manifest"):
        raise Unavailable("the store went away")


async def play(root: Path, story: list[tuple[str, float]]) -> None:
    clock = SteeredClock()
    store = MemoryStore(clock, whole_seconds=True)
    host = Host(Storeroom(store, root, clock), Journal(), clock.advance)
    for what, which in story:
        store.hook = refuse_manifests if what == "cut" else no_hook
        if what == "write":
            await host.write(int(which))
        elif what == "cut":
            with pytest.raises(Unavailable):
                await host.write(int(which))
        elif what == "delete":
            await host.delete(int(which))
        elif what == "retain":
            await host.retain(int(which))
        elif what == "delete vm":
            await host.delete_vm(int(which))
        elif what == "collect":
            await host.room.collect()
        else:
            host.wait(which)
    store.hook = no_hook
    await host.settle()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(story=st.lists(things, max_size=25))
def test_whatever_is_done_every_snapshot_comes_back_and_nothing_else_stays(
    tmp_path_factory: pytest.TempPathFactory, story: list[tuple[str, float]]
) -> None:
    asyncio.run(play(tmp_path_factory.mktemp("host"), story))


class Killed(BaseException):
    """The end of the process, as far as one can have it inside one."""


class Death:
    """A store's hook that lets n moments pass, and nothing more ever again."""

    def __init__(self, n: int) -> None:
        self._left = n
        self.at = ""

    async def __call__(self, step: str, key: str) -> None:
        self._left -= 1
        if self._left <= 0:
            self.at = self.at or f"{step} {key.partition('/')[0]}"
            raise Killed


async def test_two_hundred_injected_crashes(tmp_path: Path) -> None:
    """Ten stores, twenty lives each: a new engine over what the last one left, on the same host."""
    dice = random.Random(20261122)
    moments: Counter[str] = Counter()
    for number in range(10):
        clock, journal = SteeredClock(), Journal()
        store = MemoryStore(clock, whole_seconds=True)
        for _ in range(CRASHES // 10):
            death = Death(dice.randint(1, 100))
            host = Host(Storeroom(store, tmp_path / str(number), clock), journal, clock.advance)
            await host.look()
            store.hook = death
            with pytest.raises(Killed):
                while True:
                    await host.something(dice)
            store.hook = no_hook
            moments[death.at] += 1
        await Host(Storeroom(store, tmp_path / str(number), clock), journal, clock.advance).settle()
    assert moments.total() == CRASHES
    assert {f"{call}{done} {where}" for call in ("put", "delete") for done in ("", " done") for where in PLACES} == {
        moment for moment in moments if moment.startswith(("put", "delete"))
    }


PLACES: Final = ("packs", "snapshots", "trash")


@pytest.mark.parametrize("share", range(SHARES))
def test_two_hundred_real_kills(tmp_path: Path, share: int) -> None:
    """A process that sends itself SIGKILL, over real files: see `hatchvm.testing.kills`."""
    argv = [sys.executable, "-m", "hatchvm.testing.kills", str(tmp_path), str(share), str(CRASHES // SHARES)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    told = Counter(line.partition(" ")[0] for line in (tmp_path / "journal").read_text().splitlines())
    assert told["stored"] > CRASHES // SHARES // 2
    assert told["begins"] - told["stored"] > CRASHES // SHARES // 8, "too few were killed while they wrote"
