"""`kill -9` of the daemon, at any moment: a new one takes every VM back, its memory unbroken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.client import ApiError, Client
from hatchvm.testing.guest import PAGE, Guest, create_guest, events, wait_for
from hatchvm.testing.moments import SUSPENDING, WAKING, Moment

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


def test_vms_of_every_state_are_taken_back(guest: Guest, client: Client) -> None:
    snapshot = guest.sleep()
    asleep, stopped = (create_guest(client, guest.daemon, name, snapshot_id=snapshot["id"]) for name in ("b", "c"))
    try:
        count, uptime_s = guest.count(), guest.uptime_s()
        asleep.sleep()
        client.stop_vm(stopped.id)
        pid, mark = guest.pid(), guest.daemon.mark()
        restart(guest)
        assert events(guest.daemon, "vm adopted", mark, vm=guest.id)
        assert [vm.state() for vm in (guest, asleep, stopped)] == ["running", "snapshotted", "stopped"]
        assert guest.pid() == pid
        assert (guest.count(), asleep.count()) == (count + 1, count)
        assert guest.uptime_s() > uptime_s
        with guest.daemon.client() as again:
            assert again.start_vm(stopped.id)["state"] == "running"
        assert stopped.text() == PAGE.strip()
    finally:
        with guest.daemon.client() as again:
            for vm in (asleep, stopped):
                again.delete_vm(vm.id)


@pytest.mark.parametrize("moment", ["announced", "saving", "saved", "uploading"])
def test_killed_in_the_middle_of_a_suspend(guest: Guest, moment: str) -> None:
    count, sums = guest.count(), guest.sums()
    killed_during(guest, lambda: snapshot(guest), SUSPENDING[moment])
    assert guest.state() in ("running", "snapshotted")
    if guest.state() == "snapshotted":
        wait_for(lambda: stored(guest), "the new daemon stores the snapshot")
    assert (guest.count(), guest.sums()) == (count + 1, sums)


@pytest.mark.parametrize("moment", WAKING)
def test_killed_in_the_middle_of_a_wake(guest: Guest, moment: str) -> None:
    count, sums = guest.count(), guest.sums()
    guest.sleep()
    killed_during(guest, lambda: guest.ask(), WAKING[moment])
    assert (guest.count(), guest.sums()) == (count + 1, sums)


def restart(guest: Guest) -> None:
    guest.daemon.kill()
    guest.daemon.start()


def killed_during(guest: Guest, call: Callable[[], object], arrived: Moment) -> None:
    mark = guest.daemon.mark()
    with ThreadPoolExecutor(1) as pool:
        called = pool.submit(call)
        wait_for(lambda: called.done() or arrived(guest, mark), "that moment")
        restart(guest)
        with contextlib.suppress(ApiError, Unavailable, OSError):
            called.result()


def snapshot(guest: Guest) -> None:
    with guest.daemon.client() as client:
        client.snapshot_vm(guest.id)


def stored(guest: Guest) -> bool:
    with guest.daemon.client() as client:
        return all(row["status"] == "committed" for row in client.list_snapshots(guest.id))
