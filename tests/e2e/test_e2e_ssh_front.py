"""One SSH port for all VMs, and `hatchvm ssh`, with a guest that sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing.guest import DEADLINE_S, MEM_MIB, Guest, create_guest, events
from hatchvm.testing.ssh import ALONE

HATCHVM = str(Path(sys.executable).with_name("hatchvm"))

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory, ssh_key: Path) -> Iterator[Guest]:
    """A guest whose daemon has such a port and knows the key."""
    child = ChildDaemon(tmp_path_factory.mktemp("fronted") / "data", {"HATCH_SSH_ADDR": "127.0.0.1:0"})
    try:
        child.start()
        with child.client() as client:
            client.create_ssh_key("mine", ssh_key.with_suffix(".pub").read_text())
            yield create_guest(client, child, "fronted", mem_mib=MEM_MIB)
    finally:
        child.end()


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, env=os.environ | environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_a_name_in_place_of_a_user_wakes_the_vm_and_leads_to_it(fronted: Guest, ssh_key: Path, tmp_path: Path) -> None:
    (started,) = events(fronted.daemon, "ssh front started")
    for name in ("fronted", fronted.id, f"root+{fronted.subdomain}"):
        fronted.sleep()
        done = run(
            "ssh", *ALONE, "-i", str(ssh_key), "-p", str(started["port"]), f"{name}@127.0.0.1", "hostname; exit 3"
        )
        assert (done.stdout, done.stderr, done.returncode) == ("fronted\n", "", 3)
    (tmp_path / "file").write_bytes(os.urandom(200_000))
    target = f"scp://fronted@127.0.0.1:{started['port']}"
    for words in ((f"{tmp_path}/file", f"{target}//root/file"), (f"{target}//root/file", f"{tmp_path}/back")):
        done = run("scp", *ALONE, "-i", str(ssh_key), *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()


def test_hatchvm_ssh_needs_nothing_but_a_name(fronted: Guest) -> None:
    fronted.sleep()
    done = run(
        *(HATCHVM, "ssh", "fronted", "cat", "/etc/hostname"),
        HATCH_URL=fronted.daemon.api,
        HATCH_DATA_DIR=str(fronted.daemon.paths.root),
    )
    assert done.stdout == "fronted\n", done.stderr
    assert done.returncode == 0
