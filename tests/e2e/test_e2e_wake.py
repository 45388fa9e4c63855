"""A sleeping VM is woken by whoever needs it, exactly once, and nobody's request is lost."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator

import pytest

from hatchvm.testing.guest import PAGE, Guest, events, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

CROWD = 1000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for two descriptors a request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * CROWD)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def ask(guest: Guest) -> tuple[bytes, bytes]:
    """(status line, body) over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guest.daemon.proxy_port)
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {guest.host}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        return head.partition(b"\r\n")[0], body
    finally:
        writer.close()


async def test_a_thousand_requests_at_once_wake_it_once(guest: Guest, many_files: None) -> None:
    guest.sleep()
    mark = guest.daemon.mark()
    answers = await asyncio.gather(*(ask(guest) for _ in range(CROWD)))
    assert set(answers) == {(b"HTTP/1.1 200 OK", PAGE.encode())}
    assert len(events(guest.daemon, "waking snapshotted vm", mark, vm=guest.id)) == 1
    assert len(events(guest.daemon, "vm restored", mark, vm=guest.id)) == 1


def test_a_client_that_hangs_up_does_not_stop_the_wake(guest: Guest) -> None:
    guest.sleep()
    mark = guest.daemon.mark()
    with socket.create_connection(("127.0.0.1", guest.daemon.proxy_port)) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {guest.host}\r\n\r\n".encode())
    wait_for(lambda: guest.state() == "running", "the VM runs though nobody waits for it")
    assert len(events(guest.daemon, "waking snapshotted vm", mark, vm=guest.id)) == 1
    assert guest.text() == PAGE.strip()
