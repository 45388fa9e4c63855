"""`hatchvm hold` and `hatchvm vm activity`."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from hatchvm.domain.activity import Holding
from hatchvm.domain.lifecycle import State
from hatchvm.ports.house import Use, Woken
from hatchvm.ports.vmm import PutRight
from hatchvm.testing.command import Cli
from hatchvm.testing.house import START
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]

MOMENT = "2026-03-06T14:30:00Z"


@pytest.fixture
def vm_id(cli: Cli) -> str:
    return str(json.loads(cli("vm", "create", "--json").out)["id"])


def ask(cli: Cli, *argv: str) -> Any:
    """The JSON that a command prints."""
    outcome = cli("--json", *argv)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def fields(out: str) -> dict[str, str]:
    """Of a table for people: names end where two blanks are."""
    pairs = [line.split("  ", 1) for line in out.splitlines()]
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def test_holds(cli: Cli, vm_id: str) -> None:
    hold = ask(cli, "hold", "add", vm_id, "--ttl", "30m", "--reason", "a job")
    assert (hold["vm_id"], hold["reason"]) == (vm_id, "a job")
    silent = ask(cli, "hold", "add", vm_id, "--ttl", "30m")
    assert ask(cli, "hold", "list", vm_id) == [silent, hold]
    assert cli("hold", "list", vm_id).out.splitlines()[0].split() == ["ID", "REASON", *"CREATED AT EXPIRES AT".split()]
    assert ask(cli, "hold", "renew", vm_id, hold["id"], "--ttl", "2h")["expires_at"] > hold["expires_at"]
    assert cli("hold", "release", vm_id, hold["id"]).out == f"{hold['id']} deleted\n"
    assert ask(cli, "hold", "list", vm_id) == [silent]


def test_a_hold_needs_a_time(cli: Cli, vm_id: str) -> None:
    assert cli("hold", "add", vm_id).code == 2
    refused = cli("hold", "add", vm_id, "--ttl", "31d")
    assert (refused.code, refused.err.split(" (")[0]) == (
        2,
        "hatchvm: ttl: must be a duration such as 30s, 5m or 1h30m",
    )


def test_why_a_vm_is_awake(cli: Cli, vm_id: str, live: Live) -> None:
    use = Use(
        state=State.RUNNING,
        last_active_at=START,
        idle_s=61.2,
        idle_timeout="30m0s",
        hold_count=120,
        holds=[Holding(kind="http", since=START, peer="10.0.0.5", last_byte_at=START + timedelta(seconds=1))],
        last_wake=Woken(
            at=START,
            reason="http",
            by="10.0.0.5",
            seconds=0.44,
            put_right=PutRight(done=("clock",), undone={"random": "the guest has no agent"}),
        ),
        sleeps_at=None,
        awake_because="120 open connections",
    )
    live.house.holds.uses[vm_id] = use
    shown = cli("vm", "activity", vm_id)
    assert shown.code == 0
    assert fields("\n".join(shown.out.splitlines()[:-2])) == {
        "state": "running",
        "sleeps": "not by itself: 120 open connections",
        "idle for": "1m1s of 30m0s",
        "last active at": MOMENT,
        "last woken": (
            f"{MOMENT} by http from 10.0.0.5, in 0.4 s; put right: clock; "
            "not put right: random (the guest has no agent)"
        ),
        "kept awake by": "120 holds, of which these are the 1 oldest",
    }
    head, row = shown.out.splitlines()[-2:]
    assert head.split() == "KIND PEER ID REASON SINCE LAST BYTE AT ENDS AT".split()
    assert row.split() == ["http", "10.0.0.5", "-", MOMENT, "2026-03-06T14:30:01Z", "-"]
    assert ask(cli, "vm", "activity", vm_id)["sleeps"] == {"at": None, "because": "120 open connections"}


def test_when_a_vm_will_sleep(cli: Cli, vm_id: str, live: Live) -> None:
    woken = Woken(at=START, reason="api", by="", seconds=2, put_right=PutRight())
    live.house.holds.uses[vm_id] = Use(
        state=State.RUNNING,
        last_active_at=None,
        idle_s=0,
        idle_timeout="5m",
        hold_count=0,
        holds=[],
        last_wake=woken,
        sleeps_at=START,
        awake_because="",
    )
    shown = cli("vm", "activity", vm_id).out
    assert fields(shown) == {
        "state": "running",
        "sleeps": MOMENT,
        "idle for": "0s of 5m",
        "last woken": f"{MOMENT} by api, in 2.0 s",
        "kept awake by": "nobody",
    }
