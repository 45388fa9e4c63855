"""When a VM may sleep: leases, and the moment itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.domain.idle import Verdict, first_check, judge
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, VMSpec

NOW: Final = datetime(2026, 3, 6, tzinfo=UTC)
TIMEOUT_S: Final = 60.0


def s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def leases(*ends_s: float) -> list[Lease]:
    """Leases that end so many seconds from NOW."""
    return [
        Lease(id=f"hold-{n}", vm_id="vm-1", reason="", created_at=NOW - s(1000), expires_at=NOW + s(end_s))
        for n, end_s in enumerate(ends_s)
    ]


def verdict(*, state: State = State.RUNNING, idle_timeout: str | None = None, **facts: Any) -> Verdict:
    """Of a VM that was last active 100 s ago."""
    spec = VMSpec(image_id="img-1", idle_timeout=idle_timeout)
    vm = VM(id="vm-1", spec=spec, state=state, node_id="n", created_at=NOW - s(5000), updated_at=NOW)
    known: dict[str, Any] = {"last_active_at": NOW - s(100), "now": NOW, "routes": 1, "holds": 0}
    return judge(vm, **({**known, "default_timeout_s": TIMEOUT_S} | facts))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"leases": leases(5)}, Verdict(False, 100, "1 lease", NOW + s(65))),
        ({"leases": leases(5, 700, 1)}, Verdict(False, 100, "3 leases", NOW + s(760))),
        ({"leases": leases(5), "holds": 2}, Verdict(False, 100, "2 open connections", None)),
        ({"leases": leases(5), "routes": 0}, Verdict(False, 100, "no routes", None)),
        ({"leases": leases(5), "idle_timeout": "never"}, Verdict(False, 100, "idle_timeout is never", None)),
        ({"leases": leases(5), "state": State.STOPPED}, Verdict(False, 100, "not running", None)),
        # The end of a lease is activity, at its very moment.
        ({"leases": leases(-59)}, Verdict(False, 59, "not idle long enough", NOW + s(1))),
        ({"leases": leases(0)}, Verdict(False, 0, "not idle long enough", NOW + s(60))),
        ({"leases": leases(-60, -61)}, Verdict(True, 60, "idle", NOW)),
        ({"leases": leases(-101)}, Verdict(True, 100, "idle", NOW - s(40))),
        ({"leases": leases(-10, 5)}, Verdict(False, 10, "1 lease", NOW + s(65))),
        # Activity in the future of a clock that was set back.
        ({"last_active_at": NOW + s(9), "leases": leases(5)}, Verdict(False, 0, "1 lease", NOW + s(69))),
        ({}, Verdict(True, 100, "idle", NOW - s(40))),
        ({"idle_timeout": "2m"}, Verdict(False, 100, "not idle long enough", NOW + s(20))),
    ],
)
def test_leases_and_the_moment(facts: dict[str, Any], expected: Verdict) -> None:
    assert verdict(**facts) == expected


@given(
    ago_s=st.integers(0, 500),
    ends_s=st.lists(st.integers(-500, 500), max_size=4),
    holds=st.integers(0, 2),
    later_s=st.integers(0, 2000),
)
def test_whoever_is_told_a_moment_sees_it_suspended_then_and_not_before(
    ago_s: int, ends_s: list[int], holds: int, later_s: int
) -> None:
    facts: dict[str, Any] = {"last_active_at": NOW - s(ago_s), "leases": leases(*ends_s), "holds": holds}
    due_at = verdict(**facts).due_at
    then = verdict(**facts | {"now": NOW + s(later_s)})
    assert (due_at is None) == (holds > 0)
    assert then.due_at == due_at
    assert then.suspend == (due_at is not None and NOW + s(later_s) >= due_at)


@pytest.mark.parametrize(
    ("due_s", "check_s"),
    [(-1000, 7), (6.9, 7), (7, 7), (7.000001, 17), (17, 17), (18, 27), (1000, 1007)],
)
def test_it_sleeps_at_the_first_check_that_finds_it_idle(due_s: float, check_s: float) -> None:
    assert first_check(NOW + s(due_s), next_check_at=NOW + s(7), interval_s=10) == NOW + s(check_s)
