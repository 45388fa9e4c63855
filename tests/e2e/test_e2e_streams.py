"""Large bodies, endless answers and upgraded connections through the proxy, to and from a real guest."""

from __future__ import annotations

import hashlib
import random
import socket

import pytest

from hatchvm.client import Client
from hatchvm.testing.guest import DEADLINE_S, ECHO_PORT, Guest

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

MIB = 1024 * 1024


def test_a_large_download_is_intact(guest: Guest) -> None:
    last = 2_800_000  # about 20 MiB
    body = guest.ask(f"/cgi-bin/numbers?{last}").body
    assert len(body) > 20 * MIB
    assert hashlib.sha256(body).digest() == hashlib.sha256("".join(f"{n}\n" for n in range(1, last + 1)).encode()).digest()


def test_a_large_upload_is_intact(guest: Guest) -> None:
    body = random.Random(1).randbytes(20 * MIB)
    answer = guest.ask("/cgi-bin/receive", body=body)
    assert (answer.status, answer.text.split()[0]) == (200, hashlib.sha256(body).hexdigest())


def test_an_upgraded_connection_carries_bytes_both_ways(guest: Guest, client: Client) -> None:
    guest.text()
    route = client.create_route(guest.id, target_port=ECHO_PORT, subdomain="echo")
    try:
        with socket.create_connection(("127.0.0.1", guest.daemon.proxy_port), timeout=DEADLINE_S) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: echo.hatch.localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            stream = sock.makefile("rwb")
            assert stream.readline() == b"HTTP/1.1 101 Switching Protocols\r\n"
            while stream.readline() != b"\r\n":
                pass
            for size in (1, 100, 64 * 1024):
                sent = random.Random(size).randbytes(size)
                stream.write(sent)
                stream.flush()
                assert stream.read(size) == sent
            sock.shutdown(socket.SHUT_WR)
            assert stream.read() == b""
    finally:
        client.delete_route(route["id"])
