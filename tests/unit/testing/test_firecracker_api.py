"""What the validator of Firecracker's API lets pass, and what it finds wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.testing.firecracker.api import VERSIONS, Phase, call, check, described, name

OLD, NEW = VERSIONS
MACHINE: Final = {"vcpu_count": 2, "mem_size_mib": 128}
BACKEND: Final = {"backend_type": "File", "backend_path": "memory"}
LOAD: Final = {"snapshot_path": "state", "mem_backend": BACKEND}
DRIVE: Final = {"drive_id": "disk", "is_root_device": False, "path_on_host": "disk"}


def wrong(method: str, path: str, body: Any, phase: Phase = Phase.FRESH, version: str = OLD) -> list[str]:
    return check(version, method, path, body, phase)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_that_a_call_names_is_described(version: str) -> None:
    facts = described(version)
    assert {each["body"] for each in facts["calls"].values()} - {None} <= set(facts["types"])
    assert facts["version"] == version
    assert {each["success"] for key, each in facts["calls"].items() if key.startswith("GET")} == {200}
    assert {each["success"] for key, each in facts["calls"].items() if not key.startswith("GET")} == {204}


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_said_of_every_call_when_it_is_legal(version: str) -> None:
    actions = {f"PUT /actions {action}" for action in ("InstanceStart", "FlushMetrics", "SendCtrlAltDel")}
    known = {key for key in described(version)["calls"] if key != "PUT /actions"} | actions
    legal = {key: [phase for phase in Phase if not _phase_wrong(key, version, phase)] for key in known}
    assert all(legal.values())
    assert legal["PUT /snapshot/create"] == [Phase.PAUSED]
    assert legal["PUT /snapshot/load"] == [Phase.FRESH]
    assert legal["PUT /actions InstanceStart"] == [Phase.FRESH, Phase.CONFIGURED]
    assert legal["PATCH /vm"] == [Phase.RUNNING, Phase.PAUSED]
    assert legal["GET /"] == list(Phase)


def _phase_wrong(key: str, version: str, phase: Phase) -> bool:
    called, _, action = key.partition(" /actions ")
    method, _, path = key.partition(" ")
    body = {"action_type": action} if action else None
    asked = (called, "/actions") if action else (method, path)
    return any("is not legal" in each for each in check(version, *asked, body, phase))


def test_what_a_driver_may_send_passes() -> None:
    assert wrong("PUT", "/machine-config", MACHINE) == []
    assert wrong("PUT", "/drives/disk", DRIVE | {"cache_type": "Writeback"}) == []
    assert wrong("PUT", "/snapshot/load", LOAD | {"track_dirty_pages": True, "clock_realtime": True}) == []
    assert wrong("PUT", "/entropy", {}) == []
    assert wrong("GET", "/version", None, Phase.RUNNING) == []
    assert wrong("PATCH", "/machine-config", {"mem_size_mib": 64}) == []
    assert wrong("PATCH", "/balloon/hinting/start", None, Phase.RUNNING) == []
    assert wrong("PUT", "/mmds", {"any": {"thing": [1]}}) == []


@pytest.mark.parametrize(
    ("method", "path", "body", "found"),
    [
        ("PUT", "/nowhere", {}, "there is no PUT /nowhere"),
        ("PATCH", "/boot-source", {}, "there is no PATCH /boot-source"),
        ("DELETE", "/drives/disk", None, "there is no DELETE"),
        ("PUT", "/drives/disk/", DRIVE, "there is no PUT"),
        ("PUT", "/machine-config", None, "needs a body"),
        ("GET", "/version", {}, "takes no body"),
        ("PUT", "/machine-config", "text", "not of type object"),
        ("PUT", "/machine-config", MACHINE | {"turbo": 1}, "an unknown field turbo"),
        ("PUT", "/machine-config", {"vcpu_count": 1}, "lacks mem_size_mib"),
        ("PUT", "/machine-config", MACHINE | {"smt": 1}, "smt is not of type boolean"),
        ("PUT", "/machine-config", MACHINE | {"vcpu_count": True}, "vcpu_count is not of type integer"),
        ("PUT", "/machine-config", MACHINE | {"vcpu_count": 33}, "vcpu_count is 33, out of range"),
        ("PUT", "/machine-config", MACHINE | {"huge_pages": "Transparent"}, "huge_pages is 'Transparent', not one of"),
        ("PUT", "/machine-config", MACHINE | {"cpu_template": "T2"}, "cpu_template of PUT /machine-config is deprec"),
        ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "v", "vsock_id": "1"}, "vsock_id of PUT /vsock is deprecated"),
        ("PUT", "/vsock", {"guest_cid": 2, "uds_path": "v"}, "guest_cid is 2, out of range"),
        ("PUT", "/snapshot/load", LOAD | {"enable_diff_snapshots": True}, "is deprecated"),
        ("PUT", "/snapshot/load", {"snapshot_path": "s", "mem_file_path": "m"}, "mem_file_path of PUT /snapshot/load"),
        ("PUT", "/snapshot/load", LOAD | {"network_overrides": [{"iface_id": "eth0"}]}, "[0] lacks host_dev_name"),
        ("PUT", "/snapshot/load", LOAD | {"vsock_override": {"uds_path": "v", "cid": 3}}, "an unknown field cid"),
        ("PUT", "/drives/other", DRIVE, "is not the one in the body"),
        ("PUT", "/drives/a-b", DRIVE | {"drive_id": "a-b"}, "other characters"),
        ("PUT", "/entropy", {"rate_limiter": {"ops": {"size": -1, "refill_time": 1}}}, "size is -1, out of range"),
        ("PUT", "/mmds/config", {"network_interfaces": ["eth0"]}, "V1"),
        ("PUT", "/entropy", {"rate_limiter": None}, "rate_limiter is not of type object"),
    ],
)
def test_what_is_wrong_is_said(method: str, path: str, body: Any, found: str) -> None:
    assert any(found in each for each in wrong(method, path, body)), wrong(method, path, body)


def test_a_later_version_knows_more() -> None:
    later = LOAD | {"huge_pages": "Snapshot"}
    assert wrong("PUT", "/snapshot/load", later) == ["the body has an unknown field huge_pages"]
    assert wrong("PUT", "/snapshot/load", later, version=NEW) == []
    labels = {"metrics_path": "m", "properties": {"vm": "one"}}
    assert wrong("PUT", "/metrics", labels, version=NEW) == []
    assert wrong("PUT", "/metrics", labels | {"properties": {"vm": 1}}, version=NEW) == ["vm is not of type string"]


def test_the_published_text_is_read_without_its_prose(tmp_path: Path) -> None:
    text = tmp_path / "api.yaml"
    text.write_text(PUBLISHED)
    told = subprocess.run([sys.executable, SCRIPT, text], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == {
        "version": "9.0.0",
        "calls": {
            "GET /thing": {"body": None, "success": 200},
            "PUT /thing": {"body": "Thing", "success": 204},
        },
        "types": {
            "Thing": {
                "type": "object",
                "required": ["level"],
                "properties": {
                    "level": {"type": "string", "enum": ["Info", "Off"]},
                    "parts": {"type": "array", "items": {"$ref": "Thing"}},
                },
            }
        },
    }


SCRIPT: Final = Path(__file__).parents[3] / "scripts" / "firecracker-api"
PUBLISHED: Final = """
swagger: "2.0"
info: {version: 9.0.0, description: prose}
paths:
  /thing:
    get: {summary: prose, responses: {200: {description: prose}, default: {description: prose}}}
    put:
      parameters: [{in: body, name: body, required: true, schema: {$ref: "#/definitions/Thing"}}]
      responses: {400: {description: prose}, 204: {description: prose}}
