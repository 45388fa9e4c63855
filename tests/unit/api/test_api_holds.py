"""`/vms/{id}/holds` and `/vms/{id}/activity`."""

from __future__ import annotations

from datetime import timedelta

import httpx2
import pytest

from hatchvm.domain.activity import Holding
from hatchvm.domain.lifecycle import State
from hatchvm.ports.house import Use, Woken
from hatchvm.ports.vmm import PutRight
from hatchvm.testing.house import START, FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]


@pytest.fixture
async def vm_id(client: httpx2.AsyncClient) -> str:
    return str((await client.post("/vms")).json()["id"])


async def test_a_holds_life(client: httpx2.AsyncClient, vm_id: str) -> None:
    path = f"/vms/{vm_id}/holds"
    answer = await client.post(path, json={"ttl": "30m", "reason": "training, run 7 é"})
    assert answer.status_code == 201
    hold = answer.json()
    assert hold == {
        "id": hold["id"],
        "vm_id": vm_id,
        "reason": "training, run 7 é",
        "created_at": "2026-03-06T14:30:03Z",
        "expires_at": "2026-03-06T15:00:03Z",
    }
    other = (await client.post(path, json={"ttl": "1s"})).json()
    assert other["reason"] == ""
    assert (await client.get(path)).json() == [other, hold]
    renewed = await client.patch(f"{path}/{hold['id']}", json={"ttl": "720h"})
    assert renewed.status_code == 200
    assert renewed.json() == hold | {"expires_at": "2026-04-05T14:30:06Z"}
    assert (await client.delete(f"{path}/{hold['id']}")).json() == {"status": "deleted"}
    gone = await client.delete(f"{path}/{hold['id']}")
    assert (gone.status_code, gone.json()) == (404, {"error": "hold not found"})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "ttl: is required"),
        ({"ttl": "999ms"}, "ttl: must be from 1s to 720h, which is 30 days"),
        ({"ttl": "720h0m1s"}, "ttl: must be from 1s to 720h, which is 30 days"),
        ({"ttl": "0"}, "ttl: must be from 1s to 720h, which is 30 days"),
        ({"ttl": "soon"}, "ttl: must be a duration such as 30s, 5m or 1h30m"),
        ({"ttl": "-5m"}, "ttl: must be a duration such as 30s, 5m or 1h30m"),
        ({"ttl": "5m", "reason": "a\nb"}, "reason: must have printable characters only"),
        ({"ttl": "5m", "reason": "a\u202eb"}, "reason: must have printable characters only"),
        ({"ttl": "5m", "reason": ""}, "reason: must have at least 1 characters"),
        ({"ttl": "5m", "reason": "x" * 201}, "reason: must have at most 200 characters"),
        ({"ttl": "5m", "until": "tomorrow"}, "until: is not a known field"),
    ],
)
async def test_a_hold_that_cannot_be(
    client: httpx2.AsyncClient, vm_id: str, body: dict[str, str], sentence: str
) -> None:
    answer = await client.post(f"/vms/{vm_id}/holds", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})
    assert (await client.get(f"/vms/{vm_id}/holds")).json() == []


@pytest.mark.parametrize("hold_id", ["hold-000000000000", "hold-1", "vm-000000000000", "x" * 2000])
async def test_an_unknown_hold_is_404(client: httpx2.AsyncClient, vm_id: str, hold_id: str) -> None:
    path = f"/vms/{vm_id}/holds/{hold_id}"
    for answer in (await client.patch(path, json={"ttl": "1m"}), await client.delete(path)):
        assert (answer.status_code, answer.json()) == (404, {"error": "hold not found"})


async def test_a_hold_of_an_unknown_vm_is_404(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/vms/vm-000000000000/holds", json={"ttl": "1m"})
    assert (answer.status_code, answer.json()) == (404, {"error": "vm not found"})


async def test_why_a_vm_is_awake(client: httpx2.AsyncClient, house: FakeHouse, vm_id: str) -> None:
    minute = timedelta(minutes=1)
    house.holds.uses[vm_id] = Use(
        state=State.SUSPENDING,
        last_active_at=START,
        idle_s=61.23456,
        idle_timeout="30m0s",
        hold_count=1234,
        holds=[
            Holding(kind="http", since=START, peer="10.0.0.5", last_byte_at=START + minute),
            Holding(kind="lease", since=START, reason="job", ends_at=START + 2 * minute, id="hold-000000000001"),
        ],
        last_wake=Woken(
            at=START,
            reason="ssh",
            by="::1",
            seconds=0.41234,
            put_right=PutRight(done=("clock",), undone={"random": "why"}),
        ),
        sleeps_at=None,
        awake_because="1233 open connections",
    )
    answer = await client.get(f"/vms/{vm_id}/activity")
    assert answer.status_code == 200
    start, later = "2026-03-06T14:30:00Z", "2026-03-06T14:31:00Z"
    nothing = {"peer": "", "reason": "", "last_byte_at": None, "ends_at": None, "id": None}
    assert answer.json() == {
        "state": "running",
        "last_active_at": start,
        "idle_seconds": 61.235,
        "idle_timeout": "30m0s",
        "hold_count": 1234,
        "holds": [
            nothing | {"kind": "http", "since": start, "peer": "10.0.0.5", "last_byte_at": later},
            nothing
            | {
                "kind": "lease",
                "since": start,
                "reason": "job",
                "ends_at": "2026-03-06T14:32:00Z",
                "id": "hold-000000000001",
            },
        ],
        "last_wake": {
            "at": start,
            "reason": "ssh",
            "by": "::1",
            "seconds": 0.412,
            "put_right": {"done": ["clock"], "undone": {"random": "why"}},
        },
        "sleeps": {"at": None, "because": "1233 open connections"},
    }


async def test_when_a_vm_will_sleep(client: httpx2.AsyncClient, house: FakeHouse, vm_id: str) -> None:
    house.holds.uses[vm_id] = Use(
        state=State.RUNNING,
        last_active_at=None,
        idle_s=0,
        idle_timeout="5m",
        hold_count=0,
        holds=[],
        last_wake=None,
        sleeps_at=START,
        awake_because="",
    )
    found = (await client.get(f"/vms/{vm_id}/activity")).json()
    assert found["sleeps"] == {"at": "2026-03-06T14:30:00Z", "because": None}
    assert (found["last_wake"], found["last_active_at"], found["holds"]) == (None, None, [])
