"""SSH into a guest that cloud-init prepared."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatchvm.testing.guest import PAGE, Guest
from hatchvm.testing.ssh import ssh

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


def test_ssh_with_an_injected_key_finds_what_cloud_init_did(guest: Guest, ssh_key: Path) -> None:
    guest.text()
    run = ssh(guest, ssh_key, "hostname; cat /www/index.html; wc -c </root/noise; grep -c serve /etc/inittab")
    assert run.stderr == ""
    assert run.stdout == f"shared\n{PAGE}1048576\n1\n"


def test_a_strangers_key_is_refused(guest: Guest, ssh_key: Path, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.write_bytes(b"no key\n")
    stranger.chmod(0o600)
    run = ssh(guest, stranger, "true")
    assert run.returncode == 255
    assert "Permission denied" in run.stderr or "invalid format" in run.stderr
