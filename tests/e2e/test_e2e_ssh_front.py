"""One SSH port for all VMs, and `hatchvm ssh`, with a guest that sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.client import Client
from hatchvm.testing.guest import DEADLINE_S, Guest, events
from hatchvm.testing.ssh import ALONE

HATCHVM = str(Path(sys.executable).with_name("hatchvm"))

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


@pytest.fixture
def known(client: Client, ssh_key: Path) -> Iterator[Path]:
    """A key that the daemon knows."""
    row = client.create_ssh_key("mine", ssh_key.with_suffix(".pub").read_text())
    yield ssh_key
    client.delete_ssh_key(row["id"])


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_a_name_in_place_of_a_user_wakes_the_vm_and_leads_to_it(guest: Guest, known: Path, tmp_path: Path) -> None:
    started = events(guest.daemon, "ssh front started")[-1]
    for name in ("shared", guest.id, f"root+{guest.subdomain}"):
        guest.sleep()
        done = run("ssh", *ALONE, "-i", str(known), "-p", str(started["port"]), f"{name}@127.0.0.1", "hostname; exit 3")
        assert (done.stdout, done.stderr, done.returncode) == ("shared\n", "", 3)
    (tmp_path / "file").write_bytes(os.urandom(200_000))
    target = f"scp://shared@127.0.0.1:{started['port']}"
    for words in ((f"{tmp_path}/file", f"{target}//root/file"), (f"{target}//root/file", f"{tmp_path}/back")):
        done = run("scp", *ALONE, "-i", str(known), *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_hatchvm_ssh_needs_nothing_but_a_name(guest: Guest) -> None:
    guest.sleep()
    done = run(
        *(HATCHVM, "ssh", "shared", "cat", "/etc/hostname"),
        HATCH_URL=guest.daemon.api,
        HATCH_DATA_DIR=str(guest.daemon.paths.root),
    )
    assert done.stdout == "shared\n", done.stderr
    assert done.returncode == 0
