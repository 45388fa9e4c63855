"""A vsock device's host end, and a guest agent (`qemu-guest-agent`) that listens behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

#: On which the agent listens, in every guest.
PORT: Final = 1024
_FIRST_PORT: Final = 1 << 30
_LINE: Final = 1 << 16


def listen(path: str) -> socket.socket:
    """Raises OSError if something is there."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


class Vsock:
    """`has_agent`: one listens in the guest. A paused guest does not answer."""

    def __init__(self, listener: socket.socket, has_agent: bool, running: asyncio.Event) -> None:
        self._listener = listener
        self._has_agent = has_agent
        self._running = running
        self._open: set[asyncio.StreamWriter] = set()
        self._next = _FIRST_PORT
        #: Is told each command that the agent is given.
        self.told: Callable[[str], None] = lambda command: None
        #: How far the guest's clock is behind.
        self.behind_s = 0.0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._connected, sock=self._listener, limit=_LINE)

    def reset(self) -> None:
        """Every connection ends, as a snapshot makes it."""
        for writer in self._open:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(ConnectionError, ValueError, asyncio.LimitOverrunError):
                await self._talk(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        await self._running.wait()
        if not self._has_agent or asked.split() != [b"CONNECT", str(PORT).encode()]:
            return
        writer.write(f"OK {self._next}\n".encode())
        self._next += 1
        while line := await reader.readline():
            await self._running.wait()
            asked_for = json.loads(line.rpartition(b"\xff")[2])
            self.told(asked_for["execute"])
            start = b"\xff" if asked_for["execute"] == "guest-sync-delimited" else b""
            answer = self._answer(asked_for["execute"], asked_for.get("arguments", {}))
            writer.write(start + json.dumps(answer).encode() + b"\n")

    def _answer(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        now_ns = datetime.now(UTC).timestamp() * 1e9  # noqa: TID251 - a guest has a clock of its own
        if command in ("guest-sync", "guest-sync-delimited"):
            return {"return": arguments["id"]}
        if command == "guest-get-time":
            return {"return": int(now_ns - self.behind_s * 1e9)}
        if command == "guest-set-time":
            self.behind_s = (now_ns - arguments["time"]) / 1e9 if "time" in arguments else 0.0
            return {"return": {}}
        answers: dict[str, Any] = {
            "guest-ping": {},
            "guest-file-open": 1000,
            "guest-file-write": {"count": len(arguments.get("buf-b64", "")), "eof": False},
            "guest-file-close": {},
            "guest-exec": {"pid": 1},
            "guest-exec-status": {"exited": True, "exitcode": 0},
        }
        if command not in answers:
            return {"error": {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}}
        return {"return": answers[command]}
