"""The resolver against a real name server, dnsmasq, and against silence."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.control.routes import RouteCases
from hatchvm.domain.custom_domain import challenge_of
from hatchvm.net.resolver import DNSResolver
from hatchvm.testing.stage import free_port
from hatchvm.testing.world import World

DNSMASQ: Final = shutil.which("dnsmasq") or shutil.which("dnsmasq", path="/usr/sbin")
pytestmark = pytest.mark.skipif(DNSMASQ is None, reason="needs dnsmasq-base")
NAME: Final = "_hatchvm.app.example.com"
#: More than fits into one datagram: the answer comes over TCP.
MANY: Final = [f"number {number} " + "x" * 200 for number in range(30)]


class NameServer:
    """dnsmasq on a loopback port, authoritative for example.com and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.address = "127.0.0.1", free_port()
        self._settings = folder / "dnsmasq.conf"
        self._process: subprocess.Popen[str] | None = None

    def serve(self, *records: str) -> None:
        """Start, or start anew, with these lines of configuration."""
        self.stop()
        host, port = self.address
        fixed = [f"port={port}", f"listen-address={host}", "bind-interfaces", "no-resolv", "no-hosts", "pid-file"]
        fixed += ["local=/example.com/", "log-facility=-", "user=", "group="]
        self._settings.write_text("\n".join([*fixed, *records, ""]))
        assert DNSMASQ is not None
        self._process = subprocess.Popen(
            [DNSMASQ, "--keep-in-foreground", f"--conf-file={self._settings}"], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "started, version" in line:
                return
        raise AssertionError("".join(said))

    def stop(self) -> None:
        if self._process is not None and self._process.stderr is not None:
            self._process.terminate()
            self._process.wait()
            self._process.stderr.close()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NameServer]:
    server = NameServer(tmp_path)
    yield server
    server.stop()


def txt(name: str, *parts: str) -> str:
    """A TXT record; each part is a string of its own in the DNS."""
    return ",".join([f"txt-record={name}", *parts])


async def test_answers(server: NameServer) -> None:
    server.serve(
        txt(NAME, "first"),
        txt(NAME, "se", "cond"),
        txt("umlaut.example.com", "größe"),
        "host-record=address.example.com,192.0.2.1",
        *(txt("many.example.com", text) for text in MANY),
    )
    resolver = DNSResolver(server.address)
    assert sorted(await resolver.txt(NAME)) == ["first", "second"]
    assert await resolver.txt("umlaut.example.com") == ["größe"]
    assert await resolver.txt("nothing.example.com") == ()
    assert await resolver.txt("address.example.com") == ()
    assert sorted(await resolver.txt("many.example.com")) == sorted(MANY)


async def test_a_server_that_refuses(server: NameServer) -> None:
    server.serve()
    with pytest.raises(Unavailable, match="the name server did not answer; try again later") as refused:
        await DNSResolver(server.address, timeout_s=5).txt("app.elsewhere.example")
    assert "NoNameservers" in refused.value.detail


async def test_a_server_that_is_silent_and_one_that_is_not_there() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable) as waited:
            await DNSResolver(silent.getsockname(), timeout_s=0.2).txt(NAME)
    assert "Timeout" in waited.value.detail
    with pytest.raises(Unavailable):
        await DNSResolver(("127.0.0.1", free_port()), timeout_s=0.2).txt(NAME)


async def test_a_host_without_a_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from dns import resolver

    def nothing(self: object, source: object) -> None:
        raise resolver.NoResolverConfiguration

    monkeypatch.setattr(resolver.BaseResolver, "read_resolv_conf", nothing)
    with pytest.raises(Unavailable):
        await DNSResolver().txt(NAME)


async def test_a_domain_is_verified_by_a_real_record(server: NameServer, tmp_path: Path) -> None:
    async with World.running(tmp_path / "house") as world:
        vm = await world.vm()
        routes = RouteCases(replace(world.ctx, resolver=DNSResolver(server.address)))
        route = await routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain="app.example.com")
        challenge = challenge_of(route)
        assert challenge is not None
        server.serve()
        with pytest.raises(Conflict, match="found none"):
            await routes.verify(route.id)
        server.serve(txt(challenge.name, "something else"))
        with pytest.raises(Conflict, match='found "something else"'):
            await routes.verify(route.id)
        server.serve(txt(challenge.name, challenge.value))
        assert (await routes.verify(route.id)).verified_domain == "app.example.com"
