"""`/vms`: bodies, answers, statuses and sentences."""

from __future__ import annotations

import httpx2
import pytest

from hatchvm.base.errors import Exhausted, Unavailable
from hatchvm.testing.house import FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]

UNKNOWN = "vm-000000000000"


async def test_create_without_a_body_uses_every_default(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/vms")
    assert answer.status_code == 201
    vm = answer.json()
    assert vm == {
        "id": vm["id"],
        "state": "running",
        "state_reason": "",
        "name": None,
        "image_id": vm["image_id"],
        "template_id": None,
        "vcpu_count": 1,
        "mem_mib": 512,
        "boot_args": None,
        "enable_network": True,
        "idle_timeout": None,
        "metadata": {},
        "guest_ip": "10.0.2.15",
        "guest_mac": "06:00:0a:00:02:0f",
        "tap_name": None,
        "ssh_port": 16000,
        "socket_path": f"/data/vms/{vm['id']}/qmp.sock",
        "node_id": "node-1",
        "created_at": "2026-03-06T14:30:02Z",
        "updated_at": "2026-03-06T14:30:02Z",
        "last_active_at": None,
    }


async def test_create_passes_every_field_on_and_keeps_user_data_to_itself(
    client: httpx2.AsyncClient, house: FakeHouse
) -> None:
    asked = {
        "image_id": "tiny",
        "vcpu_count": 2,
        "mem_mib": 64,
        "boot_args": "quiet",
        "enable_network": True,
        "guest_ip": "172.16.0.9",
        "guest_mac": "06:00:AC:10:00:09",
        "user_data": "#cloud-config\npassword: swordfish\n",
        "name": "web",
        "idle_timeout": "1h30m",
        "metadata": {"team": "a"},
    }
    answer = await client.post("/vms", json=asked)
    assert answer.status_code == 201
    vm = answer.json()
    image = await house.images.get("tiny")
    seen = {name: vm[name] for name in asked if name != "user_data"}
    expected = asked | {"image_id": image.id, "guest_mac": "06:00:ac:10:00:09"}
    assert seen == {name: value for name, value in expected.items() if name != "user_data"}
    assert "swordfish" not in answer.text
    assert house.user_data[vm["id"]] == asked["user_data"]


async def test_a_forms_content_type_does_no_harm(client: httpx2.AsyncClient) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = await client.post("/vms", content=b'{"mem_mib": 64}', headers=form)
    assert answer.status_code == 201
    assert answer.json()["mem_mib"] == 64


async def test_a_life(client: httpx2.AsyncClient) -> None:
    vm = (await client.post("/vms", json={"name": "web"})).json()
    path = f"/vms/{vm['id']}"
    assert (await client.get("/vms")).json() == [vm]
    assert (await client.get(path)).json() == vm
    assert (await client.get(f"{path}/snapshots")).json() == []
    snapshot = await client.post(f"{path}/snapshot")
    assert snapshot.status_code == 201
    assert snapshot.json()["vm_id"] == vm["id"]
    assert (await client.get(path)).json()["state"] == "snapshotted"
    assert (await client.get(f"{path}/snapshots")).json() == [snapshot.json()]
    one = f"/snapshots/{snapshot.json()['id']}"
    assert (await client.get(one)).json() == snapshot.json()
    restored = await client.post(f"{path}/restore", json={"snapshot_id": snapshot.json()["id"]})
    assert (restored.status_code, restored.json()["state"]) == (200, "running")
    assert (await client.delete(one)).json() == {"status": "deleted"}
    assert (await client.post(f"{path}/stop")).json()["state"] == "stopped"
    assert (await client.post(f"{path}/start")).json()["state"] == "running"
    assert (await client.delete(path)).json() == {"status": "deleted"}
    assert (await client.get(path)).status_code == 404


async def test_a_state_that_forbids_the_call_is_409(client: httpx2.AsyncClient) -> None:
    vm_id = (await client.post("/vms")).json()["id"]
    answer = await client.post(f"/vms/{vm_id}/restore")
    assert answer.status_code == 409
    assert answer.json() == {"error": 'vm is in state "running"; it cannot be restored now'}


@pytest.mark.parametrize("vm_id", [UNKNOWN, "vm-1", "VM-000000000000", "rt-000000000000", "..%2f..", "%00", "x" * 2000])
@pytest.mark.parametrize(
    ("method", "tail"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/stop"),
        ("POST", "/start"),
        ("POST", "/snapshot"),
        ("POST", "/restore"),
        ("GET", "/snapshots"),
        ("GET", "/routes"),
        ("GET", "/holds"),
        ("GET", "/activity"),
    ],
)
async def test_an_unknown_or_malformed_id_is_404(
    client: httpx2.AsyncClient, method: str, tail: str, vm_id: str
) -> None:
    answer = await client.request(method, f"/vms/{vm_id}{tail}")
    assert answer.status_code == 404
    assert answer.json()["error"] in ("vm not found", "not found")


async def test_a_malformed_id_never_reaches_the_house(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    house.trouble = AssertionError("asked")
    answer = await client.get("/vms/vm-1")
    assert (answer.status_code, answer.json()) == (404, {"error": "vm not found"})


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"image_id": "nope"}, "image not found"),
        ({"image_id": "../etc"}, "image not found"),
        ({"template_id": "nope"}, "template not found"),
        ({"template_id": ""}, "template not found"),
        ({"snapshot_id": "snap-000000000000"}, "snapshot not found"),
        ({"snapshot_id": "latest"}, "snapshot not found"),
    ],
)
async def test_create_from_an_unknown_thing_is_404(
    client: httpx2.AsyncClient, body: dict[str, str], sentence: str
) -> None:
    answer = await client.post("/vms", json=body)
    assert (answer.status_code, answer.json()) == (404, {"error": sentence})


async def test_a_used_name_is_409(client: httpx2.AsyncClient) -> None:
    await client.post("/vms", json={"name": "web"})
    answer = await client.post("/vms", json={"name": "web"})
    assert (answer.status_code, answer.json()) == (409, {"error": 'name "web" is already in use'})


async def test_no_capacity_is_503_and_says_when_to_come_back(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    house.trouble = Exhausted("no memory left", detail="12 MiB free", retry_after_s=1.2)
    answer = await client.post("/vms")
    assert (answer.status_code, answer.json()) == (503, {"error": "no memory left"})
    assert answer.headers["Retry-After"] == "2"


async def test_without_advice_there_is_no_retry_after(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    house.trouble = Unavailable("snapshot storage not configured")
    answer = await client.post("/vms")
    assert (answer.status_code, answer.json()) == (503, {"error": "snapshot storage not configured"})
    assert "Retry-After" not in answer.headers


@pytest.mark.parametrize(("body", "booted"), [({}, False), ({"mode": "memory"}, False), ({"mode": "disk"}, True)])
async def test_a_restore_is_of_memory_unless_the_disk_is_asked_for(
    client: httpx2.AsyncClient, house: FakeHouse, body: dict[str, str], booted: bool
) -> None:
    vm = (await client.post("/vms")).json()
    snapshot = (await client.post(f"/vms/{vm['id']}/snapshot")).json()
    answer = await client.post(f"/vms/{vm['id']}/restore", json={"snapshot_id": snapshot["id"], **body})
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert house.disk_restores == ([vm["id"]] if booted else [])


async def test_there_are_two_modes(client: httpx2.AsyncClient) -> None:
    vm = (await client.post("/vms")).json()
    answer = await client.post(f"/vms/{vm['id']}/restore", json={"mode": "Disk"})
    assert (answer.status_code, answer.json()) == (400, {"error": "mode: must be 'memory' or 'disk'"})
