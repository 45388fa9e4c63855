"""Caddy, set up as the page on custom domains says, gets certificates for names that Hatch serves and for no other."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hatchvm.domain.vm import NewVM
from hatchvm.testing.house import FakeHouse
from hatchvm.testing.live import Live, serve
from hatchvm.testing.stage import Stage, Wire, free_port

pytestmark = pytest.mark.skipif(shutil.which("caddy") is None, reason="needs caddy")

PAGE: Final = Path(__file__).parents[2] / "docs" / "howto" / "custom-domains.md"
NAME: Final = "app.example.com"
#: A certificate authority of Caddy's own, no other ports, nothing outside the test's folder.
LOCAL: Final = "local_certs\nskip_install_trust\nadmin off\nauto_https disable_redirects\nhttps_port {port}\n"


@pytest.fixture
def live() -> Iterator[Live]:
    with serve(FakeHouse()) as live:
        yield live


class Caddy:
    """The page's Caddyfile, before this API and this proxy."""

    def __init__(self, folder: Path, *, api: int, proxy: int) -> None:
        self.port = free_port()
        match = re.search(r"^```caddyfile\n\{\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert match is not None
        text = match[1].replace("127.0.0.1:8080", f"127.0.0.1:{api}").replace("127.0.0.1:9090", f"127.0.0.1:{proxy}")
        file = folder / "Caddyfile"
        file.write_text("{\n" + LOCAL.format(port=self.port) + text)
        self._process = subprocess.Popen(
            ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)],
            env={**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        said = []
        for line in self._process.stderr:
            said.append(line)
            if "serving initial configuration" in line:
                return
        raise AssertionError("".join(said))

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate()

    async def ask(self, name: str) -> bytes:
        """Whole answer to a request for that name, over TLS. Raises ssl.SSLError where there is no certificate."""
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=trusting, server_hostname=name)
        writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


async def test_a_certificate_for_what_is_served_and_for_nothing_else(live: Live, tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def guest(wire: Wire) -> None:
        heard.append(await wire.head())
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with Stage.open() as stage:
        await stage.guest(guest)
        stage.gate.domains[NAME] = stage.gate.routes["app"]
        caddy = await asyncio.to_thread(Caddy, tmp_path, api=live.port, proxy=stage.port)
        try:
            house = live.house
            vm = await house.vms.create(NewVM())
            route = await house.routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain=NAME)
            with pytest.raises(ssl.SSLError):
                await caddy.ask(NAME)
            house.routes.texts = [f"hatchvm-verify={route.domain_token}"]
            await house.routes.verify(route.id)
            assert (await caddy.ask(NAME)).endswith(b"ok")
            assert f"\r\nHost: {NAME}\r\n".encode() in heard[0]
            with pytest.raises(ssl.SSLError):
                await caddy.ask("other.example.com")
        finally:
            caddy.end()