definitions:
  Thing:
    type: object
    description: prose
    required: [level]
    properties:
      level: {type: string, enum: [Info, Off], default: Info, description: prose}
      parts: {type: array, items: {$ref: "#/definitions/Thing"}}
"""


def test_a_version_that_is_not_described_is_no_guess() -> None:
    with pytest.raises(ValueError, match=r"no description of Firecracker 9\.9\.9"):
        described("9.9.9")


def test_calls_have_names_for_faults() -> None:
    assert call(OLD, "PUT", "/drives/disk") == "PUT /drives/{drive_id}"
    assert call(OLD, "PUT", "/mmds/config") == "PUT /mmds/config"
    assert call(OLD, "GET", "/drives/disk") is None
    assert name("PATCH /vm", {"state": "Paused"}) == "PATCH /vm Paused"
    assert name("PUT /actions", {"action_type": "InstanceStart"}) == "PUT /actions InstanceStart"
    assert name("PUT /actions", "text") == "PUT /actions"


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    method=st.sampled_from(["GET", "PUT", "PATCH", "DELETE"]),
    path=st.sampled_from([each.partition(" ")[2] for each in described(OLD)["calls"]]) | st.text(max_size=12),
    body=JSON,
    phase=st.sampled_from(Phase),
)
def test_whatever_is_asked_has_an_answer(method: str, path: str, body: Any, phase: Phase) -> None:
    found = check(OLD, method, path, body, phase)
    assert all(isinstance(each, str) for each in found)
    if call(OLD, method, path) is None:
        assert found


@given(vcpus=st.integers(-3, 40), smt=st.booleans())
def test_threads_come_in_pairs(vcpus: int, smt: bool) -> None:
    found = wrong("PUT", "/machine-config", MACHINE | {"vcpu_count": vcpus, "smt": smt})
    assert bool(found) == (not 1 <= vcpus <= 32 or (smt and vcpus > 1 and vcpus % 2 == 1))
