"""Routes, images, templates, keys."""

from __future__ import annotations

import re
from dataclasses import replace

import httpx2
import pytest

from hatchvm.domain.route import RESERVED
from hatchvm.testing.house import FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]


@pytest.fixture
async def vm_id(client: httpx2.AsyncClient) -> str:
    answer = await client.post("/vms")
    return str(answer.json()["id"])


async def test_routes(client: httpx2.AsyncClient, vm_id: str) -> None:
    made = await client.post(f"/vms/{vm_id}/routes", json={"subdomain": "my-app", "target_port": 8080})
    assert made.status_code == 201
    route = made.json()
    assert route == {
        "id": route["id"],
        "vm_id": vm_id,
        "subdomain": "my-app",
        "target_port": 8080,
        "auto_wake": True,
        "url": "http://my-app.hatch.localhost:9090",
        "domain": None,
        "domain_verified": False,
        "domain_challenge": None,
        "domain_missing_since": None,
        "created_at": "2026-03-06T14:30:03Z",
        "updated_at": "2026-03-06T14:30:03Z",
    }
    assert (await client.get("/routes")).json() == [route]
    assert (await client.get(f"/vms/{vm_id}/routes")).json() == [route]
    changed = await client.patch(f"/routes/{route['id']}", json={"auto_wake": False})
    assert changed.json() == route | {"auto_wake": False, "updated_at": changed.json()["updated_at"]}
    assert (await client.delete(f"/routes/{route['id']}")).json() == {"status": "deleted"}
    assert (await client.delete(f"/routes/{route['id']}")).json() == {"error": "route not found"}


async def test_a_route_without_a_subdomain_gets_one(client: httpx2.AsyncClient, vm_id: str) -> None:
    route = (await client.post(f"/vms/{vm_id}/routes", json={"target_port": 3000})).json()
    assert len(route["subdomain"]) == 12


@pytest.mark.parametrize("subdomain", sorted(RESERVED))
async def test_reserved_subdomains(client: httpx2.AsyncClient, vm_id: str, subdomain: str) -> None:
    answer = await client.post(f"/vms/{vm_id}/routes", json={"subdomain": subdomain, "target_port": 80})
    assert (answer.status_code, answer.json()) == (400, {"error": f'subdomain "{subdomain}" is reserved'})


@pytest.mark.parametrize("subdomain", ["", "-a", "a-", "A", "a.b", "a_b", "é", "a" * 64, "a\n"])
async def test_malformed_subdomains(client: httpx2.AsyncClient, vm_id: str, subdomain: str) -> None:
    answer = await client.post(f"/vms/{vm_id}/routes", json={"subdomain": subdomain, "target_port": 80})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("subdomain")


async def test_a_used_subdomain_is_409(client: httpx2.AsyncClient, vm_id: str) -> None:
    body = {"subdomain": "x", "target_port": 80}
    await client.post(f"/vms/{vm_id}/routes", json=body)
    answer = await client.post(f"/vms/{vm_id}/routes", json=body)
    assert (answer.status_code, answer.json()) == (409, {"error": 'subdomain "x" is already in use'})


async def test_a_custom_domain_is_claimed_proven_and_taken_away(
    client: httpx2.AsyncClient, house: FakeHouse, vm_id: str
) -> None:
    body = {"target_port": 80, "domain": "app.example.com"}
    route = (await client.post(f"/vms/{vm_id}/routes", json=body)).json()
    assert (route["domain"], route["domain_verified"]) == ("app.example.com", False)
    challenge = route["domain_challenge"]
    assert challenge == {"name": "_hatchvm.app.example.com", "type": "TXT", "value": challenge["value"]}
    assert re.fullmatch(r"hatchvm-verify=[0-9a-f]{32}", challenge["value"])
    path = f"/routes/{route['id']}"
    refused = await client.post(f"{path}/verify")
    assert refused.status_code == 409
    assert challenge["name"] in refused.json()["error"] and challenge["value"] in refused.json()["error"]
    house.routes.texts = [challenge["value"]]
    verified = (await client.post(f"{path}/verify")).json()
    assert verified == route | {
        "domain_verified": True,
        "domain_challenge": None,
        "updated_at": verified["updated_at"],
    }
    assert verified["url"] == route["url"]
    row = house.route_rows.find(route["id"])
    house.route_rows.put(replace(row, domain_missing_since=row.created_at, domain_misses=1))
    missing = (await client.get("/routes")).json()[0]
    assert missing == verified | {"domain_challenge": challenge, "domain_missing_since": route["created_at"]}
    house.route_rows.put(row)
    assert (await client.patch(path, json={"target_port": 81})).json()["domain_verified"] is True
    changed = (await client.patch(path, json={"domain": "other.example.com"})).json()
    assert (changed["domain_verified"], changed["domain_challenge"]["name"]) == (False, "_hatchvm.other.example.com")
    assert changed["domain_challenge"]["value"] != challenge["value"]
    gone = (await client.patch(path, json={"domain": None})).json()
    assert (gone["domain"], gone["domain_verified"], gone["domain_challenge"]) == (None, False, None)
    refused = await client.post(f"{path}/verify")
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        "the route has no domain: set one, then verify it",
    )


