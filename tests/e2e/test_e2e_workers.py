"""A daemon whose proxy is two processes, and a real VM: one wake for many, and a daemon that is killed."""

from __future__ import annotations

import hashlib
import socket
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing.guest import DEADLINE_S, PAGE, Guest, events, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

WORKERS = 2
SECRET = "of-no-worker"


@pytest.fixture(scope="module", autouse=True)
def _workers(daemon: ChildDaemon) -> Iterator[None]:
    """The session's daemon has workers for a while."""
    usual = daemon.settings
    daemon.stop()
    daemon.settings = usual | {"HATCH_PROXY_WORKERS": str(WORKERS), "HATCH_S3_SECRET": SECRET}
    try:
        daemon.start()
        yield
    finally:
        daemon.stop()
        daemon.settings = usual
        daemon.start()


def workers_of(daemon: ChildDaemon) -> set[Path]:
    """The folders in /proc of the workers that this daemon started."""
    return {folder for folder in Path("/proc").glob("[0-9]*") if is_worker(folder, daemon.pid)}


def is_worker(folder: Path, parent: int | None) -> bool:
    try:
        stat, argv = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
    except OSError:
        return False
    return b"hatchvm.edge.http.workers" in argv and int(stat.rpartition(")")[2].split()[1]) == parent


def test_many_requests_wake_it_once(guest: Guest) -> None:
    count = guest.count()
    mark = guest.daemon.mark()
    guest.sleep()
    with ThreadPoolExecutor(20) as pool:
        pages = [*pool.map(lambda _: guest.text(), range(100))]
    assert pages == [PAGE.strip()] * 100
    assert len(events(guest.daemon, "waking snapshotted vm", mark)) == 1
    assert guest.count() == count + 1
    assert len(workers_of(guest.daemon)) == WORKERS


def test_what_workers_served_is_counted_by_the_daemon(guest: Guest) -> None:
    label = f'subdomain="{guest.host.partition(".")[0]}"'

    def served() -> float:
        with urllib.request.urlopen(f"{guest.daemon.api}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        found = [line for line in lines if line.startswith("hatch_route_requests_total{") and label in line]
        return sum(float(line.split()[-1]) for line in found)

    before = served()
    for _ in range(10):
        guest.text()
    wait_for(lambda: served() >= before + 10, "both workers have told what they served")


def test_workers_know_no_secret(daemon: ChildDaemon) -> None:
    for worker in workers_of(daemon):
        environment = (worker / "environ").read_bytes()
        assert SECRET.encode() not in environment
        assert b"HATCH_" not in environment


def test_a_killed_daemon_cuts_nothing_short(guest: Guest) -> None:
    daemon, old = guest.daemon, workers_of(guest.daemon)
    body = b"first half, second half"
    with socket.create_connection(("127.0.0.1", daemon.proxy_port), DEADLINE_S) as client:
        head = f"POST /cgi-bin/receive HTTP/1.1\r\nHost: {guest.host}\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:10])
        wait_for(lambda: holds(guest), "the request holds the VM")
        daemon.kill()
        client.sendall(body[10:])
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert hashlib.sha256(body).hexdigest().encode() in answer
    wait_for(lambda: not any(worker.exists() for worker in old), "the end of the old workers")
    daemon.start()
    assert guest.text() == PAGE.strip()
    assert len(workers_of(daemon)) == WORKERS


def holds(guest: Guest) -> bool:
    with guest.daemon.client() as client:
        return bool(client.get_activity(guest.id)["hold_count"])
