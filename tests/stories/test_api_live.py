"""The API behind a real server: what only shows on a socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx2
import pytest

from hatchvm.base.errors import Invalid, Kind, Unavailable
from hatchvm.client import ApiError, Client
from hatchvm.testing.house import FakeHouse
from hatchvm.testing.live import Live, serve

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serve(FakeHouse()) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    with Client(live.url, live.key) as client:
        yield client


def post_vms(live: Live, *header_lines: str) -> socket.socket:
    """A connection on which the head of a `POST /vms` was sent."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=30)
    lines = ["POST /vms HTTP/1.1", "Host: hatch", f"Authorization: Bearer {live.key}", *header_lines, "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def answer_of(connection: socket.socket) -> tuple[int, object]:
    """Status and JSON of one answer."""
    with connection, connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(stream.read(length))


TOO_LARGE = (413, {"error": "request body is larger than 1 MiB"})


def test_a_declared_body_over_1_mib_is_refused_unread(live: Live) -> None:
    connection = post_vms(live, f"Content-Length: {MIB + 1}")
    assert answer_of(connection) == TOO_LARGE


def test_a_streamed_body_is_refused_as_soon_as_it_is_over_1_mib(live: Live) -> None:
    connection = post_vms(live, "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for _ in range(MIB // 0x10000):
        connection.sendall(chunk)
    connection.sendall(b"1\r\n \r\n")  # and the body goes on: its end is never sent
    assert answer_of(connection) == TOO_LARGE


def test_a_body_of_exactly_1_mib_is_read(live: Live) -> None:
    connection = post_vms(live, f"Content-Length: {MIB}")
    connection.sendall(b"{}".ljust(MIB))
    status, vm = answer_of(connection)
    assert status == 201
    assert isinstance(vm, dict)
    assert vm["state"] == "running"


def test_a_stranger_is_refused_before_his_body_is_read(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=30) as connection:
        connection.sendall(b"POST /vms HTTP/1.1\r\nHost: hatch\r\nContent-Length: 5000000\r\n\r\n")
        assert answer_of(connection) == (401, {"error": "missing or invalid API key"})


def test_a_client_that_hangs_up_in_its_body_does_no_harm(live: Live, client: Client) -> None:
    with post_vms(live, "Content-Length: 100") as connection:
        connection.sendall(b'{"mem')
    assert client.health()["status"] == "ok"


def test_the_curl_line_of_the_documentation(live: Live, client: Client) -> None:
    vm = client.create_vm(name="documented")
    answer = httpx2.post(
        f"{live.url}/vms/{vm['id']}/routes",
        headers={"Authorization": f"Bearer {live.key}", "Content-Type": "application/json"},
        content='{\n    "subdomain": "my-app",\n    "target_port": 8080\n  }',
    )
    assert answer.status_code == 201
    assert answer.json()["auto_wake"] is True


def test_events_are_told_as_they_happen_and_only_those_asked_for(live: Live, client: Client) -> None:
    vm, other = client.create_vm(), client.create_vm()
    headers = {"X-API-Key": live.key}
    with httpx2.stream("GET", f"{live.url}/events", params={"vm": vm["id"]}, headers=headers, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines) == ": listening"
        client.stop_vm(other["id"])
        client.stop_vm(vm["id"])
        assert next(lines) == ""
        assert next(lines).startswith("id: ")
        assert next(lines) == "event: vm.state"
        event = json.loads(next(lines).removeprefix("data: "))
    assert (event["vm_id"], event["state"]) == (vm["id"], "stopped")


def test_the_client_speaks_every_call(live: Live, client: Client) -> None:
    vm = client.create_vm(name="whole", vcpu_count=2, metadata={"a": "b"})
    assert client.get_vm(vm["id"]) == vm
    assert vm in client.list_vms()
    route = client.create_route(vm["id"], target_port=80)
    assert client.list_routes(vm["id"]) == [route]
    assert route in client.list_routes()
    assert client.update_route(route["id"], subdomain="whole")["url"] == "http://whole.hatch.localhost:9090"
    claimed = client.create_route(vm["id"], target_port=80, domain="whole.example.com")
    assert claimed["domain_challenge"] is not None
    live.house.routes.texts = [claimed["domain_challenge"]["value"]]
    assert client.verify_route(claimed["id"])["domain_verified"] is True
    assert client.update_route(claimed["id"], domain=None)["domain"] is None
    client.delete_route(claimed["id"])
    client.delete_route(route["id"])
    snapshot = client.snapshot_vm(vm["id"])
    assert client.list_snapshots(vm["id"]) == [client.get_snapshot(snapshot["id"])]
    assert client.restore_vm(vm["id"])["state"] == "running"
    client.snapshot_vm(vm["id"])
    assert client.restore_vm(vm["id"], snapshot["id"], mode="disk")["state"] == "running"
    client.delete_snapshot(snapshot["id"])
    assert client.stop_vm(vm["id"])["state"] == "stopped"
    assert client.start_vm(vm["id"])["state"] == "running"
    image = client.create_image("/boot/vmlinuz", name="whole")
    assert client.get_image("whole") == image
    assert image in client.list_images()
    client.delete_image("whole")
    template = client.create_template("whole", {"mem_mib": 64})
    assert client.get_template("whole") == template
    assert client.list_templates() == [template]
    client.delete_template("whole")
    key = client.create_key("whole")
    assert key["key"].startswith("hatch_")
    assert key["id"] in [known["id"] for known in client.list_keys()]
    client.delete_key(key["id"])
    client.delete_vm(vm["id"])


def test_the_client_hears_events(client: Client) -> None:
    vm = client.create_vm()
    with client.events(vm["id"]) as events:
        client.stop_vm(vm["id"])
        client.start_vm(vm["id"])
        assert [next(events)["state"], next(events)["state"]] == ["stopped", "running"]


def test_the_client_hears_no_events_of_an_unknown_vm(client: Client) -> None:
    with pytest.raises(ApiError, match="vm not found"), client.events("vm-000000000000"):
        pass


def test_what_the_daemon_refuses_is_an_api_error(client: Client) -> None:
    with pytest.raises(ApiError, match="not found") as refused:
        client.get_vm("../../healthz")
    assert (refused.value.status, refused.value.kind) == (404, Kind.NOT_FOUND)


def test_what_waits_is_told_also_by_a_daemon_that_is_not_ready(
    live: Live, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = client.status()
    assert (status["status"], status["reason"], status["store"]) == ("ready", "", "directory")

    async def unready() -> None:
        raise Unavailable("the store is down")

    monkeypatch.setattr(live.house, "ready", unready)
    status = client.status()
    assert (status["status"], status["reason"], status["uploads"]) == ("not ready", "the store is down", [])


def test_no_key(live: Live) -> None:
    with Client(live.url) as client:
        assert client.health()["status"] == "ok"
        for call in (client.status, client.list_vms):
            with pytest.raises(ApiError, match="missing or invalid API key") as refused:
                call()
            assert refused.value.kind is Kind.UNAUTHENTICATED


def test_no_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}") as client, pytest.raises(Unavailable, match="is `hatchvm serve` running"):
        client.health()


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1"])
def test_a_url_that_is_none(url: str) -> None:
    with Client(url) as client, pytest.raises(Invalid, match="is not an http"):
        client.health()


def test_a_key_that_is_none(live: Live) -> None:
    with pytest.raises(Invalid, match="the API key holds characters") as refused:
        Client(live.url, "two\nlines")
    assert "lines" not in str(refused.value)
