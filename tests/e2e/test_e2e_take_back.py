"""A request that arrives while its VM is being suspended is served, whatever the moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from hatchvm.client import ApiError
from hatchvm.client.answers import Snapshot
from hatchvm.testing.guest import Guest, wait_for
from hatchvm.testing.moments import SUSPENDING

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

ROUNDS = 5


def test_no_request_is_lost_during_a_suspend(guest: Guest, record_property: Callable[[str, object], None]) -> None:
    count = guest.count()
    outcomes: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        for arrived in [*SUSPENDING.values()] * ROUNDS:
            guest.text()  # it may be asleep
            mark = guest.daemon.mark()
            suspend = pool.submit(snapshot, guest)
            wait_for(lambda: suspend.done() or arrived(guest, mark), "that moment of the suspend")  # noqa: B023
            count += 1
            assert guest.count() == count, "memory is not continuous"
            outcomes.append(outcome(suspend))
    record_property("outcomes of suspends", dict(Counter(outcomes)))


def snapshot(guest: Guest) -> Snapshot:
    with guest.daemon.client() as client:
        return client.snapshot_vm(guest.id)


def outcome(suspend: Future[Snapshot]) -> str:
    try:
        suspend.result()
    except ApiError as error:
        assert error.status == 409, str(error)
        return "taken back" if "being snapshotted" in str(error) else "woken"
    return "stored"
