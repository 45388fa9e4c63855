"""The door itself: keys, unknown paths and methods, health, documents, bugs."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from hatchvm.api.accept import wants_metrics
from hatchvm.base.errors import Unavailable
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.house import PendingUpload
from hatchvm.testing.house import START, FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]

OPEN = {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/tls/ask"}
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


async def test_every_call_but_the_open_ones_wants_a_key_before_anything_else(
    app: FastAPI, stranger: httpx2.AsyncClient, house: FakeHouse
) -> None:
    house.trouble = AssertionError("asked")
    guarded = 0
    for route in iter_route_contexts(app.routes):
        path = str(route.path)
        if path in OPEN:
            continue
        for method in route.methods or ():
            answer = await stranger.request(method, path, content=b"not json")
            assert (answer.status_code, answer.json()) == (401, {"error": "missing or invalid API key"}), path
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            guarded += 1
    assert guarded == 42


@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER   {}"])
async def test_a_bearer_key(stranger: httpx2.AsyncClient, house: FakeHouse, form: str) -> None:
    _, secret = await house.keys.create("a")
    assert (await stranger.get("/vms", headers={"Authorization": form.format(secret)})).status_code == 200


async def test_a_key_in_its_own_header(stranger: httpx2.AsyncClient, house: FakeHouse) -> None:
    _, secret = await house.keys.create("a")
    assert (await stranger.get("/vms", headers={"X-API-Key": secret})).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer hatch_wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic aGF0Y2g6"},
        {"X-API-Key": ""},
        {"X-API-Key": "é".encode("latin-1")},
        {"X-API-Key": "k" * 5000},
    ],
)
async def test_wrong_keys(stranger: httpx2.AsyncClient, headers: dict[str, str | bytes]) -> None:
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()]
    assert (await stranger.get("/vms", headers=raw)).status_code == 401


async def test_a_verifier_that_cannot_answer_is_503(client: httpx2.AsyncClient, house: FakeHouse) -> None:
    async def down(secret: str) -> bool:
        raise Unavailable("the key verifier does not answer")

    house.keys.verify = down  # type: ignore[method-assign]
    answer = await client.get("/vms")
    assert (answer.status_code, answer.json()) == (503, {"error": "the key verifier does not answer"})


@pytest.mark.parametrize("path", ["/nope", "/vms/", "/vms/a/b/c", "/"])
async def test_an_unknown_path_is_404(client: httpx2.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "not found"})


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/vms", "GET, POST"),
        ("POST", "/vms/vm-000000000000", "DELETE, GET"),
        ("GET", "/routes/rt-000000000000", "DELETE, PATCH"),
        ("GET", "/vms/vm-000000000000/snapshot", "POST"),
        ("POST", "/healthz", "GET"),
        ("POST", "/docs", "GET"),
    ],
)
async def test_a_wrong_method_is_405_and_names_all_right_ones(
    client: httpx2.AsyncClient, method: str, path: str, allowed: str
) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.json()) == (405, {"error": "method not allowed"})
    assert answer.headers["Allow"] == allowed


async def test_health_for_people(stranger: httpx2.AsyncClient, client: httpx2.AsyncClient) -> None:
    await client.post("/vms")
    answer = await stranger.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "vm_count": 1, "route_count": 0})


@pytest.mark.parametrize("accept", [PROMETHEUS_2, PROMETHEUS_3, "text/plain;version=0.0.4"])
async def test_health_for_prometheus(stranger: httpx2.AsyncClient, client: httpx2.AsyncClient, accept: str) -> None:
    await client.post("/vms")
    answer = await stranger.get("/healthz", headers={"Accept": accept})
    assert answer.status_code == 200
    assert "json" not in answer.headers["Content-Type"]
    assert "\nhatch_vm_count 1.0\n" in answer.text
    assert "\nhatch_route_count 0.0\n" in answer.text


@pytest.mark.parametrize(
    ("accept", "metrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json", False),
        ("application/json, text/plain;version=0.0.4;q=0.5", False),
        ("application/json;q=0.5, text/plain; version=0.0.4", True),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("APPLICATION/OpenMetrics-Text", True),
        (PROMETHEUS_2, True),
        (PROMETHEUS_3, True),
    ],
)
def test_who_wants_metrics(accept: str, metrics: bool) -> None:
    assert wants_metrics(accept) is metrics


async def test_readiness(stranger: httpx2.AsyncClient, house: FakeHouse) -> None:
    nothing = {"store": "directory", "uploads_pending": 0, "oldest_pending_seconds": 0.0}
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", **nothing})
    house.uploads = _uploads(await house.vms.create(NewVM()))
    waiting = nothing | {"uploads_pending": 2, "oldest_pending_seconds": 61.5}
    answer = await stranger.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready", **waiting})
    house.trouble = Unavailable("still adopting VMs", retry_after_s=3)
    answer = await stranger.get("/readyz")
    refused = {"error": "still adopting VMs", "status": "not ready", **waiting}
    assert (answer.status_code, answer.json(), answer.headers["Retry-After"]) == (503, refused, "3")


async def test_status(client: httpx2.AsyncClient, house: FakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await house.vms.create(NewVM())
    calm = {"status": "ready", "reason": "", "store": "directory", "vms": {"running": 1}}
    stored = {"uploads_pending": 0, "oldest_pending_seconds": 0.0, "uploads": []}
    answer = await client.get("/status")
    assert (answer.status_code, answer.json()) == (200, calm | stored)
    house.uploads = _uploads(vm)
    first = {
        "vm_id": vm.id,
        "snapshot_id": "snap-000000000001",
        "pending_since": "2026-03-06T14:30:00Z",
        "error": "the store is down",
        "uploading": False,
        "next_retry_at": "2026-03-06T14:31:02Z",
    }
    second = first | {"error": "", "uploading": True, "next_retry_at": None}
    waiting = {"uploads_pending": 2, "oldest_pending_seconds": 61.5, "uploads": [first, second]}
    assert (await client.get("/status")).json() == calm | waiting

    async def unready() -> None:
        raise Unavailable("not ready: the store is down")

    monkeypatch.setattr(house, "ready", unready)
    answer = await client.get("/status")
    trouble = {"status": "not ready", "reason": "not ready: the store is down"}
    assert (answer.status_code, answer.json()) == (200, calm | waiting | trouble)


def _uploads(vm: VM) -> list[PendingUpload]:
    waits = PendingUpload(
        vm_id=vm.id,
        snapshot_id="snap-000000000001",
        since=START,
        waited_s=61.5,
        error="the store is down",
        uploading=False,
        retry_at=START + timedelta(seconds=62),
    )
    return [waits, replace(waits, waited_s=1.0, error="", uploading=True, retry_at=None)]


async def test_metrics(stranger: httpx2.AsyncClient) -> None:
    answer = await stranger.get("/metrics")
    assert answer.status_code == 200
    assert "hatch_wakes_total 1.0" in answer.text


async def test_the_openapi_document_is_complete(stranger: httpx2.AsyncClient) -> None:
    document = (await stranger.get("/openapi.json")).json()
    assert (document["info"]["title"], document["info"]["version"]) == ("Hatch", "1.2.3")
    names = set()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            names.add(operation["operationId"])
            assert operation["description"]
            assert "422" not in operation["responses"]
            assert operation["responses"]["503"]["content"]["application/json"]["schema"]["$ref"].endswith("/Problem")
            assert ("security" in operation) is (path not in OPEN)
    assert len(names) == 46
    assert {"create_vm", "snapshot_vm", "update_route", "healthz", "stream_events"} <= names
    vm = document["components"]["schemas"]["VMCreate"]
    assert vm["additionalProperties"] is False
    assert "required" not in vm
    assert vm["properties"]["vcpu_count"] | {"title": ""} == {
        "type": "integer",
        "minimum": 1,
        "maximum": 32,
        "title": "",
    }


async def test_the_docs_page_names_every_call_and_needs_nothing_else(stranger: httpx2.AsyncClient) -> None:
    page = await stranger.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    document = (await stranger.get("/openapi.json")).json()
    for path in document["paths"]:
        assert f"<code>{path}</code>" in page.text
    for model in document["components"]["schemas"]:
        assert f'id="{model}"' in page.text
    assert "<script" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


async def test_a_bug_is_a_500_that_tells_the_client_nothing_and_the_log_everything(
    client: httpx2.AsyncClient, house: FakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    house.trouble = ZeroDivisionError("secret detail")
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/vms")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    [record] = [record for record in caplog.records if record.name == "hatchvm.api.boundary"]
    assert record.__dict__["request_id"] == answer.headers["X-Request-Id"]
    assert record.exc_info is not None
