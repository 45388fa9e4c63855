"""The image `debian` through the daemon: cloud-init does what it is told; the machine sleeps, wakes, stops and starts.

Takes two to five minutes, and as long again if the image has not been built. `pytest -s` prints how long it booted.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.domain.image import DEBIAN
from hatchvm.images import builtin
from hatchvm.server.config import load
from hatchvm.testing.guest import Guest, create_guest, wait_for
from hatchvm.testing.ssh import command, ssh

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

BOOT_S: Final = 600.0
PAYLOAD: Final = "line 1: \\t 'q' \"q\" $HOME `id` ñ€ #\n\n  end\n"


def user_data(public_key: str) -> str:
    """JSON is YAML."""
    files = [{"path": "/srv/payload", "content": PAYLOAD, "permissions": "0640", "owner": "root:adm"}]
    config = {
        "package_update": False,
        "package_upgrade": False,
        "ssh_authorized_keys": [public_key],
        "users": [{"name": "ada", "shell": "/bin/bash", "groups": "adm", "ssh_authorized_keys": [public_key]}],
        "write_files": files,
        "runcmd": ["echo ran >>/srv/runs", ["sh", "-c", "id -un >>/srv/runs"]],
    }
    return "#cloud-config\n" + json.dumps(config)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = tmp_path_factory.mktemp("ssh") / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Guest]:
    """Booted, and cloud-init is done."""
    child = ChildDaemon(tmp_path_factory.mktemp("daemon") / "data", {"HATCH_IDLE_TIMEOUT": "1h"})
    child.start()
    try:
        asyncio.run(builtin.build(DEBIAN, load(None).cache_dir, print))
        with child.client() as client:
            client.add_builtin_image(DEBIAN)
            data = user_data(key.with_suffix(".pub").read_text().strip())
            began = time.monotonic()
            guest = create_guest(client, child, "web", image_id=DEBIAN, mem_mib=512, user_data=data)
        until_ssh(guest, key)
        answered = time.monotonic() - began
        until_configured(guest, key)
        print(f"SSH after {answered:.1f} s, cloud-init done after {time.monotonic() - began:.1f} s")
        yield guest
    finally:
        child.end()


def until_ssh(guest: Guest, key: Path) -> None:
    program, *words = command(guest, key, "true")
    # What connects before the guest's network is up may wait for ever.
    patient = [program, "-o", "ConnectTimeout=5", *words]
    wait_for(lambda: subprocess.run(patient, capture_output=True, check=False).returncode == 0, "SSH answers", BOOT_S)


def until_configured(guest: Guest, key: Path) -> None:
    finished = "test -e /run/cloud-init/result.json"
    wait_for(lambda: ssh(guest, key, finished).returncode == 0, "cloud-init has finished", BOOT_S)
    assert "status: done" in ssh(guest, key, "cloud-init status --long").stdout


def test_cloud_init_did_what_it_was_told(guest: Guest, key: Path) -> None:
    said = ssh(guest, key, "hostname; id -nG ada; stat -c '%a %U:%G' /srv/payload; cat /srv/runs")
    assert said.stdout == "web\nada adm\n640 root:adm\nran\nroot\n"
    assert ssh(guest, key, "cat /srv/payload").stdout == PAYLOAD
    as_ada = [word.replace("root@", "ada@") for word in command(guest, key, "id -un")]
    assert subprocess.run(as_ada, capture_output=True, text=True, check=True).stdout == "ada\n"


def test_the_system_is_whole(guest: Guest, key: Path) -> None:
    assert ssh(guest, key, "systemctl is-system-running --wait").stdout == "running\n"
    agent = ssh(guest, key, "systemctl is-active qemu-guest-agent; ls -l /sbin/hwclock /dev/rtc0 | wc -l")
    assert agent.stdout == "active\n2\n"
    tools = "rsync curl python3 sudo systemctl apt-get".split()
    found = ssh(guest, key, f"for tool in {' '.join(tools)}; do command -v $tool >/dev/null && echo $tool; done")
    assert found.stdout.split() == tools
    assert int(ssh(guest, key, "grep -c BEGIN /etc/ssl/certs/ca-certificates.crt").stdout) > 100


def test_a_password_opens_nothing(guest: Guest, key: Path) -> None:
    offered = ssh(guest, key.with_name("none"), "true")
    assert offered.returncode == 255
    assert "Permission denied (publickey)" in offered.stderr


def test_it_sleeps_and_wakes_where_it_was(guest: Guest, key: Path) -> None:
    before = ssh(guest, key, "cat /proc/sys/kernel/random/boot_id").stdout
    guest.sleep()
    assert guest.state() == "snapshotted"
    with guest.daemon.client() as client:
        client.restore_vm(guest.id)
    assert ssh(guest, key, "cat /proc/sys/kernel/random/boot_id").stdout == before


def test_the_power_button_stops_it_and_the_next_boot_repeats_nothing(guest: Guest, key: Path) -> None:
    identity = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /srv/runs; hostname"
    before = ssh(guest, key, identity).stdout
    with guest.daemon.client() as client:
        began = time.monotonic()
        client.stop_vm(guest.id)
        print(f"stopped after {time.monotonic() - began:.1f} s")
        assert "Power down" in guest.paths.console.read_text(errors="replace")
        client.start_vm(guest.id)
    until_ssh(guest, key)
    until_configured(guest, key)
    assert ssh(guest, key, identity).stdout == before


def test_what_must_differ_between_machines_is_not_in_the_image(guest: Guest, key: Path) -> None:
    """A second machine of the same image."""
    with guest.daemon.client() as client:
        data = user_data(key.with_suffix(".pub").read_text().strip())
        other = create_guest(client, guest.daemon, "other", image_id=DEBIAN, mem_mib=512, user_data=data)
    until_ssh(other, key)
    for file in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key"):
        own, others = (ssh(machine, key, f"cat {file}").stdout for machine in (guest, other))
        assert own and others and own != others
