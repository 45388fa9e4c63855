"""The daemon as a user starts it, and one VM: both serve every test of the session.

Tests leave the VM running or asleep, never gone, and no other VM behind.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.client import Client
from hatchvm.testing.guest import MEM_MIB, PAGE, Guest, create_guest, user_data


@pytest.fixture(scope="session", autouse=True)
def _no_settings() -> Iterator[None]:
    """Daemons have those of their tests only."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("HATCH_") and name != "HATCH_CACHE_DIR":
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private key whose public half lies beside it."""
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    """Logs at level debug, so that tests see every change of state; has one SSH port for all VMs."""
    settings = {"HATCH_LOG_LEVEL": "debug", "HATCH_SSH_ADDR": "127.0.0.1:0"}
    child = ChildDaemon(tmp_path_factory.mktemp("daemon") / "data", settings)
    try:
        child.start()
        yield child
    finally:
        child.end()


@pytest.fixture(scope="session")
def guest(daemon: ChildDaemon, ssh_key: Path) -> Guest:
    public = ssh_key.with_suffix(".pub").read_text().strip()
    with daemon.client() as client:
        shared = create_guest(client, daemon, "shared", mem_mib=MEM_MIB, user_data=user_data(public))
    assert shared.text() == PAGE.strip()
    return shared


@pytest.fixture
def client(daemon: ChildDaemon) -> Iterator[Client]:
    with daemon.client() as client:
        yield client