@pytest.mark.parametrize(
    "domain", ["", "App.example.com", "a b.example", "localhost", "b\u00fccher.example", "10.0.0.1"]
)
async def test_malformed_domains(client: httpx2.AsyncClient, vm_id: str, domain: str) -> None:
    route = (await client.post(f"/vms/{vm_id}/routes", json={"target_port": 80})).json()
    for answer in (
        await client.post(f"/vms/{vm_id}/routes", json={"target_port": 80, "domain": domain}),
        await client.patch(f"/routes/{route['id']}", json={"domain": domain}),
    ):
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("domain")
    refused = await client.post(f"/vms/{vm_id}/routes", json={"target_port": 80, "domain": None})
    assert (refused.status_code, refused.json()) == (400, {"error": "domain: must be a string"})


async def test_a_front_asks_which_names_are_served(
    client: httpx2.AsyncClient, stranger: httpx2.AsyncClient, house: FakeHouse, vm_id: str
) -> None:
    body = {"target_port": 80, "subdomain": "my-app", "domain": "app.example.com"}
    route = (await client.post(f"/vms/{vm_id}/routes", json=body)).json()

    async def ask(name: str) -> tuple[int, object]:
        answer = await stranger.get("/tls/ask", params={"domain": name})
        return answer.status_code, answer.json()

    refused = 404, {"error": "no route has this name"}
    assert await ask("app.example.com") == refused
    assert await ask("my-app.hatch.localhost") == (200, {"status": "served"})
    house.routes.texts = [route["domain_challenge"]["value"]]
    await client.post(f"/routes/{route['id']}/verify")
    assert await ask("app.example.com") == await ask("APP.example.com") == (200, {"status": "served"})
    for name in ("", "example.com", "x.app.example.com", "other.hatch.localhost", "hatch.localhost", "\0", "é.example"):
        assert await ask(name) == refused
    assert await ask("x" * 10_000) == refused
    nothing = await stranger.get("/tls/ask")
    assert (nothing.status_code, nothing.json()) == (400, {"error": "domain: is required"})


async def test_images(client: httpx2.AsyncClient, vm_id: str) -> None:
    tiny = (await client.get("/images/tiny")).json()
    assert tiny["builtin"] is True
    body = {"name": "debian", "kernel_path": "/boot/vmlinuz", "rootfs_path": "/srv/root.raw"}
    made = await client.post("/images", json=body)
    assert made.status_code == 201
    assert made.json() | body == made.json()
    assert (await client.get("/images")).json() == [made.json(), tiny]
    assert (await client.get(f"/images/{made.json()['id']}")).json() == made.json()
    assert (await client.delete("/images/debian")).json() == {"status": "deleted"}
    in_use = await client.delete("/images/tiny")
    assert (in_use.status_code, in_use.json()) == (409, {"error": "image is in use"})
    assert (await client.get("/images/No..Such")).json() == {"error": "image not found"}


async def test_a_built_in_image_is_registered_by_its_name(client: httpx2.AsyncClient) -> None:
    tiny = (await client.get("/images/tiny")).json()
    added = await client.post("/images/builtin", json={"name": "tiny"})
    assert (added.status_code, added.json()) == (201, tiny)
    missing = await client.post("/images/builtin", json={"name": "debian"})
    assert (missing.status_code, missing.json()) == (404, {"error": 'the image "debian" is not in the cache'})
    assert (await client.post("/images/builtin", json={"name": "other"})).status_code == 400


async def test_templates(client: httpx2.AsyncClient) -> None:
    defaults = {"vcpu_count": 2, "metadata": {"a": "b"}}
    made = await client.post("/templates", json={"name": "big", "defaults": defaults | {"user_data": "swordfish"}})
    assert made.status_code == 201
    assert made.json()["defaults"] == defaults
    assert "swordfish" not in made.text
    assert (await client.get("/templates")).json() == [made.json()]
    vm = (await client.post("/vms", json={"template_id": "big", "mem_mib": 64})).json()
    assert (vm["vcpu_count"], vm["mem_mib"], vm["template_id"]) == (2, 64, "big")
    assert (await client.delete("/templates/big")).json() == {"status": "deleted"}
    gone = await client.get("/templates/big")
    assert (gone.status_code, gone.json()) == (404, {"error": "template not found"})


async def test_keys_are_shown_once_and_stop_working_when_deleted(client: httpx2.AsyncClient) -> None:
    made = await client.post("/keys", json={"name": "ci"})
    assert made.status_code == 201
    key = made.json()
    assert (await client.get("/keys")).json()[0] == {name: key[name] for name in ("id", "name", "created_at")}
    as_ci = {"Authorization": f"Bearer {key['key']}"}
    assert (await client.get("/vms", headers=as_ci)).status_code == 200
    assert (await client.delete(f"/keys/{key['id']}")).json() == {"status": "deleted"}
    assert (await client.get("/vms", headers=as_ci)).status_code == 401
