"""Nothing a client sends can produce a 500: every field of every call, wrong in every way.

The calls and fields come from the OpenAPI document: a field added to a body is covered without touching this file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import httpx2
import pytest

from hatchvm.api.app import create_app
from hatchvm.api.openapi import describe
from hatchvm.testing.house import FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]

Json = Any
Node = Mapping[str, Any]


class Call(NamedTuple):
    """An operation with a body."""

    name: str
    method: str
    path: str
    schema: Node


def _document() -> Node:
    house = FakeHouse()
    return describe(create_app(house, house.keys, base_url_for=str, socket_path_for=str, version="1"))


DOCUMENT = _document()
MODELS = DOCUMENT["components"]["schemas"]


def resolve(schema: Node) -> Node:
    return MODELS[schema["$ref"].rsplit("/", 1)[-1]] if "$ref" in schema else schema


def calls() -> Iterator[Call]:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            if body := operation.get("requestBody"):
                schema = resolve(body["content"]["application/json"]["schema"])
                yield Call(operation["operationId"], method.upper(), path, schema)


CALLS = list(calls())
ONE_OF_EACH: Mapping[str, Json] = {
    "null": None,
    "boolean": True,
    "integer": 7,
    "number": 7.0,
    "string": "seven",
    "array": [7],
    "object": {"seven": 7},
}
GOOD: Mapping[str, Json] = {
    "target_port": 80,
    "kernel_path": "/boot/vmlinuz",
    "name": "tiny",
    "ttl": "30m",
    "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
}


def bad_values(schema: Node) -> Iterator[Json]:
    """Values that a field of that schema must refuse."""
    if "anyOf" in schema:  # or null
        [schema] = [choice for choice in schema["anyOf"] if choice["type"] != "null"]
        yield from (value for value in bad_values(schema) if value is not None)
        return
    yield from (value for name, value in ONE_OF_EACH.items() if name != schema["type"])
    if "minimum" in schema:
        yield schema["minimum"] - 1
        yield -(10**40)
    if "maximum" in schema:
        yield schema["maximum"] + 1
        yield 10**40
    if "enum" in schema:
        yield "".join(schema["enum"])
    elif schema["type"] == "string":
        yield "a" * (schema["maxLength"] + 1)
        yield from ("\0", "\ud800")
    if schema["type"] == "object":
        yield from bad_objects(schema)


def bad_objects(schema: Node) -> Iterator[Json]:
    if "properties" in schema:
        yield {"no_such_field": 1}
        for name, field in schema["properties"].items():
            yield from ({name: value} for value in bad_values(resolve(field)))
        return
    yield {f"k{number}": "v" for number in range(schema["maxProperties"] + 1)}
    yield from ({"k": value} for name, value in ONE_OF_EACH.items() if name != "string")
    yield from ({key: "v"} for key in ("", "k" * 64, "\0", "\ud800"))
    yield from ({"k": value} for value in ("v" * 256, "\0", "\ud800"))


async def path_of(client: httpx2.AsyncClient, call: Call) -> str:
    """The call's path with ids of things that exist."""
    vm = (await client.post("/vms")).json()
    route = (await client.post(f"/vms/{vm['id']}/routes", json={"target_port": 80})).json()
    hold = (await client.post(f"/vms/{vm['id']}/holds", json={"ttl": "1h"})).json()
    return call.path.format(vm_id=vm["id"], route_id=route["id"], hold_id=hold["id"])


