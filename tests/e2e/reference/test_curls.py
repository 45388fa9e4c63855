"""The curl lines of the original's pages, run by a shell in their order; only host, key and ids are put in.

A page's lines meet a VM of their own. `"$ID"`, `"$ROUTE"`, `"$API"`, `"$KEY"` and `"$PORT"` stand for what the
pages write as an example.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.client import Client
from hatchvm.testing.guest import DEADLINE_S, PAGE, Guest, events

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

AUTH = '-H "Authorization: Bearer $KEY"'
JSON = '-H "Content-Type: application/json"'


class Shell:
    """A shell of somebody who follows a page."""

    def __init__(self, daemon: ChildDaemon, vm_id: str) -> None:
        self.variables = {
            "API": daemon.api,
            "KEY": daemon.paths.api_key.read_text().strip(),
            "PORT": str(daemon.proxy_port),
            "ID": vm_id,
        }

    def run(self, line: str) -> str:
        """What the line prints."""
        shell = ["bash", "-c", line.replace("curl ", "curl -sS --noproxy '*' ")]
        done = subprocess.run(
            shell, env=os.environ | self.variables, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), line
        return done.stdout

    def json(self, line: str) -> Any:
        return json.loads(self.run(line))

    def refused(self, subdomain: str) -> tuple[int, Any]:
        """(status, JSON) of what the proxy answers."""
        body, status = self.run(f'curl -w "%{{http_code}}" "http://{subdomain}.hatch.localhost:$PORT/"').splitlines()
        return int(status), json.loads(body)

    def route(self, body: str) -> Any:
        return self.json(f"curl -X POST \"$API/vms/$ID/routes\" {AUTH} {JSON} -d '{body}'")


@pytest.fixture
def shell(daemon: ChildDaemon, guest: Guest, client: Client) -> Iterator[Shell]:
    """Meets a copy of the guest, which serves its page on port 8080."""
    copy = client.create_vm(snapshot_id=guest.sleep()["id"])
    yield Shell(daemon, copy["id"])
    client.delete_vm(copy["id"])


def test_health(shell: Shell) -> None:
    for line in ('curl "$API/healthz"', 'curl -f "$API/healthz"'):
        assert shell.json(line) == {"status": "ok", "vm_count": 2, "route_count": 1}


def test_snapshots(shell: Shell) -> None:
    taken = shell.json(f'curl -X POST "$API/vms/$ID/snapshot" {AUTH}')
    assert taken["vm_id"] == shell.variables["ID"]
    assert shell.json(f'curl -X POST "$API/vms/$ID/restore" {AUTH}')["state"] == "running"
    assert [one["id"] for one in shell.json(f'curl "$API/vms/$ID/snapshots" {AUTH}')] == [taken["id"]]


def test_reverse_proxy(shell: Shell) -> None:
    made = shell.route('{"subdomain": "my-app", "target_port": 8080}')
    named = {"vm_id": shell.variables["ID"], "subdomain": "my-app", "target_port": 8080, "auto_wake": True}
    assert made.items() >= named.items()
    assert {"id", "created_at", "updated_at"} <= set(made)
    assert shell.run('curl "http://my-app.hatch.localhost:$PORT/"') == PAGE
    drawn = shell.route('{"target_port": 3000}')
    assert len(drawn["subdomain"]) == 12
    assert (drawn["target_port"], drawn["auto_wake"]) == (3000, True)
    again = shell.route('{"subdomain": "my-app", "target_port": 8080, "auto_wake": true}')
    assert again == {"error": 'subdomain "my-app" is already in use'}
    critical = shell.route('{"subdomain": "critical-app", "target_port": 8080, "auto_wake": false}')
    assert critical["auto_wake"] is False

    shell.json(f'curl -X POST "$API/vms/$ID/snapshot" {AUTH}')
    asleep = {"error": "vm is snapshotted and auto-wake is disabled"}
    assert shell.refused("critical-app") == (503, asleep)
    assert shell.run('curl "http://my-app.hatch.localhost:$PORT/"') == PAGE

    assert shell.route('{"subdomain": "web", "target_port": 80}')["target_port"] == 80
    assert shell.route('{"subdomain": "api", "target_port": 8080}') == {"error": 'subdomain "api" is reserved'}
    assert shell.route('{"subdomain": "metrics", "target_port": 9090}')["target_port"] == 9090
    listed = shell.json(f'curl "$API/vms/$ID/routes" {AUTH}')
    assert [one["subdomain"] for one in listed] == ["metrics", "web", "critical-app", drawn["subdomain"], "my-app"]
    shell.variables["ROUTE"] = made["id"]
    assert shell.json(f'curl -X DELETE "$API/routes/$ROUTE" {AUTH}') == {"status": "deleted"}
    assert shell.refused("my-app") == (502, {"error": 'no route for subdomain "my-app"'})


def test_idle_management(shell: Shell) -> None:
    listed = {one["id"]: one["state"] for one in shell.json(f'curl "$API/vms" {AUTH}')}
    assert listed[shell.variables["ID"]] == "running"
    assert sorted(listed.values()) == ["running", "snapshotted"]
    assert shell.json(f'curl "$API/vms/$ID/snapshots" {AUTH}') == []
    made = shell.route('{"subdomain": "staging-app", "target_port": 8080, "auto_wake": true}')
    assert made["subdomain"] == "staging-app"
    assert shell.json(f'curl "$API/vms/$ID/routes" {AUTH}') == [made]
    assert shell.run('curl -s "http://staging-app.hatch.localhost:$PORT/health" > /dev/null') == ""
    shell.json(f'curl -X POST "$API/vms/$ID/snapshot" {AUTH}')
    assert shell.run('curl "http://staging-app.hatch.localhost:$PORT"') == PAGE


def test_wake_on_request(shell: Shell, daemon: ChildDaemon) -> None:
    made = shell.route('{"subdomain": "my-agent", "target_port": 8080, "auto_wake": true}')
    assert made["auto_wake"] is True
    shell.json(f'curl -X POST "$API/vms/$ID/snapshot" {AUTH}')
    began = daemon.mark()
    for _ in range(2):
        assert shell.run('curl "http://my-agent.hatch.localhost:$PORT"') == PAGE
    for event in ("waking snapshotted vm", "vm restored"):
        assert len(events(daemon, event, began, vm=shell.variables["ID"])) == 1
