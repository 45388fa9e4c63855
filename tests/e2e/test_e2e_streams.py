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


def test_large_bodies_are_intact(guest: Guest) -> None:
    sent = random.Random(1).randbytes(8 * MIB)
    uploaded = guest.ask("/cgi-bin/receive", body=sent)
    assert (uploaded.status, uploaded.text.split()[0]) == (200, hashlib.sha256(sent).hexdigest())
    downloaded = guest.ask("/received")
    assert (downloaded.status, len(downloaded.body)) == (200, len(sent))
    assert hashlib.sha256(downloaded.body).digest() == hashlib.sha256(sent).digest()
    guest.ask("/cgi-bin/receive", body=b"less")


def test_an_upgraded_connection_carries_bytes_both_ways(guest: Guest, client: Client) -> None:
    guest.text()
    route = client.create_route(guest.id, target_port=ECHO_PORT, subdomain="echo")
    try:
        with socket.create_connection(("127.0.0.1", guest.daemon.proxy_port), timeout=DEADLINE_S) as sock:
            sock.sendall(
                b"GET / HTTP/1.1\r\nHost: echo.hatch.localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
            )
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
