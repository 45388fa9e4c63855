"""Fifty VMs on a bridge, put to sleep and woken at random while the daemon is killed: nothing leaks, nobody meets.

`HATCH_SOAK_S` shortens it (seconds, default 600).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx2
import pytest

from hatchvm.base.errors import HatchError
from hatchvm.cli.child import ChildDaemon
from hatchvm.client.errors import ApiError
from hatchvm.testing.guest import MEM_MIB, WEB_PORT, Guest, create_guest, wait_for

HATCHVM: Final = str(Path(sys.executable).with_name("hatchvm"))

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="a bridge needs root"),
]

VMS: Final = 50
KILLS: Final = 5
BOOT_S: Final = 200.0
SEED: Final = 4
SECONDS: Final = float(os.environ.get("HATCH_SOAK_S", "600"))
WORKERS: Final = 4
GATEWAY: Final = "198.18.0.1"

#: A counter that lives only in memory, and a program that tries to reach host and port `?host+port`.
_USER_DATA: Final = f"""#!/bin/sh
mkdir -p /www/cgi-bin
cat >/www/cgi-bin/count <<'EOF'
#!/bin/sh
exec 9>/run/lock; flock 9
n=$(( $(cat /run/count 2>/dev/null || echo 0) + 1 )); echo $n >/run/count
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s' "$(hostname)" $n
EOF
cat >/www/cgi-bin/reach <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
if nc -w 2 ${{QUERY_STRING%+*}} ${{QUERY_STRING#*+}} </dev/null >/dev/null 2>&1; then echo reached; else echo no; fi
EOF
chmod +x /www/cgi-bin/*
httpd -p {WEB_PORT} -h /www
"""


class Storm:
    """What the VMs should know, and what they were seen to know."""

    def __init__(self, daemon: ChildDaemon) -> None:
        self.daemon = daemon
        self.dice = random.Random(SEED)
        self.guests: list[Guest] = []
        self.counts: Counter[str] = Counter()
        self.locks: dict[str, threading.Lock] = {}
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        #: Nobody acts while the daemon is being killed and started.
        self.stop = threading.Event()

    def create(self, number: int) -> None:
        with self.daemon.client() as client:
            guest = create_guest(client, self.daemon, f"storm-{number}", mem_mib=MEM_MIB, user_data=_USER_DATA)
        wait_for(lambda: guest.ask("/cgi-bin/count").status == 200, f"{guest.subdomain} serves", BOOT_S)
        guest.sleep()  # even an idle guest under emulation costs a few percent of a core
        self.locks[guest.id] = threading.Lock()
        self.guests.append(guest)

    def act(self) -> None:
        while not self.stop.is_set():
            guest = self.dice.choice(self.guests)
            if self.locks[guest.id].acquire(blocking=False):
                try:
                    self._act(guest)
                except (ApiError, HatchError, OSError, httpx2.HTTPError) as error:  # the daemon is being killed
                    self.done[type(error).__name__] += 1
                finally:
                    self.locks[guest.id].release()

    def _act(self, guest: Guest) -> None:
        if self.dice.random() < 0.55:
            with self.daemon.client() as client, suppress(ApiError):
                client.snapshot_vm(guest.id)
                self.done["slept"] += 1
            return
        answer = guest.ask("/cgi-bin/count")
        if answer.status != 200:
            self.done[f"answered {answer.status}"] += 1
            return
        name, count = answer.text.split()
        self.done["counted"] += 1
        # A counter whose answer a kill cut off may be ahead of what was seen, never behind.
        if name != guest.subdomain or int(count) <= self.counts[guest.id]:
            self.wrong.append(f"{guest.subdomain} answered {answer.text} after {self.counts[guest.id]}")
        self.counts[guest.id] = int(count)

    def kill_now_and_then(self) -> None:
        for _ in range(KILLS):
            time.sleep(SECONDS / (KILLS + 1))
            self.daemon.kill()
            self.daemon.start()
        time.sleep(SECONDS / (KILLS + 1))


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"hatch-soak-{os.getpid()}"
    yield name
    assert name not in subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def daemon(tmp_path: Path, namespace: str) -> Iterator[ChildDaemon]:
    settings = {
        "HATCH_NETWORK": "bridge",
        "HATCH_NETNS": namespace,
        "HATCH_BRIDGE_NAME": "soak0",
        "HATCH_BRIDGE_CIDR": f"{GATEWAY}/24",
        "HATCH_LOG_LEVEL": "debug",
    }
    child = ChildDaemon(tmp_path / "data", settings)
    child.start()
    try:
        yield child
    finally:
        child.end()
        subprocess.run([HATCHVM, "network", "remove"], env=os.environ | settings, check=True)


def links(namespace: str) -> set[str]:
    shown = subprocess.run(["ip", "-n", namespace, "-br", "link"], capture_output=True, text=True, check=True)
    return {line.split()[0] for line in shown.stdout.splitlines()}


def ruleset(namespace: str) -> str:
    command = ["ip", "netns", "exec", namespace, "nft", "list", "ruleset"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_fifty_vms_on_a_bridge(daemon: ChildDaemon, namespace: str) -> None:
    storm = Storm(daemon)
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(storm.create, range(VMS)))
    addresses = {guest.id: guest.look()["guest_ip"] for guest in storm.guests}
    assert len(set(addresses.values())) == VMS
    strangers = [other["guest_ip"] for other in map(Guest.look, storm.guests[:3])]
    for guest in storm.guests[3:6]:
        for target in (f"{strangers[0]}+{WEB_PORT}", f"{strangers[1]}+22", f"{GATEWAY}+22", "169.254.169.254+80"):
            assert guest.text(f"/cgi-bin/reach?{target}") == "no", target

    with ThreadPoolExecutor(WORKERS) as pool:
        acting = [pool.submit(storm.act) for _ in range(WORKERS)]
        storm.kill_now_and_then()
        storm.stop.set()
        for one in acting:
            one.result()
    print(dict(storm.done))
    assert storm.wrong == []
    assert storm.done["counted"] > VMS
    assert {guest.id: guest.look()["guest_ip"] for guest in storm.guests} == addresses
    for guest in storm.guests:
        assert guest.text("/cgi-bin/count").split()[0] == guest.subdomain
    assert links(namespace) == {"lo", "soak0", *(guest.id for guest in storm.guests)}

    with daemon.client() as client:
        for guest in storm.guests[::2]:
            client.snapshot_vm(guest.id)
    awake = {guest.id for guest in storm.guests[1::2]}
    wait_for(lambda: links(namespace) == {"lo", "soak0", *awake}, "a sleeping VM's TAP goes with its VMM")
    with daemon.client() as client:
        for guest in storm.guests:
            client.delete_vm(guest.id)
    wait_for(lambda: links(namespace) == {"lo", "soak0"}, "a deleted VM's TAP goes")
    left = ruleset(namespace)
    assert not [vm_id for vm_id in addresses if vm_id in left]
    assert not [address for address in addresses.values() if f"{address} " in left]
