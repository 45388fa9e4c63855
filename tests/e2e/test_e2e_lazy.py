"""A real guest woken from the object store while most of it is still there: nothing in it ever differs."""

from __future__ import annotations

import os
import signal

import pytest

from hatchvm.client import Client
from hatchvm.node import lazy
from hatchvm.pager import mount
from hatchvm.testing.guest import Guest, wait_for

TROUBLE = mount.probe()
pytestmark = [
    pytest.mark.vm,
    pytest.mark.xdist_group("vm"),
    pytest.mark.skipif(TROUBLE is not None, reason=TROUBLE or ""),
]


def sleep_and_forget(guest: Guest) -> None:
    """The VM sleeps, its snapshot is stored, and this host has nothing else of it."""
    guest.sleep()
    paths = guest.paths
    for path in (paths.memory, paths.state, paths.saved, paths.disk):
        path.unlink()


def test_it_wakes_from_the_store_and_sleeps_again(guest: Guest) -> None:
    guest.text("/cgi-bin/keep?lazy")
    count, sums, uptime_s = guest.count(), guest.sums(), guest.uptime_s()
    for _ in range(3):
        sleep_and_forget(guest)
        count += 1
        assert guest.count() == count
        assert mount.is_mounted(guest.paths.lazy)
        assert (guest.sums(), guest.text("/cgi-bin/kept")) == (sums, "lazy")
        guest.sleep()
        assert not mount.is_mounted(guest.paths.lazy)
        count += 1
        assert guest.count() == count
        assert guest.sums() == sums
        assert not mount.is_mounted(guest.paths.lazy)
    assert guest.uptime_s() > uptime_s


def test_it_can_be_put_to_sleep_right_after_its_first_byte(guest: Guest) -> None:
    count, sums = guest.count(), guest.sums()
    for _ in range(3):
        sleep_and_forget(guest)
        count += 1
        assert guest.count() == count
    assert guest.sums() == sums


def test_a_daemon_that_is_killed_meanwhile_takes_it_back(guest: Guest) -> None:
    sums = guest.sums()
    sleep_and_forget(guest)
    count = guest.count()
    pid = guest.pid()
    guest.daemon.kill()
    guest.daemon.start()
    assert guest.pid() == pid
    assert (guest.count(), guest.sums()) == (count + 1, sums)
    guest.sleep()
    assert guest.count() == count + 2


def test_a_pager_that_is_killed_is_an_error_and_its_disk_boots(guest: Guest, client: Client) -> None:
    """What the guest synced before it slept, and after it woke, is on its disk."""
    before = guest.sleep()
    guest.text("/cgi-bin/keep?synced")
    sleep_and_forget(guest)
    guest.count()
    found = lazy.find(guest.paths)
    assert found is not None
    os.kill(found._process.pid, signal.SIGKILL)
    wait_for(lambda: guest.state() == "error", "the VM is lost")
    assert not mount.is_mounted(guest.paths.lazy)
    client.start_vm(guest.id)
    wait_for(lambda: guest.text("/cgi-bin/kept") == "synced", "it serves what it kept")
    client.stop_vm(guest.id)
    client.restore_vm(guest.id, before["id"])
    guest.sleep()


def test_a_damaged_snapshot_is_named_and_not_resumed_and_a_mended_one_is(guest: Guest) -> None:
    sleep_and_forget(guest)
    packs = {path: path.read_bytes() for path in guest.daemon.paths.objects.glob("packs/*/*")}
    for path, content in packs.items():
        path.unlink()
        path.write_bytes(content[::-1])
    assert guest.ask().status == 503
    assert "damaged" in str(guest.look()["state_reason"])
    assert not mount.is_mounted(guest.paths.lazy)
    for path, content in packs.items():
        path.unlink()
        path.write_bytes(content)
    wait_for(lambda: guest.ask().status == 200, "it wakes when its back-off is over")
    guest.sleep()
