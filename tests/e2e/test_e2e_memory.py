"""What a guest had in memory and on disk is there after every sleep, in copies, and in older snapshots."""

from __future__ import annotations

import pytest

from hatchvm.client import Client
from hatchvm.testing.guest import Guest, create_guest

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


def test_twenty_sleeps_change_nothing(guest: Guest) -> None:
    count, sums, uptime_s = guest.count(), guest.sums(), guest.uptime_s()
    for _ in range(20):
        guest.sleep()
        count += 1
        assert guest.count() == count
    assert guest.sums() == sums
    assert guest.uptime_s() > uptime_s


def test_a_copy_starts_with_the_same_memory_and_goes_its_own_way(guest: Guest, client: Client) -> None:
    guest.text("/cgi-bin/keep?original")
    count, sums = guest.count(), guest.sums()
    snapshot = guest.sleep()
    copy = create_guest(client, guest.daemon, "copy", snapshot_id=snapshot["id"])
    try:
        assert copy.count() == count + 1
        assert copy.sums() == sums
        copy.text("/cgi-bin/keep?copy")
        assert copy.count() == count + 2
        assert guest.count() == count + 1
        assert (guest.text("/cgi-bin/kept"), copy.text("/cgi-bin/kept")) == ("original", "copy")
        copy.sleep()
        assert (copy.count(), copy.text("/cgi-bin/kept")) == (count + 3, "copy")
    finally:
        client.delete_vm(copy.id)
    assert guest.sums() == sums


def test_an_older_snapshot_brings_back_older_memory_and_an_older_disk(guest: Guest, client: Client) -> None:
    guest.text("/cgi-bin/keep?older")
    count = guest.count()
    older = guest.sleep()
    guest.text("/cgi-bin/keep?newer")
    assert guest.count() == count + 1
    newer = guest.sleep()
    assert client.restore_vm(guest.id, older["id"])["state"] == "running"
    assert (guest.text("/cgi-bin/kept"), guest.count()) == ("older", count + 1)
    guest.sleep()
    client.restore_vm(guest.id, newer["id"])
    assert (guest.text("/cgi-bin/kept"), guest.count()) == ("newer", count + 2)
