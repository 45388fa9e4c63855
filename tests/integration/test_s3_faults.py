"""The S3 store behind a front that fails on purpose: never wrong data, never a success that did not happen."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets

import pytest

from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable
from hatchvm.base.units import MIB
from hatchvm.objects.s3.store import S3Store
from hatchvm.testing.s3 import front
from hatchvm.testing.s3.front import Faults
from hatchvm.testing.s3.places import empty_store, place
from hatchvm.testing.s3.server import S3Server

pytest_plugins = ["hatchvm.testing.s3.fixtures"]

EVERYTHING = Faults(delay=0.2, refuse=0.15, reset=0.15, truncate=0.15, drop=0.15)
KINDS = (front.DELAY, front.REFUSE, front.RESET, front.TRUNCATE, front.DROP)
HOPELESS = Faults(delay=0.1, refuse=0.3, reset=0.3, truncate=0.3, drop=0.4)


@pytest.fixture(params=["ceph", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


def beside(store: S3Store, server: S3Server) -> S3Store:
    """The same objects, without a front."""
    return S3Store(place(server, prefix=store._prefix))


@pytest.mark.parametrize("faults", [EVERYTHING, HOPELESS], ids=["some", "hopeless"])
@pytest.mark.parametrize("seed", range(3))
async def test_what_is_told_is_so(server: S3Server, faults: Faults, seed: int) -> None:
    dice = random.Random(seed)
    async with front.before(server, faults, seed=seed) as between:
        store = empty_store(between.server)
        clean = beside(store, server)
        told: dict[str, int] = {"stored": 0, "read": 0, "refused": 0}

        async def one(number: int) -> None:
            key, data = f"k/{number}", dice.randbytes(dice.choice([0, 1, 5000, 300_000]))
            try:
                await store.put(key, data)
            except Unavailable:
                told["refused"] += 1
                await clean.put(key, data)
            else:
                told["stored"] += 1
                assert await clean.get(key) == data
            start, length = dice.randrange(len(data) + 1), dice.choice([None, 0, 1, 4000, 400_000])
            try:
                read = await store.get(key, start=start, length=length)
                assert (await store.info(key)).size == len(data)
            except Unavailable:
                told["refused"] += 1
            else:
                told["read"] += 1
                assert read == data[start : None if length is None else start + length]
            try:
                await store.delete(key)
            except Unavailable:
                told["refused"] += 1
            else:
                with pytest.raises(NotFound):
                    await clean.info(key)

        # Which dice a request meets depends on the others: it goes on until it has met everything.
        numbers = itertools.count()
        wanted = ["refused"] if faults is HOPELESS else ["stored", "read"]
        while not (all(between.injected[kind] for kind in KINDS) and all(told[what] for what in wanted)):
            await asyncio.gather(*(one(next(numbers)) for _ in range(8)))


@pytest.mark.parametrize("seed", range(3))
async def test_of_many_creators_at_most_one_is_told_that_it_won(ceph_server: S3Server, seed: int) -> None:
    async with front.before(ceph_server, EVERYTHING, seed=seed) as between:
        store = empty_store(between.server)
        clean = beside(store, ceph_server)
        await clean.check()
        store._conditional = True  # as a check found out before the trouble began
        for number in range(6):
            bodies = [secrets.token_bytes(1000) for _ in range(4)]
            outcomes = await asyncio.gather(
                *(store.put(f"k{number}", body, if_absent=True) for body in bodies), return_exceptions=True
            )
            assert all(isinstance(outcome, Conflict | Unavailable) for outcome in outcomes if outcome)
            won = [body for body, outcome in zip(bodies, outcomes, strict=True) if outcome is None]
            assert len(won) <= 1
            if won or any(isinstance(outcome, Conflict) for outcome in outcomes):
                assert await clean.get(f"k{number}") in (won or bodies)


async def test_a_write_whose_answer_never_comes_is_not_a_success(server: S3Server) -> None:
    async with front.before(server, Faults(), seed=1) as between:
        store = empty_store(between.server)
        await store.check()
        between.faults = Faults(drop=1)
        for create in (False, True):
            with pytest.raises((Unavailable, Conflict)):
                await store.put(f"k{create}", b"1", if_absent=create)
        assert between.injected[front.DROP] >= 2
        between.faults = Faults()
        assert await store.get("kFalse") == await store.get("kTrue") == b"1"  # it had reached the server


async def test_a_creator_whose_answer_got_lost_finds_its_own_object(ceph_server: S3Server) -> None:
    async with front.before(ceph_server, Faults(), seed=1) as between:
        store = empty_store(between.server)
        await store.check()
        between.on_request = lambda request: setattr(between, "faults", Faults(drop=not between.injected[front.DROP]))
        with pytest.raises(Conflict):
            await store.put("k", b"mine", if_absent=True)
        assert between.injected[front.DROP] == 1
        assert await store.get("k") == b"mine"


@pytest.mark.parametrize("fault", [Faults(truncate=1), Faults(reset=1), Faults(refuse=1)], ids=["cut", "reset", "5xx"])
async def test_a_store_that_never_answers_is_given_up(server: S3Server, fault: Faults) -> None:
    async with front.before(server, Faults(), seed=1) as between:
        store = empty_store(between.server)
        await store.put("k", b"0123456789")
        between.faults = fault
        for call in (store.get("k"), store.get("k", start=3, length=4), anext(aiter(store.list("")))):
            with pytest.raises(Unavailable):
                await call
        assert sum(between.injected.values()) == 3 * 6


async def test_a_flipped_bit_comes_through_once_and_nothing_else_does(server: S3Server) -> None:
    """The store cannot see it; whoever reads compares digests."""
    data = random.Random(1).randbytes(100_000)
    async with front.before(server, Faults(), seed=1) as between:
        store = empty_store(between.server)
        await store.put("k", data)
        between.faults = Faults(flip=0.5)
        wrong = 0
        for _ in range(20):
            read = await store.get("k")
            flipped = [(a ^ b).bit_count() for a, b in zip(read, data, strict=True) if a != b]
            assert flipped in ([], [1])
            wrong += bool(flipped)
        assert 0 < wrong == between.injected[front.FLIP]


@pytest.mark.parametrize("seed", range(2))
async def test_parts_survive_what_a_whole_would_not(server: S3Server, seed: int) -> None:
    data = random.Random(seed).randbytes(40 * MIB)
    async with front.before(server, EVERYTHING, seed=seed) as between:
        store = empty_store(between.server)
        clean = beside(store, server)
        try:
            await store.put("k", data)
        except HatchError as error:
            assert isinstance(error, Unavailable)
            await clean.put("k", data)
        assert await clean.get("k") == data
        assert await store.get("k", start=5, length=20 * MIB) == data[5 : 5 + 20 * MIB]
