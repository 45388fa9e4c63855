"""Every promise of `ports.objects.ObjectStore`, kept by every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import urllib3

from hatchvm.base.errors import Conflict, Invalid, NotFound
from hatchvm.objects.directory import DirectoryStore
from hatchvm.ports.objects import ObjectStore
from hatchvm.testing.s3.places import empty_store

pytest_plugins = ["hatchvm.testing.s3.fixtures"]

#: One line an implementation: its name and how to open an empty store.
STORES: dict[str, Callable[[pytest.FixtureRequest], ObjectStore]] = {
    "directory": lambda request: DirectoryStore(request.getfixturevalue("tmp_path") / "objects"),
    "ceph": lambda request: empty_store(request.getfixturevalue("ceph_server")),
    "rclone": lambda request: empty_store(request.getfixturevalue("rclone_server")),
}

EVERY_BYTE = bytes(range(256)) * 5
HOSTILE = ["", "/", "/etc/passwd", "../x", "a/../x", "a/./x", "a/..", "..", ".", "a//x", "a/", "a\\x", "a\0x", "a x"]
HOSTILE += ["ä", "a\n", "~tmp/x", "a:b", "x" * 2000, "a/" * 800 + "a", "a/%2e%2e/x"]


@pytest.fixture(params=list(STORES))
def store(request: pytest.FixtureRequest) -> ObjectStore:
    return STORES[request.param](request)


async def keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key async for info in store.list(prefix)]


@pytest.mark.parametrize("data", [b"", b"\0", EVERY_BYTE, b"x" * (3 * 1024 * 1024 + 7)], ids=len)
async def test_what_was_put_is_got(store: ObjectStore, data: bytes) -> None:
    await store.put("a/b.c/D_e-f", data)
    assert await store.get("a/b.c/D_e-f") == data


async def test_a_put_replaces_the_whole_object(store: ObjectStore) -> None:
    await store.put("k", b"first and longer")
    await store.put("k", b"second")
    await store.put("k", b"second")
    assert await store.get("k") == b"second"
    assert await keys(store, "") == ["k"]


async def test_if_absent_refuses_an_existing_key_and_leaves_it(store: ObjectStore) -> None:
    await store.put("k", b"first", if_absent=True)
    with pytest.raises(Conflict):
        await store.put("k", b"second", if_absent=True)
    assert await store.get("k") == b"first"
    await store.delete("k")
    await store.put("k", b"third", if_absent=True)
    assert await store.get("k") == b"third"


async def test_one_of_sixteen_racing_creators_wins(store: ObjectStore) -> None:
    bodies = [bytes([n]) * 100_000 for n in range(16)]
    outcomes = await asyncio.gather(*(store.put("k", b, if_absent=True) for b in bodies), return_exceptions=True)
    winners = [body for body, outcome in zip(bodies, outcomes, strict=True) if outcome is None]
    assert len(winners) == 1
    assert all(outcome is None or isinstance(outcome, Conflict) for outcome in outcomes)
    assert await store.get("k") == winners[0]


async def test_racing_overwriters_leave_one_whole_object(store: ObjectStore) -> None:
    bodies = [bytes([n]) * 300_000 for n in range(8)]
    await asyncio.gather(*(store.put("k", body) for body in bodies))
    assert await store.get("k") in bodies


async def test_puts_and_deletes_of_neighbours_do_not_disturb_each_other(store: ObjectStore) -> None:
    async def churn(name: str) -> None:
        for _ in range(20):
            await store.put(f"folder/deep/{name}", name.encode())
            await store.delete(f"folder/deep/{name}")
        await store.put(f"folder/deep/{name}", name.encode())

    await asyncio.gather(*(churn(name) for name in "abcd"))
    assert await keys(store, "folder/") == [f"folder/deep/{name}" for name in "abcd"]


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (0, 1), (0, 10), (3, 4), (9, 1), (9, 5), (10, 1), (11, 5), (1000, 1000), (0, 11), (4, None), (12, None)],
)
async def test_ranges_end_with_the_object(store: ObjectStore, start: int, length: int | None) -> None:
    data = b"0123456789"
    await store.put("k", data)
    end = None if length is None else start + length
    assert await store.get("k", start=start, length=length) == data[start:end]


async def test_a_range_of_an_empty_object_is_empty(store: ObjectStore) -> None:
    await store.put("k", b"")
    assert await store.get("k", start=0, length=5) == b""


async def test_info_tells_size_and_age(store: ObjectStore) -> None:
    await store.put("a/k", b"12345")
    info = await store.info("a/k")
    assert (info.key, info.size) == ("a/k", 5)
    assert abs(datetime.now(UTC) - info.modified_at) < timedelta(minutes=5)  # noqa: TID251  # the store's own clock
    assert [listed async for listed in store.list("a/")] == [info]


async def test_list_is_in_key_order_and_by_plain_prefix(store: ObjectStore) -> None:
    stored = ["a", "a-b", "a.b/c", "b/c", "b/c.d", "b-/x", "b.d", "b0", "b/a/z", "B", "b/c-/y", "_", "ab/c/d/e"]
    for key in stored:
        await store.put(key, b"")
    for prefix in ["", "a", "a.", "b", "b/", "b/c", "b/c-", "b/c-/", "ab/c/d/e", "ab/c/d/e/", "nothing", "no/where/"]:
        assert await keys(store, prefix) == sorted(key for key in stored if key.startswith(prefix)), prefix


async def test_list_of_an_empty_store_is_empty(store: ObjectStore) -> None:
    assert await keys(store, "") == []


async def test_a_list_goes_on_while_objects_vanish(store: ObjectStore) -> None:
    for name in "abcd":
        await store.put(f"f/{name}/x", b"")
    seen = []
    async for info in store.list("f/"):
        seen.append(info.key)
        await store.delete("f/c/x")
    assert [key for key in seen if key != "f/c/x"] == ["f/a/x", "f/b/x", "f/d/x"]


async def test_a_deleted_object_is_gone_and_may_be_deleted_again(store: ObjectStore) -> None:
    await store.put("a/k", b"1")
    await store.put("a/other", b"2")
    await store.delete("a/k")
    await store.delete("a/k")
    await store.delete("never/was")
    assert await keys(store, "") == ["a/other"]
    with pytest.raises(NotFound):
        await store.get("a/k")


@pytest.mark.parametrize("key", ["k", "a/k", "a/b/c", "a/b/c/d"])
async def test_missing_objects_are_not_found(store: ObjectStore, key: str) -> None:
    await store.put("a/b", b"an object, not a folder")
    for ask in (store.get, store.info):
        with pytest.raises(NotFound):
            await ask(key)


async def test_a_folder_is_not_an_object(store: ObjectStore) -> None:
    await store.put("a/b/c", b"1")
    for ask in (store.get, store.info):
        with pytest.raises(NotFound):
            await ask("a/b")
    await store.delete("a/b")
    assert await store.get("a/b/c") == b"1"


@pytest.mark.parametrize("key", HOSTILE, ids=lambda key: repr(key[:12]))
async def test_hostile_keys_are_refused_everywhere(store: ObjectStore, key: str) -> None:
    calls: list[Callable[[str], Awaitable[object]]] = [
        lambda key: store.put(key, b""),
        lambda key: store.put(key, b"", if_absent=True),
        store.get,
        store.info,
        store.delete,
        store.locate,
    ]
    for call in calls:
        with pytest.raises(Invalid):
            await call(key)
    assert await keys(store, "") == []


@pytest.mark.parametrize("prefix", ["../", "a/../", "/", "a//b", "./"])
async def test_hostile_prefixes_are_refused(store: ObjectStore, prefix: str) -> None:
    with pytest.raises(Invalid):
        await keys(store, prefix)


async def test_dots_inside_a_segment_are_harmless(store: ObjectStore) -> None:
    for key in ["...", ".hidden/x", "a../b", "..a/b"]:
        await store.put(key, key.encode())
        assert await store.get(key) == key.encode()


async def test_check_proves_the_store_and_leaves_no_trace(store: ObjectStore) -> None:
    await store.check()
    await store.put("k", b"1")
    await store.check()
    assert await keys(store, "") == ["k"]


def read_elsewhere(place: str, start: int, end: int) -> bytes:
    """What a process without the store's credentials reads of the object."""
    if place.startswith("/"):
        return Path(place).read_bytes()[start:end]
    with urllib3.PoolManager() as http:
        answer = http.request("GET", place, headers={"Range": f"bytes={start}-{end - 1}"})
        assert answer.status in (200, 206)
        return answer.data


async def test_an_object_can_be_read_where_it_is_located(store: ObjectStore) -> None:
    place = await store.locate("a/k")
    await store.put("a/k", EVERY_BYTE)
    assert await asyncio.to_thread(read_elsewhere, place, 0, len(EVERY_BYTE)) == EVERY_BYTE
    assert await asyncio.to_thread(read_elsewhere, place, 250, 300) == EVERY_BYTE[250:300]


async def test_a_cancelled_put_happened_or_did_not(store: ObjectStore) -> None:
    data = b"x" * 8_000_000
    for steps in range(4):
        task = asyncio.ensure_future(store.put(f"k{steps}", data))  # noqa: TID251  # cancelled and awaited below
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    async for info in store.list(""):
        assert info.size == len(data)
