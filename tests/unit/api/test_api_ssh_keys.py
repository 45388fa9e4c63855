"""`/ssh-keys`."""

from __future__ import annotations

import httpx2

pytest_plugins = ["hatchvm.testing.api_fixtures"]

LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"


async def test_ssh_keys(client: httpx2.AsyncClient) -> None:
    made = await client.post("/ssh-keys", json={"name": "ann", "public_key": f"{LINE} ann@laptop\n"})
    assert made.status_code == 201
    key = made.json()
    assert key == {
        "id": key["id"],
        "name": "ann",
        "public_key": LINE,
        "fingerprint": "SHA256:Cvc6vF8KG/H+gjg3qhw7DX6mLHTdvJNCqzbP6CmXHcw",
        "created_at": "2026-03-06T14:30:02Z",
    }
    assert (await client.get("/ssh-keys")).json() == [key]
    again = await client.post("/ssh-keys", json={"name": "bob", "public_key": LINE})
    assert (again.status_code, again.json()) == (409, {"error": "this SSH key is already in use"})
    assert (await client.delete(f"/ssh-keys/{key['id']}")).json() == {"status": "deleted"}
    for unknown in (key["id"], "key-000000000000", "x"):
        gone = await client.delete(f"/ssh-keys/{unknown}")
        assert (gone.status_code, gone.json()) == (404, {"error": "ssh key not found"})


async def test_what_is_no_public_key(client: httpx2.AsyncClient) -> None:
    secret = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU"
    text = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{secret}\n-----END OPENSSH PRIVATE KEY-----\n"
    refused = await client.post("/ssh-keys", json={"name": "ann", "public_key": text})
    assert refused.status_code == 400
    assert refused.json()["error"].startswith("public_key is a private key")
    assert secret not in refused.text
    long = await client.post("/ssh-keys", json={"name": "ann", "public_key": "x" * 20000})
    assert (long.status_code, long.json()) == (400, {"error": "public_key: must have at most 16384 characters"})


async def test_a_stranger_may_not_add_keys(stranger: httpx2.AsyncClient) -> None:
    assert (await stranger.post("/ssh-keys", json={"name": "ann", "public_key": LINE})).status_code == 401
