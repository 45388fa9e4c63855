"""A VMM that ends without being asked: a crash is an error with a reason, a guest's own shutdown is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hatchvm.client import Client
from hatchvm.testing.guest import Guest, create_guest, wait_for
from hatchvm.testing.ssh import ssh

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


@pytest.fixture
def victim(guest: Guest, client: Client) -> Iterator[Guest]:
    copy = create_guest(client, guest.daemon, "victim", snapshot_id=guest.sleep()["id"])
    try:
        yield copy
    finally:
        client.delete_vm(copy.id)


def test_killed_or_shut_down_it_starts_again_from_its_disk(
    victim: Guest, client: Client, ssh_key: Path, record_property: Callable[[str, object], None]
) -> None:
    victim.text("/cgi-bin/keep?this")
    began = time.monotonic()
    os.kill(victim.pid(), signal.SIGKILL)
    wait_for(lambda: victim.state() != "running", "the VM's end is noticed")
    record_property("seconds until a killed VMM was noticed", round(time.monotonic() - began, 3))
    dead = victim.look()
    assert dead["state"] == "error"
    assert "killed by signal 9" in dead["state_reason"]
    assert victim.ask().status == 503

    assert client.start_vm(victim.id)["state"] == "running"
    assert victim.text("/cgi-bin/kept") == "this"

    wait_for(lambda: ssh(victim, ssh_key, "poweroff").returncode == 0, "SSH answers after the boot")
    wait_for(lambda: victim.state() != "running", "the guest's shutdown is noticed")
    off = victim.look()
    assert (off["state"], off["state_reason"]) == ("stopped", "the guest shut down")
    assert not victim.paths.process.exists()
