"""SSH into a guest that cloud-init prepared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hatchvm.telemetry import logs
from hatchvm.testing.guest import DEADLINE_S, PAGE, Guest, events
from hatchvm.testing.ssh import command, ssh

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


def test_ssh_with_an_injected_key_finds_what_cloud_init_did(guest: Guest, ssh_key: Path) -> None:
    guest.text()
    run = ssh(guest, ssh_key, "hostname; cat /www/index.html; wc -c </root/noise; grep -c serve /etc/inittab")
    assert run.stderr == ""
    assert run.stdout == f"shared\n{PAGE}1048576\n1\n"


def test_ssh_wakes_a_sleeping_vm_once_and_finds_what_it_left(guest: Guest, ssh_key: Path) -> None:
    assert ssh(guest, ssh_key, "echo still here >/run/left").returncode == 0
    guest.sleep()
    begin = guest.daemon.mark()
    assert ssh(guest, ssh_key, "cat /run/left").stdout == "still here\n"
    assert guest.state() == "running"
    assert [event["reason"] for event in events(guest.daemon, logs.WAKING, begin, vm=guest.id)] == ["ssh"]


def test_bytes_pass_both_ways_unharmed(guest: Guest, ssh_key: Path) -> None:
    sent = os.urandom(2_000_000)
    run = subprocess.run(
        command(guest, ssh_key, "cat"), input=sent, capture_output=True, timeout=DEADLINE_S, check=True
    )
    assert run.stdout == sent


def test_a_strangers_key_is_refused(guest: Guest, ssh_key: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"no key\n")
    stranger.chmod(0o600)
    run = ssh(guest, stranger, "true")
    assert run.returncode == 255
    assert "Permission denied" in run.stderr or "invalid format" in run.stderr
