"""The API's HTTP over a Unix socket: every request is checked and recorded, then performed, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any, Final

from hatchvm.testing.firecracker import api
from hatchvm.testing.firecracker.binary import Fault, fault
from hatchvm.testing.firecracker.machine import Machine, Refused
from hatchvm.testing.firecracker.record import Record

_LOAD_FAILED: Final = 1
_MAX_BODY: Final = 51200
_REASONS: Final = {200: "OK", 204: "No Content", 400: "Bad Request", 413: "Payload Too Large"}


class Server:
    """`faults`: a file, see `binary.put_faults`."""

    def __init__(self, machine: Machine, record: Record, faults: Path | None) -> None:
        self._machine = machine
        self._record = record
        self._faults = faults
        self._calls: Counter[str] = Counter()
        self._turn = asyncio.Lock()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                fields = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:]}
                raw = await reader.readexactly(min(int(fields.get("content-length", 0)), _MAX_BODY + 1))
                async with self._turn:
                    status, answer, end = await self._answer(method, path, raw)
                    writer.write(_response(status, answer))
                    await writer.drain()
                    if end is not None and not self._machine.ended.done():
                        self._machine.ended.set_result(end)
        writer.close()

    async def _answer(self, method: str, path: str, raw: bytes) -> tuple[int, Any, int | None]:
        """Status, body, and the exit code if the process ends with it."""
        body, phase = _parsed(raw), self._machine.phase
        wrong = api.check(self._machine.version, method, path, body, phase)
        called = api.call(self._machine.version, method, path)
        end, met = None, None
        try:
            if wrong or called is None:
                raise Refused("; ".join(wrong))
            met = self._fault(api.name(called, body))
            status, answer = await self._perform(called, path, body, met)
        except Refused as refused:
            status, answer = 400, {"fault_message": str(refused)}
            end = _LOAD_FAILED if refused.fatal else None
        line = {"method": method, "path": path, "body": body, "phase": phase.name.lower()}
        self._record.add(**line, violations=wrong, status=status)
        if met and met.do == "die after":
            os.kill(os.getpid(), signal.SIGKILL)
        return status, answer, end

    async def _perform(self, called: str, path: str, body: Any, met: Fault | None) -> tuple[int, Any]:
        if met and met.do == "refuse":
            return met.status, {"fault_message": "a fault on demand"}
        if met and met.do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if met and met.do == "hang":
            await asyncio.get_running_loop().create_future()
        answer = await self._machine.perform(called, path, body, full=met is not None and met.do == "full")
        return (204 if answer is None else 200), answer

    def _fault(self, name: str) -> Fault | None:
        self._calls[name] += 1
        return fault(self._faults, name, self._calls[name] - 1)


def _parsed(raw: bytes) -> Any:
    """What is not JSON is a string, which no call takes."""
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw.decode("latin-1")


def _response(status: int, answer: Any) -> bytes:
    body = b"" if answer is None else json.dumps(answer).encode()
    fields = ["Server: Firecracker API", "Connection: keep-alive"]
    fields += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if answer is not None else []
    head = "\r\n".join([f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}", *fields])
    return head.encode() + b"\r\n\r\n" + body
