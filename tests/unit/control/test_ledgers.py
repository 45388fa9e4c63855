"""What the control plane keeps in memory: routes, activity, events."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base import tasks
from hatchvm.control.activity import Activity, ActivityHold
from hatchvm.control.table import RouteTable
from hatchvm.domain.route import Route
from hatchvm.testing.clock import SteeredClock

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


def route(number: int, vm: int, subdomain: str, domain: str | None = None, *, verified: bool = False) -> Route:
    return Route(
        id=f"rt-{number}",
        vm_id=f"vm-{vm}",
        subdomain=subdomain,
        target_port=80,
        auto_wake=True,
        created_at=NOW,
        updated_at=NOW,
        domain=domain,
        domain_token=domain and "t0k3n",
        domain_verified_at=NOW if verified else None,
    )


def test_a_renamed_route_leaves_its_old_name() -> None:
    table = RouteTable()
    one = route(1, 1, "old")
    table.load([one])
    table.put(replace(one, subdomain="new"))
    assert table.find("old") is None
    assert table.find("new") == replace(one, subdomain="new")
    assert len(table) == 1


_DOMAINS: Final = st.tuples(st.sampled_from([None, "a.example", "b.example"]), st.booleans())


@given(
    st.lists(
        st.tuples(st.sampled_from("aaadr"), st.integers(0, 3), st.integers(0, 2), st.sampled_from("wxyz"), _DOMAINS)
    )
)
def test_the_table_is_what_the_rows_are(moves: list[tuple[str, int, int, str, tuple[str | None, bool]]]) -> None:
    """Against plain rows, in which a subdomain is unique, and so is a verified domain. A copy hears of changes."""
    table, copy = RouteTable(), RouteTable()
    table.watchers.append(lambda one, there: copy.put(one) if there else copy.remove(one))
    rows: dict[str, Route] = {}
    for move, number, vm, subdomain, (domain, verified) in moves:
        one = route(number, vm, subdomain, domain, verified=verified and domain is not None)
        if move == "a":
            known = rows.get(one.id)
            others = [row for row in rows.values() if row.id != one.id]
            clash = any(row.subdomain == subdomain for row in others) or (
                one.verified_domain is not None and any(row.verified_domain == one.verified_domain for row in others)
            )
            if clash or (known is not None and known.vm_id != one.vm_id):
                continue
            rows[one.id] = one
            table.put(one)
        elif move == "d":
            gone = rows.pop(one.id, None)
            table.remove(gone or one)
        else:
            rows = {key: row for key, row in rows.items() if row.vm_id != one.vm_id}
            table.remove_vm(one.vm_id)
    assert len(table) == len(rows)
    assert set(copy) == set(table) == set(rows.values())
    for subdomain in "wxyz":
        assert table.find(subdomain) == next((row for row in rows.values() if row.subdomain == subdomain), None)
    for domain in ("a.example", "b.example"):
        assert copy.domain(domain) == table.domain(domain)
        assert table.domain(domain) == next((row for row in rows.values() if row.verified_domain == domain), None)
    for vm in range(3):
        assert {row.id for row in table.of_vm(f"vm-{vm}")} == {
            row.id for row in rows.values() if row.vm_id == f"vm-{vm}"
        }


def test_a_hold_counts_once_and_its_end_is_activity() -> None:
    clock = SteeredClock()
    activity = Activity(clock, None)
    hold = ActivityHold(activity, "http", "")
    assert (activity.holds, activity.arrivals) == (1, 1)
    came = activity.last_active_at
    hold.release()
    hold.release()
    assert (activity.holds, activity.arrivals) == (0, 1)
    assert came is not None
    assert activity.last_active_at is not None
    assert activity.last_active_at > came
    ended = activity.last_active_at
    hold.touch()
    assert activity.last_active_at > ended


def test_a_hold_knows_who_and_since_when() -> None:
    activity = Activity(SteeredClock(), None)
    first, second = ActivityHold(activity, "ssh", "10.0.0.5"), ActivityHold(activity, "http", "")
    assert activity.held == {first, second}
    assert (first.kind, first.peer, second.kind, second.peer) == ("ssh", "10.0.0.5", "http", "")
    assert first.since == first.last_byte_at < second.since
    second.touch()
    assert first.since == first.last_byte_at < second.since < second.last_byte_at == activity.last_active_at
    first.release()
    assert activity.held == {second}


def test_what_is_noticed_late_takes_no_activity_back() -> None:
    clock = SteeredClock()
    activity, before, after = Activity(clock, None), clock.now(), clock.now()
    activity.touched(after)
    activity.touched(before)
    assert activity.last_active_at == after


async def test_a_hold_that_is_dropped_was_active_when_it_was_last_touched() -> None:
    clock = SteeredClock()
    activity = Activity(clock, None)
    hold = ActivityHold(activity, "http", "")
    draining = tasks.spawn(activity.drained(1000), name="drain")
    await asyncio.sleep(0)
    at = clock.now()
    hold.touched(at)
    hold.touched(hold.since)
    hold.drop()
    hold.drop()
    assert (activity.holds, activity.last_active_at, hold.last_byte_at) == (0, at, at)
    await draining


async def test_draining_ends_with_the_last_hold() -> None:
    activity = Activity(SteeredClock(), None)
    await activity.drained(1000)
    first, second = ActivityHold(activity, "http", ""), ActivityHold(activity, "http", "")
    draining = tasks.spawn(activity.drained(1000), name="drain")
    await asyncio.sleep(0)
    first.release()
    await asyncio.sleep(0)
    assert not draining.done()
    second.release()
    await draining
