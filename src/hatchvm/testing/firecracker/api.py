"""Firecracker's API as data, and what is wrong with a request. Pure.

`api-<version>.json` holds the facts of the published OpenAPI text (`scripts/firecracker-api`). Where the text says
less than the program does, this says what the program does: when a call is legal, which fields are deprecated, that
an id in a path must be the one in the body. Stricter than the program: unknown fields are refused in every body, not
in most.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final

VERSIONS: Final = ("1.16.1", "1.17.0-dev")


class Phase(Enum):
    """Where a process stands. The values are what `GET /` tells."""

    FRESH = ("Not started", "nothing of a VM is configured")
    CONFIGURED = ("Not started", "configured to boot")
    RUNNING = ("Running", "")
    PAUSED = ("Paused", "")

    @property
    def state(self) -> str:
        return self.value[0]


_BEFORE: Final = frozenset({Phase.FRESH, Phase.CONFIGURED})
_AFTER: Final = frozenset({Phase.RUNNING, Phase.PAUSED})
_ANY: Final = _BEFORE | _AFTER
#: When a call is legal: `<method> <path>`, for actions with the action.
_WHEN: Final = {
    "GET /": _ANY,
    "GET /balloon": _ANY,
    "GET /balloon/hinting/status": _AFTER,
    "GET /balloon/statistics": _AFTER,
    "GET /hotplug/memory": _AFTER,
    "GET /machine-config": _ANY,
    "GET /mmds": _ANY,
    "GET /version": _ANY,
    "GET /vm/config": _ANY,
    "PATCH /balloon": _AFTER,
    "PATCH /balloon/hinting/start": _AFTER,
    "PATCH /balloon/hinting/stop": _AFTER,
    "PATCH /balloon/statistics": _AFTER,
    "PATCH /drives/{drive_id}": _AFTER,
    "PATCH /hotplug/memory": _AFTER,
    "PATCH /machine-config": _BEFORE,
    "PATCH /mmds": _ANY,
    "PATCH /network-interfaces/{iface_id}": _AFTER,
    "PATCH /pmem/{id}": _AFTER,
    "PATCH /vm": _AFTER,
    "PUT /actions FlushMetrics": _AFTER,
    "PUT /actions InstanceStart": _BEFORE,
    "PUT /actions SendCtrlAltDel": _AFTER,
    "PUT /balloon": _BEFORE,
    "PUT /boot-source": _BEFORE,
    "PUT /cpu-config": _BEFORE,
    "PUT /drives/{drive_id}": _BEFORE,
    "PUT /entropy": _BEFORE,
    "PUT /hotplug/memory": _BEFORE,
    "PUT /logger": _BEFORE,
    "PUT /machine-config": _BEFORE,
    "PUT /metrics": _BEFORE,
    "PUT /mmds": _ANY,
    "PUT /mmds/config": _BEFORE,
    "PUT /network-interfaces/{iface_id}": _BEFORE,
    "PUT /pmem/{id}": _BEFORE,
    "PUT /serial": _BEFORE,
    "PUT /snapshot/create": frozenset({Phase.PAUSED}),
    "PUT /snapshot/load": frozenset({Phase.FRESH}),
    "PUT /vsock": _BEFORE,
}
#: Calls that leave a process fresh enough to load a snapshot.
NOT_OF_A_BOOT: Final = frozenset(
    {"PUT /logger", "PUT /metrics", "PUT /serial", "PUT /cpu-config", "PUT /mmds", "PATCH /mmds"}
)
ONCE: Final = frozenset({"PUT /metrics", "PUT /actions InstanceStart", "PUT /snapshot/load"})
#: Call -> field -> its values that are deprecated (None: all).
_DEPRECATED: Final[dict[str, dict[str, frozenset[str] | None]]] = {
    "PUT /machine-config": {"cpu_template": None},
    "PATCH /machine-config": {"cpu_template": None},
    "PUT /mmds/config": {"version": frozenset({"V1"})},
    "PUT /snapshot/load": {"mem_file_path": None, "enable_diff_snapshots": None},
    "PUT /vsock": {"vsock_id": None},
}
_BODY_MAY_BE_MISSING: Final = frozenset({"PATCH /balloon/hinting/start"})
#: The text makes the whole type required where the program takes a part of it, and the other way round.
_REQUIRED: Final = {
    "PATCH /machine-config": (),
    "PUT /hotplug/memory": ("total_size_mib",),
    "PATCH /hotplug/memory": ("requested_size_mib",),
    "PUT /snapshot/load": ("snapshot_path", "mem_backend"),
}
_ID: Final = re.compile("[A-Za-z0-9_]+")
_TYPES: Final = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict}


@cache
def described(version: str) -> dict[str, Any]:
    """The facts of that version. Raises ValueError if there are none."""
    if version not in VERSIONS:
        raise ValueError(f"no description of Firecracker {version}")
    text = Path(__file__).with_name(f"api-{version}.json").read_text()
    facts: dict[str, Any] = json.loads(text)
    return facts


def call(version: str, method: str, path: str) -> str | None:
    """`<method> <path>` as it is described, or None if there is no such call."""
    for known in described(version)["calls"]:
        if _matches(known, f"{method} {path}"):
            return str(known)
    return None


def name(called: str, body: object) -> str:
    """The call with what is asked for, where one call is several: `PUT /actions InstanceStart`, `PATCH /vm Paused`."""
    field = {"PUT /actions": "action_type", "PATCH /vm": "state"}.get(called)
    return f"{called} {body.get(field)}" if field and isinstance(body, dict) else called


def check(version: str, method: str, path: str, body: object, phase: Phase) -> list[str]:
    """What is wrong with a request, one line each. `body` is parsed JSON, None if there is none."""
    called = call(version, method, path)
    if called is None:
        return [f"there is no {method} {path} in {version}"]
    wrong = list(_body(version, called, path, body))
    when = _WHEN.get(called) or _WHEN.get(name(called, body), _ANY)
    if phase not in when:
        wrong.append(f"{name(called, body)} is not legal while the VM is {phase.name.lower()}")
    return wrong


def _body(version: str, called: str, path: str, body: object) -> Iterator[str]:
    facts = described(version)
    wanted = facts["calls"][called]["body"]
    if wanted is None or body is None:
        if wanted is not None and called not in _BODY_MAY_BE_MISSING:
            yield f"{called} needs a body"
        if wanted is None and body is not None:
            yield f"{called} takes no body"
        return
    schema = facts["types"][wanted]
    if called in _REQUIRED:
        schema = schema | {"required": _REQUIRED[called]}
    yield from _value(facts["types"], schema, body, "the body")
    if isinstance(body, dict):
        yield from _beyond(called, path, body)


def _beyond(called: str, path: str, body: dict[str, Any]) -> Iterator[str]:
    """What no schema says."""
    for field, values in _DEPRECATED.get(called, {}).items():
        if field in body and (values is None or body[field] in values):
            yield f"{field} of {called} is deprecated"
    if called == "PUT /mmds/config" and "version" not in body:
        yield "the version V1 of PUT /mmds/config, which is its default, is deprecated"
    if placeholder := re.search(r"\{(\w+)\}", called):
        inside, outside = body.get(placeholder[1]), path.rpartition("/")[2]
        if not _ID.fullmatch(outside):
            yield f"the id {outside!r} has other characters than letters, digits and underscores"
        if inside != outside:
            yield f"the id in the path, {outside!r}, is not the one in the body, {inside!r}"
    if called == "PUT /machine-config" and body.get("smt") and body.get("vcpu_count", 1) not in (1, *range(2, 33, 2)):
        yield "with smt, vcpu_count is neither 1 nor an even number"


def _value(types: dict[str, Any], schema: dict[str, Any], value: object, where: str) -> Iterator[str]:
    if "$ref" in schema:
        schema = types[schema["$ref"]]
    kind = schema.get("type", "object")
    if not isinstance(value, _TYPES[kind]) or (kind == "integer" and isinstance(value, bool)):
        yield f"{where} is not of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} is {value!r}, not one of {', '.join(schema['enum'])}"
    if isinstance(value, int) and not schema.get("minimum", 0) <= value <= schema.get("maximum", 2**64 - 1):
        yield f"{where} is {value}, out of range"
    if isinstance(value, list):
        for number, each in enumerate(value):
            yield from _value(types, schema["items"], each, f"{where}[{number}]")
    if isinstance(value, dict):
        yield from _fields(types, schema, value, where)


def _fields(types: dict[str, Any], schema: dict[str, Any], value: dict[str, Any], where: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    for field in schema.get("required", ()):
        if field not in value:
            yield f"{where} lacks {field}"
    for field, each in value.items():
        if field in known:
            yield from _value(types, known[field], each, field)
        elif isinstance(others, dict):
            yield from _value(types, others, each, field)
        elif not others:
            yield f"{where} has an unknown field {field}"


def _matches(known: str, asked: str) -> bool:
    """Placeholders stand for one step of the path, whatever is in it."""
    steps, others = known.split("/"), asked.split("/")
    return len(steps) == len(others) and all(a == b or a.startswith("{") for a, b in zip(steps, others, strict=True))
