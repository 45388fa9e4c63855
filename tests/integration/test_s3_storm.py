"""Hundreds of operations through an S3 store that fails in every way: no wrong resume, no committed snapshot lost."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from hatchvm.objects.s3.store import S3Store
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.s3 import front
from hatchvm.testing.s3.aging import AgingStore
from hatchvm.testing.s3.front import Faults
from hatchvm.testing.s3.places import empty_store, place
from hatchvm.testing.s3.server import S3Server
from hatchvm.testing.storm import Storm

pytest_plugins = ["hatchvm.testing.s3.fixtures"]

#: `make soak` takes the time for all of them; a short storm only proves that each kind of fault happened.
WHOLE: Final = "HATCH_SOAK" in os.environ
OPERATIONS: Final = 500 if WHOLE else 150
SEED: Final = 20261122
CALM: Final = Faults(flip=0.02)
SOME: Final = Faults(delay=0.2, refuse=0.1, reset=0.1, truncate=0.1, flip=0.1, drop=0.1)
HOPELESS: Final = Faults(delay=0.1, refuse=0.25, reset=0.25, truncate=0.3, flip=0.2, drop=0.3)
KINDS: Final = (front.DELAY, front.REFUSE, front.RESET, front.TRUNCATE, front.FLIP, front.DROP)


@pytest.mark.timeout(300)  # it takes half a minute of an idle machine with two cores
async def test_nothing_wrong_is_resumed_and_nothing_committed_is_lost(
    ceph_server: S3Server, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    dice, clock = random.Random(SEED), SteeredClock()
    async with front.before(ceph_server, Faults(), seed=SEED) as between:
        store = empty_store(between.server)
        await store.check()
        clean = S3Store(place(ceph_server, prefix=store._prefix))
        storm = Storm(tmp_path, AgingStore(store, clean, clock), clock, SEED)
        await storm.begin()
        while storm.operations < OPERATIONS:
            between.faults = dice.choices([CALM, SOME, HOPELESS], [3, 5, 2])[0]
            await dice.choices([storm.batch, storm.kill, storm.pass_time], [20, 2, 1])[0]()
        between.faults = Faults()
        await storm.settle()
        assert await storm.verify() > 0
        await storm.sweep()
        assert await storm.verify() > 0
        await storm.end()
    for name, told in (("injected", between.injected), ("succeeded", storm.succeeded), ("failed", storm.failed)):
        record_property(name, dict(told))
    assert all(between.injected[kind] >= (30 if WHOLE else 1) for kind in KINDS), between.injected
    assert storm.failed.total() >= (25 if WHOLE else 1), storm.failed
    assert storm.collected >= (25 if WHOLE else 0)  # the time that makes things old enough passes rarely
