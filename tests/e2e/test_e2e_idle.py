"""The idle monitor with short times: who is put to sleep, who is held awake, and what it logs."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing import ssh
from hatchvm.testing.guest import DEADLINE_S, MEM_MIB, PAGE, Guest, create_guest, events, user_data, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

SETTINGS = {"HATCH_IDLE_CHECK_INTERVAL": "1s", "HATCH_IDLE_TIMEOUT": "2s", "HATCH_LOG_LEVEL": "debug"}


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    folder = tmp_path_factory.mktemp("restless")
    daemon = ChildDaemon(folder / "data", SETTINGS | {"HATCH_CONNTRACK_PATH": str(folder / "conntrack")})
    try:
        daemon.start()
        yield daemon
        assert daemon.stop() == 0
        assert events(daemon, "idle monitor stopped")
        daemon.start()
    finally:
        daemon.end()


@pytest.fixture(scope="module")
def sleepy(restless: ChildDaemon, ssh_key: Path) -> Guest:
    public = ssh_key.with_suffix(".pub").read_text().strip()
    with restless.client() as client:
        guest = create_guest(client, restless, "sleepy", mem_mib=MEM_MIB, user_data=user_data(public))
    assert guest.text() == PAGE.strip()
    return guest


@contextmanager
def dripping(guest: Guest) -> Iterator[None]:
    """An answer that never ends, being read."""
    connection = http.client.HTTPConnection("127.0.0.1", guest.daemon.proxy_port, timeout=DEADLINE_S)
    connection.request("GET", "/cgi-bin/drip", headers={"Host": guest.host})
    answer = connection.getresponse()
    assert answer.read(5) == b"drop\n"
    yield
    answer.close()
    connection.close()


@contextmanager
def logged_in(guest: Guest, key: Path) -> Iterator[None]:
    """An SSH session that says nothing."""
    command = ssh.command(guest, key, "echo in; cat")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"in\n"
        yield
        session.terminate()


def until_judged(guest: Guest, verdict: str, *, idle_s: float = 0) -> None:
    """Return when three checks from now on have found that, the last one after so much idle time."""
    start = guest.daemon.mark()

    def judged() -> bool:
        checks = events(guest.daemon, "idle check", start, vm=guest.id, verdict=verdict)
        return len(checks) >= 3 and checks[-1]["idle_seconds"] >= idle_s

    wait_for(judged, f"it is left awake: {verdict}")
    assert guest.state() == "running"


def test_it_announces_itself(restless: ChildDaemon) -> None:
    (started,) = wait_for(lambda: events(restless, "idle monitor started"), "it starts")
    assert (started["interval"], started["timeout"]) == ("1s", "2s")


def test_an_open_answer_holds_it_awake(sleepy: Guest) -> None:
    with dripping(sleepy):
        until_judged(sleepy, "1 open connections")


def test_an_open_ssh_session_holds_it_awake(sleepy: Guest, ssh_key: Path) -> None:
    sleepy.text()
    with logged_in(sleepy, ssh_key):
        mark = sleepy.daemon.mark()
        message = "skipping idle snapshot, active SSH session"
        (skipped, *_) = wait_for(lambda: events(sleepy.daemon, message, mark, vm=sleepy.id), "the session is seen")
        assert skipped["ssh_port"] == sleepy.look()["ssh_port"]
        assert sleepy.state() == "running"


def test_an_ssh_session_past_hatch_holds_it_awake(sleepy: Guest) -> None:
    table, port = sleepy.daemon.paths.root.parent / "conntrack", sleepy.look()["ssh_port"]
    forward = f"src=203.0.113.10 dst=203.0.113.20 sport=52341 dport={port} src=172.16.0.2 sport=22 dport=52341"
    sleepy.text()
    table.write_text(f"ipv4 2 tcp 6 431999 ESTABLISHED {forward}\n")
    mark = sleepy.daemon.mark()
    message = "skipping idle snapshot, active SSH session"
    wait_for(lambda: events(sleepy.daemon, message, mark, vm=sleepy.id, ssh_port=port), "the session is seen")
    with sleepy.daemon.client() as client:
        use = client.get_activity(sleepy.id)
        assert [(hold["kind"], hold["peer"], hold["since"]) for hold in use["holds"]] == [("ssh", "203.0.113.10", None)]
        assert use["sleeps"] == {"at": None, "because": "1 open connections"}
        # The lease comes first, so that the VM is held by something all the time.
        client.create_hold(sleepy.id, "1h")
    table.unlink()


def test_a_lease_holds_it_awake(sleepy: Guest) -> None:
    until_judged(sleepy, "1 lease", idle_s=2)
    with sleepy.daemon.client() as client:
        (lease,) = client.list_holds(sleepy.id)
        use = client.get_activity(sleepy.id)
        assert [(hold["kind"], hold["id"]) for hold in use["holds"]] == [("lease", lease["id"])]
        assert use["sleeps"]["at"] is not None
        assert use["sleeps"]["at"] > lease["expires_at"]
        client.release_hold(sleepy.id, lease["id"])


def test_left_alone_it_falls_asleep_and_a_request_wakes_it(sleepy: Guest) -> None:
    count, mark = sleepy.count(), sleepy.daemon.mark()
    wait_for(lambda: sleepy.state() == "snapshotted", "it is put to sleep")
    (idle,) = events(sleepy.daemon, "vm idle, triggering snapshot", mark)
    assert (idle["vm"], idle["subdomain"]) == (sleepy.id, "sleepy")
    assert idle["idle_seconds"] >= 2
    assert events(sleepy.daemon, "snapshot created", mark, vm=sleepy.id)
    assert sleepy.count() == count + 1
    with sleepy.daemon.client() as client:
        woken = client.get_activity(sleepy.id)["last_wake"]
    assert woken is not None
    assert (woken["reason"], woken["by"]) == ("http", "127.0.0.1")
    assert events(sleepy.daemon, "vm restored", mark, vm=sleepy.id)


def test_without_a_route_or_with_timeout_never_it_stays_awake(sleepy: Guest) -> None:
    daemon = sleepy.daemon
    with daemon.client() as client:
        newest = wait_for(lambda: client.list_snapshots(sleepy.id), "the snapshot is listed")[0]
        wait_for(lambda: client.get_snapshot(newest["id"])["status"] == "committed", "the snapshot is stored")
        unrouted = Guest(daemon, client.create_vm(snapshot_id=newest["id"])["id"], "")
        never = create_guest(client, daemon, "never", snapshot_id=newest["id"], idle_timeout="never")
        until_judged(unrouted, "no routes", idle_s=2)
        until_judged(never, "idle_timeout is never", idle_s=2)
