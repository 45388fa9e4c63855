"""A guest that is an ordinary web server, for clients that are ordinary programs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any, Final, TypeAlias

import uvicorn

from hatchvm.base import tasks
from hatchvm.testing.stage import Stage

KIB: Final = 1024
MIB: Final = 1024 * KIB
_PIECE: Final = bytes(64 * KIB)

_Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class WebGuest:
    """`/hello`, `/bytes?count`, `/receive` (what came, and its digest), `/events` (what is put into `events`, None is
    the end), `/report` (its JSON goes to `reports`), `/` (`page`), and a WebSocket that echoes."""

    def __init__(self) -> None:
        self.page = ""
        self.events: asyncio.Queue[str | None] = asyncio.Queue()
        self.reports: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] == "websocket":
            await self._echo(receive, send)
            return
        match scope["path"]:
            case "/bytes":
                await self._bytes(int(scope["query_string"]), scope["method"], send)
            case "/receive":
                await self._receive(receive, send)
            case "/events":
                await self._events(send)
            case "/report":
                self.reports.put_nowait(json.loads(await _body(receive)))
                await _answer(send, b"")
            case "/":
                await _answer(send, self.page.encode(), b"text/html")
            case _:
                await _answer(send, b"hello")

    async def _echo(self, receive: _Receive, send: _Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})

    async def _bytes(self, count: int, method: str, send: _Send) -> None:
        headers = [(b"content-length", b"%d" % count)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while count and method != "HEAD":
            piece = _PIECE[:count]
            count -= len(piece)
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _receive(self, receive: _Receive, send: _Send) -> None:
        digest, size, more = hashlib.sha256(), 0, True
        while more:
            message = await receive()
            piece, more = message.get("body", b""), message.get("more_body", False)
            digest.update(piece)
            size += len(piece)
        await _answer(send, json.dumps({"size": size, "sha256": digest.hexdigest()}).encode())

    async def _events(self, send: _Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while (event := await self.events.get()) is not None:
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _body(receive: _Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def _answer(send: _Send, body: bytes, kind: bytes = b"text/plain") -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass(frozen=True, slots=True)
class WebStage:
    """A proxy whose route `app` leads to `guest`; `url` is where clients find it."""

    stage: Stage
    guest: WebGuest

    @property
    def url(self) -> str:
        return f"http://app.hatch.localhost:{self.stage.port}"

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls) -> AsyncIterator[WebStage]:
        guest = WebGuest()
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        config = uvicorn.Config(guest, log_config=None, lifespan="off", ws="websockets-sansio")
        server = uvicorn.Server(config)
        serving = tasks.spawn(server.serve([listener]), name="guest")
        try:
            async with Stage.open() as stage:
                stage.gate.add("app", listener.getsockname()[1])
                yield cls(stage, guest)
        finally:
            guest.events.put_nowait(None)  # whoever still serves events would keep the server from ending
            server.should_exit = True
            await serving


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: int
    out: bytes
    err: str


async def run(*argv: str | Path, cwd: Path | None = None) -> Ran:
    """Run a program to its end, without input and without proxies from the environment."""
    alone = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    # In a thread: asyncio lets go of a child only some turns of its loop after the end, when a test may be over.
    done = await asyncio.to_thread(
        lambda: subprocess.run(argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=cwd, env=alone, check=False)
    )
    return Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


def reset_peak() -> int:
    """Forget the most memory this process ever had; return what it has, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak() -> int:
    """The most memory that this process had since `reset_peak`, bytes."""
    return _memory("VmHWM")


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * KIB
