"""`/store` and the verification of snapshots."""

from __future__ import annotations

import httpx2
import pytest

from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.base.units import MIB
from hatchvm.domain.stored import Kind, Problem
from hatchvm.testing.house import FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]

NOTHING = {"objects": 0, "bytes": 0}


@pytest.fixture
async def snapshot_id(client: httpx2.AsyncClient) -> str:
    vm = (await client.post("/vms")).json()
    return str((await client.post(f"/vms/{vm['id']}/snapshot")).json()["id"])


@pytest.mark.parametrize(
    ("body", "grace_s"), [(None, None), ({}, None), ({"grace": "1h"}, 3600.0), ({"grace": "0s"}, 0.0)]
)
async def test_gc(
    client: httpx2.AsyncClient, house: FakeHouse, body: dict[str, str] | None, grace_s: float | None
) -> None:
    answer = await client.post("/store/gc", json=body) if body is not None else await client.post("/store/gc")
    assert answer.status_code == 200
    assert house.storage.graces == [grace_s]
    assert answer.json() == {
        "deleted": {"objects": 2, "bytes": 3 * MIB},
        "kept": {"objects": 5, "bytes": 9 * MIB},
        "waiting": {"objects": 1, "bytes": MIB},
    }


async def test_gc_refused(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    wrong = await client.post("/store/gc", json={"grace": "-1h"})
    assert (wrong.status_code, wrong.json()) == (
        400,
        {"error": "grace: must be a duration such as 30s, 5m or 1h30m"},
    )
    house.trouble = Conflict("a snapshot is being stored")
    busy = await client.post("/store/gc", json={"grace": "0s"})
    assert (busy.status_code, busy.json()) == (409, {"error": "a snapshot is being stored"})


async def test_audit(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    answer = await client.get("/store/audit")
    assert answer.json() == {
        "status": "ok",
        "stored_bytes": 3 * MIB + 1000,
        "manifests": {"objects": 1, "bytes": 1000},
        "packs": {"objects": 3, "bytes": 3 * MIB},
        "shared": {"objects": 1, "bytes": MIB},
        "trash": NOTHING,
        "orphaned": {"objects": 2, "bytes": 2 * MIB},
        "due": {"objects": 1, "bytes": MIB},
        "unknown": NOTHING,
        "keys": [{"key_id": None, "bytes": 3 * MIB, "current": True, "held": True}],
        "problems": [],
    }
    for kind in Kind:
        house.storage.problems = [Problem(kind=kind, key="packs/x", message="so", snapshot_id="snap-0123456789ab")]
        found = (await client.get("/store/audit")).json()
        assert found["problems"] == [
            {"kind": kind.value, "key": "packs/x", "message": "so", "snapshot_id": "snap-0123456789ab"}
        ]
        assert found["status"] == ("ok" if kind in (Kind.NO_ROW, Kind.UNKNOWN) else "damaged")


async def test_verify(client: httpx2.AsyncClient, house: FakeHouse, snapshot_id: str) -> None:
    whole = await client.post(f"/snapshots/{snapshot_id}/verify")
    assert (whole.status_code, whole.json()) == (200, {"status": "ok", "bytes": MIB})
    house.damaged.add(snapshot_id)
    damaged = await client.post(f"/snapshots/{snapshot_id}/verify")
    sentence = f"the snapshot is damaged: packs/0/{snapshot_id} is missing"
    assert (damaged.status_code, damaged.json()) == (503, {"error": sentence, "status": "damaged"})
    house.trouble = Unavailable("the object store cannot be reached")
    away = await client.post(f"/snapshots/{snapshot_id}/verify")
    assert (away.status_code, away.json()) == (503, {"error": "the object store cannot be reached"})
    house.trouble = None
    unknown = await client.post("/snapshots/snap-000000000000/verify")
    assert (unknown.status_code, unknown.json()) == (404, {"error": "snapshot not found"})
