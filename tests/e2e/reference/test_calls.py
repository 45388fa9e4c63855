"""Every documented call, in the order in which a user makes them, and the shape of its answer."""

from __future__ import annotations

import http.client
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing.guest import DEADLINE_S, Guest

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
ROUTE = {"id", "vm_id", "subdomain", "target_port", "auto_wake", "url", "created_at", "updated_at"} | {
    *("domain", "domain_verified", "domain_challenge", "domain_missing_since")
}
SNAPSHOT = {"id", "vm_id", "state_key", "memory_key", "disk_key", "vm_config", "size_bytes", "stored_bytes"} | {
    *("parent_id", "status", "created_at")
}
VM = {"id", "state", "state_reason", "name", "image_id", "template_id", "vcpu_count", "mem_mib", "boot_args"} | {
    *("enable_network", "idle_timeout", "metadata", "guest_ip", "guest_mac", "tap_name", "ssh_port", "socket_path"),
    *("node_id", "created_at", "updated_at", "last_active_at"),
}


class Api:
    """Plain calls, as curl makes them."""

    def __init__(self, daemon: ChildDaemon) -> None:
        self._address = daemon.api.removeprefix("http://")
        self._key = daemon.paths.api_key.read_text().strip()

    def call(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """(status, JSON)"""
        connection = http.client.HTTPConnection(self._address, timeout=DEADLINE_S)
        headers = headers or {"Authorization": f"Bearer {self._key}"}
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        assert answer.headers["Content-Type"].startswith("application/json")
        return answer.status, json.loads(content)

    def ok(self, method: str, path: str, body: object = None, *, status: int = 200) -> Any:
        got, answer = self.call(method, path, body)
        assert got == status, answer
        return answer


@pytest.fixture
def api(daemon: ChildDaemon) -> Api:
    return Api(daemon)


def test_health_needs_no_key(api: Api, guest: Guest) -> None:
    assert api.call("GET", "/healthz", Accept="application/json") == (
        200,
        {"status": "ok", "vm_count": 1, "route_count": 1},
    )


def test_both_ways_to_send_the_key_and_neither(api: Api, daemon: ChildDaemon) -> None:
    key = daemon.paths.api_key.read_text().strip()
    assert api.call("GET", "/vms", **{"X-API-Key": key})[0] == 200
    for headers in ({"X-API-Key": "wrong"}, {"Authorization": "Basic x"}, {"Accept": "*/*"}):
        status, answer = api.call("GET", "/vms", **headers)
        assert (status, list(answer)) == (401, ["error"])


def test_the_documented_calls_in_order(api: Api, guest: Guest) -> None:
    source = guest.sleep()["id"]
    vm = api.ok("POST", "/vms", {"snapshot_id": source, "name": "documented"}, status=201)
    assert set(vm) == VM
    assert re.fullmatch(r"vm-[0-9a-f]{12}", vm["id"])
    assert (vm["state"], vm["vcpu_count"], vm["enable_network"]) == ("running", 1, True)
    assert TIME.fullmatch(vm["created_at"])
    assert datetime.fromisoformat(vm["created_at"]) <= datetime.now(UTC)  # noqa: TID251
    path = f"/vms/{vm['id']}"
    assert [one["id"] for one in api.ok("GET", "/vms")] == [vm["id"], guest.id]
    assert api.ok("GET", path)["id"] == vm["id"]

    assert api.ok("GET", f"{path}/routes") == []
    named = api.ok("POST", f"{path}/routes", {"subdomain": "my-app", "target_port": 8080}, status=201)
    assert set(named) == ROUTE
    assert (named["vm_id"], named["subdomain"], named["auto_wake"]) == (vm["id"], "my-app", True)
    drawn = api.ok("POST", f"{path}/routes", {"target_port": 3000, "auto_wake": False}, status=201)
    assert re.fullmatch(r"[a-z0-9]{12}", drawn["subdomain"])
    assert [one["id"] for one in api.ok("GET", f"{path}/routes")] == [drawn["id"], named["id"]]
    reserved = api.call("POST", f"{path}/routes", {"subdomain": "api", "target_port": 8080})
    assert reserved == (400, {"error": 'subdomain "api" is reserved'})
    used = api.call("POST", f"{path}/routes", {"subdomain": "my-app", "target_port": 8080})
    assert used == (409, {"error": 'subdomain "my-app" is already in use'})
    app = Guest(guest.daemon, vm["id"], "my-app")
    count = app.count()

    assert api.ok("GET", f"{path}/snapshots") == []
    snapshot = api.ok("POST", f"{path}/snapshot", status=201)
    assert set(snapshot) == SNAPSHOT
    assert json.loads(snapshot["vm_config"])["mem_mib"] == vm["mem_mib"]
    assert 0 < snapshot["stored_bytes"] < snapshot["size_bytes"]
    assert api.ok("GET", path)["state"] == "snapshotted"
    assert api.call("POST", f"{path}/snapshot")[0] == 409
    refused = Guest(guest.daemon, vm["id"], drawn["subdomain"]).ask()
    assert (refused.status, json.loads(refused.body)) == (
        503,
        {"error": "vm is snapshotted and auto-wake is disabled"},
    )
    assert api.ok("GET", f"{path}/snapshots") == [snapshot]
    assert api.ok("POST", f"{path}/restore")["state"] == "running"
    assert app.count() == count + 1
    api.ok("POST", f"{path}/snapshot", status=201)
    assert api.ok("POST", f"{path}/restore", {"snapshot_id": snapshot["id"]})["state"] == "running"
    assert app.count() == count + 1

    changed = api.ok("PATCH", f"/routes/{named['id']}", {"subdomain": "other"})
    assert (changed["id"], changed["subdomain"]) == (named["id"], "other")
    gone = app.ask()
    assert (gone.status, json.loads(gone.body)) == (502, {"error": 'no route for subdomain "my-app"'})
    assert api.ok("DELETE", f"/routes/{drawn['id']}") == {"status": "deleted"}
    assert api.call("DELETE", f"/routes/{drawn['id']}")[0] == 404
    assert api.ok("DELETE", f"/snapshots/{snapshot['id']}") == {"status": "deleted"}

    assert api.ok("POST", f"{path}/stop")["state"] == "stopped"
    assert api.ok("POST", f"{path}/start")["state"] == "running"
    assert api.ok("DELETE", path) == {"status": "deleted"}
    assert api.call("GET", path) == (404, {"error": "vm not found"})
    assert {one["subdomain"] for one in api.ok("GET", "/routes")} == {"shared"}


def test_calls_that_are_none(api: Api) -> None:
    assert api.call("PUT", "/vms")[0] == 405
    assert api.call("GET", "/nothing")[0] == 404
    status, answer = api.call("POST", "/vms", {"colour": "red"})
    assert status == 400
    assert "colour" in answer["error"]
    status, answer = api.call("POST", "/vms", {"mem_mib": "lots"})
    assert status == 400
    assert "mem_mib" in answer["error"]
