"""QMP, QEMU's control protocol: JSON objects on a Unix socket, one client at a time.

Commands are answered in order, so concurrent callers need no lock. A file descriptor travels as SCM_RIGHTS ancillary
data of the `getfd` command, which asyncio's transports cannot send: the socket is therefore kept beside its stream, and
`getfd` writes to it directly while nothing else is buffered.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hatchvm.base import sockets, tasks
from hatchvm.base.errors import Internal, Unavailable

#: An answer can be long (`query-qmp-schema`), never this long.
_MAX_LINE: Final = 8 * 1024 * 1024
#: QEMU's main loop answers in microseconds; under a loaded host it may wait for a CPU.
ANSWER_S: Final = 20.0

Answer = dict[str, Any]


class QMPError(Internal):
    """QEMU refused a command; the message is QEMU's own."""


class QMP:
    """One negotiated connection. Lost connections fail every waiting call with Unavailable."""

    def __init__(self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._sock = sock
        self._reader = reader
        self._writer = writer
        self._waiting: list[asyncio.Future[Answer]] = []
        self._events: list[tuple[Callable[[Answer], bool], asyncio.Future[Answer]]] = []
        self.last_shutdown: Answer | None = None
        #: Of the process at the other end, as `--version` tells it.
        self.version = ""
        self._pump: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, path: Path) -> QMP:
        """Connect and negotiate. Raises Unavailable if nobody serves the socket (or somebody else is connected)."""
        sock: socket.socket | None = None
        writer: asyncio.StreamWriter | None = None
        try:
            sock = await sockets.connect(path)
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE)
            self = cls(sock, reader, writer)
            async with asyncio.timeout(ANSWER_S):
                greeting = await reader.readline()
                if not greeting.startswith(b'{"QMP"'):
                    raise ConnectionError("no QMP greeting")
                self.version = _version(json.loads(greeting))
                self._pump = tasks.supervise(self._read(), name=f"qmp {path.parent.name}")
                await self.run("qmp_capabilities")
        except BaseException as error:
            if (opened := writer or sock) is not None:
                opened.close()
            if isinstance(error, (OSError, TimeoutError, ValueError)):
                raise Unavailable("the VMM does not answer", detail=f"{path}: {error!r}") from error
            raise
        return self

    async def run(self, command: str, **arguments: Any) -> Any:
        """Execute one command and return its `return` value. Raises QMPError, or Unavailable on a lost connection."""
        answer = self._expect()
        self._writer.write(_encode(command, arguments))
        return await self._answered(answer, command)

    async def pass_fd(self, fd: int, name: str) -> None:
        """Give QEMU a descriptor under `name` (`getfd`)."""
        try:
            await self._writer.drain()
            answer = self._expect()
            socket.send_fds(self._sock, [_encode("getfd", {"fdname": name})], [fd])
        except OSError as error:
            raise _gone() from error
        await self._answered(answer, "getfd")

    async def monitor(self, line: str) -> str:
        """Run a human-monitor command; its output. For the two things QMP cannot do (user-network forwards)."""
        output: str = await self.run("human-monitor-command", **{"command-line": line})
        return output

    def event(self, matches: Callable[[Answer], bool]) -> asyncio.Future[Answer]:
        """A future for the next event that matches; fails with Unavailable if the connection is lost first."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        if self._reader.at_eof():
            future.set_exception(_gone())
        self._events.append((matches, future))
        return future

    def close(self) -> None:
        self._writer.close()

    def _expect(self) -> asyncio.Future[Answer]:
        if self._writer.is_closing() or self._reader.at_eof():
            raise _gone()
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    async def _answered(self, answer: asyncio.Future[Answer], command: str) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                message = await answer
        except TimeoutError as error:
            raise Unavailable("the VMM does not answer", detail=f"{command} took over {ANSWER_S} s") from error
        if "error" in message:
            raise QMPError(f"QEMU: {message['error'].get('desc', 'unknown error')}", detail=command)
        return message.get("return")

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError):
            pass  # a broken conversation is a lost one
        finally:
            self._writer.close()
            for future in [*self._waiting, *(future for _, future in self._events)]:
                if not future.done():
                    future.set_exception(_gone())
                    future.exception()  # retrieved: whoever waits still gets it
            self._waiting.clear()
            self._events.clear()

    def _take(self, message: Answer) -> None:
        if "event" not in message:
            if self._waiting:
                future = self._waiting.pop(0)
                if not future.done():
                    future.set_result(message)
            return
        if message["event"] == "SHUTDOWN":
            self.last_shutdown = message.get("data", {})
        for entry in [entry for entry in self._events if entry[1].done() or entry[0](message)]:
            self._events.remove(entry)
            if not entry[1].done():
                entry[1].set_result(message)


def _version(greeting: Answer) -> str:
    """As QEMU's own `--version` puts it: `7.2.22 (Debian 1:7.2+dfsg-7)`. Raises ValueError."""
    try:
        version = greeting["QMP"]["version"]
        numbers = ".".join(str(version["qemu"][part]) for part in ("major", "minor", "micro"))
        return f"{numbers} ({version['package']})" if version["package"] else numbers
    except (KeyError, TypeError) as error:
        raise ValueError("no version in QMP's greeting") from error


def _encode(command: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"


def _gone() -> Unavailable:
    return Unavailable("the VMM is gone")