async def refused(client: httpx2.AsyncClient, call: Call, path: str, content: bytes) -> str:
    """Send it; the sentence of the refusal."""
    answer = await client.request(call.method, path, content=content)
    assert 400 <= answer.status_code < 500, (content[:200], answer.text)
    assert list(answer.json()) == ["error"]
    sentence = answer.json()["error"]
    assert sentence
    assert "\n" not in sentence
    return str(sentence)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_bad_fields(client: httpx2.AsyncClient, call: Call) -> None:
    path = await path_of(client, call)
    good = {name: GOOD[name] for name in call.schema.get("required", ())}
    for name, field in call.schema["properties"].items():
        for value in bad_values(resolve(field)):
            sentence = await refused(client, call, path, json.dumps(good | {name: value}).encode())
            assert name in sentence or sentence.endswith(" not found"), (value, sentence)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_missing_and_unknown_fields(client: httpx2.AsyncClient, call: Call) -> None:
    path = await path_of(client, call)
    required = call.schema.get("required", ())
    good = {name: GOOD[name] for name in required}
    for name in required:
        without = {other: value for other, value in good.items() if other != name}
        sentence = await refused(client, call, path, json.dumps(without).encode())
        assert sentence == f"{name}: is required"
    for name in ("no_such_field", "ID", "", "x" * 5000, "\0", "__class__"):
        sentence = await refused(client, call, path, json.dumps(good | {name: 1}).encode())
        assert sentence.endswith(": is not a known field")
        assert len(sentence) < 150


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
async def test_bodies_that_are_not_an_object_in_strict_json(client: httpx2.AsyncClient, call: Call) -> None:
    path = await path_of(client, call)
    name = next(iter(call.schema["properties"]))
    bodies = [
        *(json.dumps(value).encode() for kind, value in ONE_OF_EACH.items() if kind != "object"),
        b"not json",
        b"{",
        b"{} {}",
        b"\xff\xfe",
        b'{"name": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
        b'{"\\ud800": 1}',
        f'{{"{name}": NaN}}'.encode(),
        f'{{"{name}": -Infinity}}'.encode(),
        f'{{"{name}": 1, "{name}": 1}}'.encode(),
    ]
    for body in bodies:
        assert (await refused(client, call, path, body)).startswith("body: ")


async def test_sentences_never_quote_a_secret(client: httpx2.AsyncClient) -> None:
    for value in (["swordfish"], {"swordfish": 1}, "swordfish\0"):
        answer = await client.post("/vms", json={"user_data": value})
        assert answer.status_code == 400
        assert "swordfish" not in answer.text


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"vcpu_count": "2"}, "vcpu_count: must be a whole number"),
        ({"vcpu_count": True}, "vcpu_count: must be a whole number"),
        ({"vcpu_count": 0}, "vcpu_count: must be at least 1"),
        ({"mem_mib": 31}, "mem_mib: must be at least 32"),
        ({"mem_mib": 2**20 + 1}, "mem_mib: must be at most 1048576"),
        ({"enable_network": 1}, "enable_network: must be true or false"),
        ({"image_id": None}, "image_id: must be a string"),
        ({"cpus": 2}, "cpus: is not a known field"),
        ({"metadata": {"a": 1}}, "metadata.a: must be a string"),
        ({"name": "My VM"}, "name: must have a-z, 0-9 and '-' only, and start and end with a letter or a digit"),
        ({"boot_args": "a\nb"}, "boot_args: must not contain control characters"),
        ({"guest_ip": "10.0.0.256"}, "guest_ip: must be an IPv4 address such as 172.16.0.10"),
        ({"guest_ip": "::1"}, "guest_ip: must be an IPv4 address such as 172.16.0.10"),
        ({"guest_ip": "224.0.0.1"}, "guest_ip: must be an address that a single guest can have"),
        ({"guest_ip": "255.255.255.255"}, "guest_ip: must be an address that a single guest can have"),
        ({"guest_mac": "01:00:5e:00:00:01"}, "guest_mac: must be a unicast MAC address"),
        ({"guest_mac": "06-00-00-00-00-01"}, "guest_mac: must be a MAC address such as 06:00:ac:10:00:0a"),
        ({"idle_timeout": "5 minutes"}, 'idle_timeout: must be a duration such as 30s, 5m or 1h30m, or "never"'),
        ({"idle_timeout": "-5m"}, 'idle_timeout: must be a duration such as 30s, 5m or 1h30m, or "never"'),
        ({"user_data": "é" * (300 * 1024)}, "user_data: must have at most 512 KiB"),
    ],
)
async def test_sentences(client: httpx2.AsyncClient, body: dict[str, Json], sentence: str) -> None:
    answer = await client.post("/vms", json=body)
    assert (answer.status_code, answer.json()) == (400, {"error": sentence})


@pytest.mark.parametrize("vm", ["nope", "vm-000000000000", "x" * 65, ""])
async def test_events_of_an_unknown_vm(client: httpx2.AsyncClient, vm: str) -> None:
    answer = await client.get("/events", params={"vm": vm})
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]
