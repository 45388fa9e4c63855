"""The S3 store against real servers, beyond what every store promises: parts, dialects, sentences, secrets."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import replace
from typing import Any

import pytest

from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable
from hatchvm.base.units import MIB
from hatchvm.objects.s3 import control
from hatchvm.objects.s3.store import S3Store
from hatchvm.testing.s3 import front
from hatchvm.testing.s3.front import Faults
from hatchvm.testing.s3.places import BUCKET, empty_store, place
from hatchvm.testing.s3.server import S3Server, free_port

pytest_plugins = ["hatchvm.testing.s3.fixtures"]


@pytest.fixture(params=["ceph", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


def uploads(server: S3Server) -> list[Any]:
    """Parts that somebody pays for though no object has them."""
    found: list[Any] = server.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


@pytest.mark.parametrize("size", [16 * MIB, 16 * MIB + 1, 24 * MIB, 24 * MIB + 5])
async def test_large_objects_go_in_parts(server: S3Server, size: int) -> None:
    store = empty_store(server)
    data = secrets.token_bytes(size)
    await store.put("a/large", data)
    assert await store.get("a/large") == data
    assert (await store.info("a/large")).size == size
    assert await store.get("a/large", start=8 * MIB - 3, length=7) == data[8 * MIB - 3 : 8 * MIB + 4]


async def test_a_large_object_that_must_be_new_goes_whole(ceph_server: S3Server) -> None:
    store = empty_store(ceph_server)
    first, second = secrets.token_bytes(17 * MIB), secrets.token_bytes(17 * MIB)
    await store.put("k", first, if_absent=True)
    with pytest.raises(Conflict):
        await store.put("k", second, if_absent=True)
    assert await store.get("k") == first


@pytest.mark.parametrize("stopped", ["failed", "cancelled", "succeeded"])
async def test_an_upload_in_parts_leaves_nothing_but_the_object(ceph_server: S3Server, stopped: str) -> None:
    async with front.before(ceph_server, Faults(), seed=1) as between:
        begun = asyncio.Event()

        def watch(request: bytes) -> None:
            if b"partNumber=3" in request:
                begun.set()
            between.faults = Faults(refuse=stopped == "failed" and b"partNumber=3" in request)

        between.on_request = watch
        store = empty_store(between.server)
        task = asyncio.ensure_future(store.put("k", bytes(40 * MIB)))  # noqa: TID251  # awaited below
        await begun.wait()
        if stopped == "cancelled":
            task.cancel()
        await asyncio.wait([task])
        if stopped == "succeeded":
            assert (await store.info("k")).size == 40 * MIB
        else:
            assert task.cancelled() or isinstance(task.exception(), Unavailable)
            with pytest.raises(NotFound):
                await store.info("k")
        assert not uploads(ceph_server)


async def test_the_dialect_is_found_out_by_the_first_check(ceph_server: S3Server, rclone_server: S3Server) -> None:
    keeps, ignores = empty_store(ceph_server), empty_store(rclone_server)
    for store in (keeps, ignores):
        assert store.caution() is None
        await store.check()
    assert keeps.caution() is None
    assert "no other Hatch may use the same bucket and prefix" in str(ignores.caution())


async def test_creating_works_before_any_check_and_says_what_it_found(
    rclone_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    store = empty_store(rclone_server)
    await store.put("k", b"first", if_absent=True)
    with pytest.raises(Conflict):
        await store.put("k", b"second", if_absent=True)
    assert await store.get("k") == b"first"
    assert store.caution()


async def test_two_processes_that_race_to_create_agree_on_one(ceph_server: S3Server) -> None:
    mine = empty_store(ceph_server)
    theirs = S3Store(replace(place(ceph_server), prefix=mine._prefix))
    for number in range(8):
        key = f"k{number}"
        outcomes = await asyncio.gather(
            *(store.put(key, name, if_absent=True) for store, name in ((mine, b"mine"), (theirs, b"theirs"))),
            return_exceptions=True,
        )
        assert [type(outcome) for outcome in outcomes if outcome] == [Conflict]
        assert await theirs.get(key) == (b"mine" if outcomes[0] is None else b"theirs")


async def test_a_list_longer_than_a_page_is_whole_and_in_order(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = empty_store(server)
    keys = sorted(f"f/{name}{number}" for name in "ab-" for number in range(5))
    for key in keys:
        await store.put(key, b"x")
    for page in (1, 4, 15, 1000):
        monkeypatch.setattr(control, "_PAGE", page)
        assert [info.key async for info in store.list("f/")] == keys


async def test_what_others_keep_in_the_bucket_is_not_seen(ceph_server: S3Server) -> None:
    store = empty_store(ceph_server)
    await store.put("a/k", b"1")
    for name in ("folder/", "a//b", "with space", "~other/x", "ä"):
        ceph_server.client().put_object(Bucket=BUCKET, Key=store._prefix + name, Body=b"")
    assert [info.key async for info in store.list("")] == ["a/k"]
    whole_bucket = S3Store(place(ceph_server))
    assert [info.key async for info in whole_bucket.list(store._prefix)] == [store._prefix + "a/k"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"secret_key": "swordfish"}, "HATCH_S3_ACCESS_KEY, HATCH_S3_SECRET_KEY"),
        ({"access_key": "NOBODY"}, "HATCH_S3_ACCESS_KEY, HATCH_S3_SECRET_KEY"),
        ({"bucket": "no-such-bucket"}, "HATCH_S3_BUCKET: there is no bucket no-such-bucket; make it"),
        ({"endpoint": "http://127.0.0.1:{free_port}"}, "the object store does not answer; check HATCH_S3_ENDPOINT"),
    ],
)
async def test_a_store_that_cannot_be_used_says_what_to_look_at(
    server: S3Server, change: dict[str, str], sentence: str
) -> None:
    wrong: dict[str, Any] = {name: value.format(free_port=free_port()) for name, value in change.items()}
    store = S3Store(replace(place(server), **wrong), first_pause_s=0.001)
    for call in (store.check(), store.put("k", b"1"), store.put("k", b"1", if_absent=True), store.get("k")):
        with pytest.raises(Unavailable, match=sentence) as refusal:
            await call
        assert "swordfish" not in str(refusal.value) + refusal.value.detail
        assert refusal.value.__cause__ is refusal.value.__context__ is None  # may hold a signed URL


async def test_no_secret_and_no_signature_is_logged(ceph_server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with front.before(ceph_server, Faults(reset=0.2, refuse=0.2, truncate=0.2), seed=5) as between:
            store = empty_store(between.server)
            for number in range(10):
                for call in (store.put(f"k{number}", b"1"), store.get(f"k{number}"), store.locate("k")):
                    try:
                        await call
                    except HatchError as error:
                        logging.getLogger(__name__).error("%s %s", error, error.detail, exc_info=error)
    assert between.injected[front.RESET] and between.injected[front.TRUNCATE]
    for secret in (ceph_server.secret_key, ceph_server.access_key, "Signature"):
        assert secret not in caplog.text
