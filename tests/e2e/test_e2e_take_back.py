"""A request that arrives while its VM is being suspended is served, whatever the moment."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from hatchvm.client import ApiError
from hatchvm.client.answers import Snapshot
from hatchvm.testing.guest import Guest, events, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

ROUNDS = 5

#: How far the suspend has come, told from the log since a position and from the VM's folder.
MOMENTS: dict[str, Callable[[Guest, int], object]] = {
    "asked for": lambda guest, mark: True,
    "announced": lambda guest, mark: events(guest.daemon, "vm state", mark, after="suspending"),
    "saving": lambda guest, mark: guest.paths.state.with_suffix(".new").exists(),
    "saved": lambda guest, mark: guest.paths.saved.exists(),
    "let go": lambda guest, mark: not guest.paths.process.exists(),
    "asleep": lambda guest, mark: events(guest.daemon, "vm state", mark, after="snapshotted"),
    "uploading": lambda guest, mark: any(guest.daemon.paths.objects.glob(f"snapshots/{guest.id}/*/*")),
    "stored": lambda guest, mark: events(guest.daemon, "snapshot stored", mark),
}


def test_no_request_is_lost_during_a_suspend(guest: Guest) -> None:
    count = guest.count()
    outcomes: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        for arrived in [*MOMENTS.values()] * ROUNDS:
            guest.text()  # it may be asleep
            mark = guest.daemon.mark()
            suspend = pool.submit(snapshot, guest)
            wait_for(lambda: suspend.done() or arrived(guest, mark), "that moment of the suspend")  # noqa: B023
            count += 1
            assert guest.count() == count, "memory is not continuous"
            outcomes.append(outcome(suspend))
    assert {"stored", "taken back", "woken"} >= set(outcomes)
    assert "taken back" in outcomes
    assert "stored" in outcomes


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
