"""`hatchvm store` and `hatchvm snapshot verify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.base.units import MIB
from hatchvm.client import Client
from hatchvm.client.answers import Verified
from hatchvm.domain.stored import Kind, Problem
from hatchvm.testing.command import Cli
from hatchvm.testing.house import FakeHouse
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]


@pytest.fixture
def house(live: Live) -> Iterator[FakeHouse]:
    """Empty, and afterwards as it was."""
    live.house.vm_rows.clear()
    live.house.snapshot_rows.clear()
    yield live.house
    live.house.trouble = None
    live.house.damaged.clear()
    live.house.storage.problems.clear()
    live.house.storage.graces.clear()
    live.house.vm_rows.clear()
    live.house.snapshot_rows.clear()


@pytest.fixture
def snapshots(cli: Cli, house: FakeHouse) -> list[str]:
    """Those of three VMs, the newest first."""
    made = []
    for _ in range(3):
        vm = json.loads(cli("vm", "create", "--json").out)
        made.append(json.loads(cli("vm", "snapshot", vm["id"], "--json").out)["id"])
    return made[::-1]


def fields(out: str) -> dict[str, str]:
    """Of a table for people: names end where two blanks are."""
    pairs = [line.split("  ", 1) for line in out.splitlines()]
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_gc(cli: Cli, house: FakeHouse) -> None:
    shown = cli("store", "gc")
    assert shown.code == 0
    assert fields(shown.out) == {
        "removed": "2 objects, 3.0 MiB",
        "kept": "5 objects, 9.0 MiB",
        "of that not needed, but too young": "1 object, 1.0 MiB",
    }
    assert shown.err == ""
    asked = cli("--json", "store", "gc", "--grace", "0s")
    assert json.loads(asked.out)["deleted"] == {"objects": 2, "bytes": 3 * MIB}
    assert house.storage.graces == [None, 0.0]


def test_gc_with_a_wrong_duration(cli: Cli, house: FakeHouse) -> None:
    outcome = cli("store", "gc", "--grace", "soon")
    assert outcome.code == 2
    assert "grace: must be a duration" in outcome.err


def test_audit(cli: Cli, house: FakeHouse) -> None:
    shown = cli("store", "audit")
    assert shown.code == 0
    assert fields(shown.out) == {
        "status": "ok",
        "stored": "3.0 MiB",
        "snapshots": "1 object, 1000 B",
        "packs": "3 objects, 3.0 MiB",
        "of that shared": "1 object, 1.0 MiB",
        "deleted": "0 objects, 0 B",
        "unneeded": "2 objects, 2.0 MiB, 1 object, 1.0 MiB of it old enough to go",
        "not ours": "0 objects, 0 B",
        "not encrypted": "3.0 MiB",
    }
    house.storage.problems = [Problem(kind=Kind.UNKNOWN, key="packs/x", message="not ours")]
    assert cli("store", "audit").code == 0
    house.storage.problems = [Problem(kind=Kind.MISSING, key="k", message="is missing", snapshot_id="snap-1")]
    damaged = cli("store", "audit")
    assert damaged.code == 10
    assert damaged.out.splitlines()[-1].split() == ["missing_data", "snap-1", "k", "is", "missing"]
    as_json = cli("--json", "store", "audit")
    assert as_json.code == 10
    assert json.loads(as_json.out)["status"] == "damaged"


def test_verify_one(cli: Cli, house: FakeHouse, snapshots: list[str]) -> None:
    whole = cli("--json", "snapshot", "verify", snapshots[0])
    assert (whole.code, whole.err) == (0, "")
    assert json.loads(whole.out) == {"snapshot_id": snapshots[0], "status": "ok", "bytes": MIB, "error": None}
    house.damaged.add(snapshots[0])
    damaged = cli("snapshot", "verify", snapshots[0])
    assert damaged.code == 10
    assert fields(damaged.out)["error"] == f"the snapshot is damaged: packs/0/{snapshots[0]} is missing"
    assert cli("snapshot", "verify", "snap-000000000000").code == 4


def test_verify_all(cli: Cli, house: FakeHouse, snapshots: list[str]) -> None:
    whole = cli("--json", "snapshot", "verify", "--all")
    assert whole.code == 0
    assert [row["snapshot_id"] for row in json.loads(whole.out)] == snapshots
    assert whole.err.splitlines() == [f"{n}/3  {one}  1.0 MiB" for n, one in enumerate(snapshots, 1)]
    house.damaged.add(snapshots[1])
    damaged = cli("snapshot", "verify", "--all")
    assert damaged.code == 10
    assert [line.split()[1] for line in damaged.out.splitlines()] == ["STATUS", "ok", "damaged", "ok"]
    assert damaged.err.splitlines()[1] == f"2/3  {snapshots[1]}  damaged"


def test_verify_all_passes_over_what_is_deleted_meanwhile(
    cli: Cli, house: FakeHouse, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Client.verify_snapshot

    def deleting(client: Client, snapshot_id: str) -> Verified:
        house.snapshot_rows.pop(snapshots[1], None)
        return verify(client, snapshot_id)

    monkeypatch.setattr(Client, "verify_snapshot", deleting)
    outcome = cli("--json", "snapshot", "verify", "--all")
    assert outcome.code == 0
    assert [row["snapshot_id"] for row in json.loads(outcome.out)] == [snapshots[0], snapshots[2]]


def test_verify_all_of_nothing(cli: Cli, house: FakeHouse) -> None:
    outcome = cli("snapshot", "verify", "--all")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "none\n")


@pytest.mark.parametrize("argv", [[], ["snap-0123456789ab", "--all"]])
def test_verify_wants_one_or_all(cli: Cli, argv: list[str]) -> None:
    outcome = cli("snapshot", "verify", *argv)
    assert outcome.code == 2
    assert "name one snapshot, or say --all" in outcome.err


def test_a_store_that_is_down_is_not_damage(
    cli: Cli, house: FakeHouse, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(snapshot_id: str) -> int:
        raise Unavailable("the object store cannot be reached")

    monkeypatch.setattr(house.snapshots, "verify", away)
    for argv in (["--all"], [snapshots[0]]):
        outcome = cli("snapshot", "verify", *argv)
        assert outcome.code == 8
        assert "the object store cannot be reached" in outcome.err


def test_long_work_has_no_time_limit(
    cli: Cli, house: FakeHouse, snapshots: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:

    asked: list[Any] = []
    request = httpx2.Client.request

    def spy(self: httpx2.Client, method: str, url: str, **options: Any) -> httpx2.Response:
        asked.append((url.rpartition("/")[2], options["timeout"].read))
        return request(self, method, url, **options)

    monkeypatch.setattr(httpx2.Client, "request", spy)
    cli("snapshot", "verify", snapshots[0])
    cli("store", "gc")
    cli("store", "audit")
    cli("snapshot", "get", snapshots[0])
    assert asked == [("verify", None), ("gc", None), ("audit", None), (snapshots[0], 1800.0)]
