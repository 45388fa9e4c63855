"""A proxy, or an SSH gateway, between scripted clients and scripted guests, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from hatchvm.edge.http.server import ProxyServer
from hatchvm.edge.ssh import allow
from hatchvm.edge.ssh.gateway import SSHGateway
from hatchvm.edge.ssh.reach import GUEST_PORT
from hatchvm.testing.gate import FakeGate

_START = datetime(2026, 1, 1, tzinfo=UTC)
#: The VM behind the gateway of an `SSHStage`.
VM: Final = "vm-app"
#: Outside the ephemeral range: nobody gets one of these by chance.
_PORTS: Final = range(16000, 26000)


class ManualClock:
    """Time moves when the test says so."""

    def __init__(self) -> None:
        self._passed_s = 0.0

    def now(self) -> datetime:
        return _START + timedelta(seconds=self._passed_s)

    def monotonic(self) -> float:
        return self._passed_s

    def advance(self, seconds: float) -> None:
        self._passed_s += seconds


class Wire:
    """One end of a TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        """The next head, with its blank line."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def exactly(self, count: int) -> bytes:
        return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Everything until the other side ends."""
        return await self.reader.read()

    async def answer(self) -> tuple[bytes, bytes]:
        """Head and body of an answer that tells its length."""
        head = await self.head()
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return head, await self.exactly(int(length))

    def end(self) -> None:
        """Say no more; still listen."""
        self.writer.write_eof()

    def reset(self) -> None:
        """Hang up at once, with a TCP reset."""
        if not self.writer.transport.is_closing():
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def settled(self) -> None:
        """Return when what was written here moves no more: every buffer on the way is full."""
        before = -1
        while before != (now := self.writer.transport.get_write_buffer_size()):
            before = now
            for _ in range(200):
                await asyncio.sleep(0)

    def close(self) -> None:
        self.writer.close()


Script: TypeAlias = Callable[[Wire], Awaitable[None]]


class _Stage:
    """Guests that play scripts, clients that connect, and a gate; a subclass puts something between them."""

    def __init__(self) -> None:
        self.gate = FakeGate()
        self.clock = ManualClock()
        self.port = 0
        self.problems: list[AssertionError] = []
        self._guests: list[asyncio.Server] = []
        self._wires: list[Wire] = []

    @contextlib.asynccontextmanager
    async def _played(self, close: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Afterwards everybody hangs up, and nothing may be left; `close` ends what stands between them."""
        try:
            yield
        finally:
            for wire in self._wires:
                wire.reset()
            await close()
            for guest in self._guests:
                guest.close()
        assert not +self.gate.holds, "a hold was never released"
        if self.problems:
            raise ExceptionGroup("guests stumbled", self.problems)

    async def _serve(self, script: Script, limit: int = 2**16) -> int:
        """A server that plays `script` with every connection; its port."""

        async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            wire = Wire(reader, writer)
            self._wires.append(wire)
            try:
                await script(wire)
            except (asyncio.IncompleteReadError, ConnectionError):
                return  # whoever connected hung up: nothing more to play
            except AssertionError as problem:
                self.problems.append(problem)
            finally:
                wire.close()

        server = await asyncio.start_server(play, "127.0.0.1", 0, limit=limit, backlog=2048)
        self._guests.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def client(self, host: str = "127.0.0.1", source: str | None = None, port: int | None = None) -> Wire:
        """A connection from the address `source` to the stage's port, if to no other."""
        local = None if source is None else (source, 0)
        wire = Wire(*await asyncio.open_connection(host, port or self.port, local_addr=local))
        self._wires.append(wire)
        return wire


class Stage(_Stage):
    """A proxy, and everything one story needs. Use `async with Stage.open() as stage`."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy = ProxyServer(
            self.gate,
            base_domains=["hatch.local", "hatch.localhost"],
            wake_timeout_s=30,
            stream_idle_timeout_s=900,
            clock=self.clock,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator[Stage]:
        stage = cls()
        stage.port = await stage.proxy.start("127.0.0.1", 0)
        async with stage._played(stage.proxy.close):
            yield stage

    async def guest(self, script: Script, *, subdomain: str = "app", limit: int = 2**16) -> int:
        """Let `subdomain` lead to a server that plays `script` with every connection; return its port."""
        port = await self._serve(script, limit)
        self.gate.add(subdomain, port)
        return port

    async def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """One request on a connection of its own."""
        wire = await self.client()
        await wire.send(request)
        return await wire.answer()

    def pass_time(self, seconds: float) -> None:
        """Move the clock, and let the proxy notice."""
        self.clock.advance(seconds)
        self.proxy.sweep()


def free_port() -> int:
    """A loopback port on which nobody listens."""
    while True:
        port = random.choice(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class SSHStage(_Stage):
    """A gateway, and everything one story needs. Use `async with SSHStage.open() as stage`; the VM is `VM`."""

    def __init__(self, allowed: str) -> None:
        super().__init__()
        self.gateway = SSHGateway(self.gate, allowed=allow.parse(allowed), wake_timeout_s=30, clock=self.clock)
        self.port = free_port()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, allowed: str = "127.0.0.1/32") -> AsyncIterator[SSHStage]:
        stage = cls(allowed)
        stage.gateway.open(VM, stage.port)
        async with stage._played(stage.gateway.aclose):
            yield stage
        assert not stage.gateway.pipes.lent, "a pipe was never given back"

    async def guest(self, script: Script, vm_id: str = VM) -> None:
        """Let the VM's sshd be a server that plays `script` with every connection."""
        self.gate.ports[vm_id, GUEST_PORT] = await self._serve(script)
