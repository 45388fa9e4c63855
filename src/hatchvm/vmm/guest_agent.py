"""The guest's agent (`qemu-guest-agent`), asked to put right what a sleep broke: the clock and the random pool.

JSON lines over a virtio serial port or vsock, one conversation at a time. Everything that comes back was written by the
guest: it is bounded in size and time, and believed only about the guest itself.

The agent sets the time first and then, before it answers, runs `hwclock`, which may wait for the next half second. A
wake does not wait for that: the answer, and a look at the guest's clock, come afterwards.

A kernel takes what is written to `/dev/urandom` into account within a minute. That is soon enough for memory that goes
on once. Memory that may have run before (a copy, an older snapshot) must not draw the same numbers even once: it is
made to reseed now (`RNDRESEEDCRNG`), which only a program inside can ask for. Perl is part of every Debian; it takes
0.4 s of emulation, so only such a guest waits for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from hatchvm.base import tasks
from hatchvm.base.clock import SystemClock
from hatchvm.ports.vmm import PutRight
from hatchvm.telemetry import logs

#: The name under which the agent's port is known in the guest.
PORT: Final = "org.qemu.guest_agent.0"
#: Where it listens in a guest that has vsock in place of serial ports.
VSOCK_PORT: Final = 1024

#: Opens a stream to the agent, or raises OSError.
Dial = Callable[[], Awaitable[socket.socket]]

_log = structlog.get_logger()
_CLOCK: Final = SystemClock()
_MAX_LINE: Final = 64 * 1024
#: Clears what a conversation that was cut off left in the agent's parser.
_FLUSH: Final = b"\xff"
_SEED_BYTES: Final = 64
#: How long the agent needs to set the time: a share of the round trip that it has just answered, or a little. Measured
#: under emulation right after a wake: trip 40-80 ms, time set 2-3 ms after it was sent, answer 130-260 ms after that.
_SHARE: Final = 0.25
_LEAST_S: Final = 0.005
#: How long the agent's own `hwclock` may take.
_SETTLE_S: Final = 5.0
_TOLERATED_S: Final = 0.05
_LOOK_S: Final = 0.01
_RESEED: Final = 'open R, ">", "/dev/urandom" or die; ioctl(R, 0x5207, 0) or die'


class Refused(Exception):
    """The agent cannot do it; its own words."""


#: What a guest can make of a conversation.
_FAILURES: Final = (Refused, OSError, TimeoutError, ValueError, KeyError, TypeError)


class GuestAgent:
    """One conversation. Raises OSError, ValueError or TimeoutError if the agent does not keep to its part."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, dial: Dial) -> GuestAgent:
        sock = await dial()
        try:
            return cls(*await asyncio.open_unix_connection(sock=sock, limit=_MAX_LINE))
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        self._writer.close()

    async def sync(self) -> float:
        """Seconds until the agent answered. What earlier conversations left over is thrown away."""
        began, number = _CLOCK.monotonic(), int.from_bytes(os.urandom(4), "big")
        self._writer.write(_FLUSH)
        self._send("guest-sync-delimited", id=number)
        while (await self._answer()).get("return") != number:
            pass
        return _CLOCK.monotonic() - began

    async def run(self, command: str, **arguments: Any) -> Any:
        self._send(command, **arguments)
        return await self.result()

    async def result(self) -> Any:
        """What the last command returned. Raises Refused."""
        answer = await self._answer()
        if "return" not in answer:
            error = answer.get("error")
            words = str(error.get("desc") if isinstance(error, dict) else error)
            raise Refused("".join(filter(str.isprintable, words))[:200])
        return answer["return"]

    async def begin_set_time(self) -> None:
        """See the module's text for when the answer comes: ask `result` for it."""
        self._send("guest-set-time", time=round(_CLOCK.now().timestamp() * 1e9))
        await self._writer.drain()

    async def check_clock(self) -> None:
        """Wait for the end of `begin_set_time`; set the time once more if it is not right. Raises Refused."""
        for last_try in (False, True):
            await self.result()
            before = _CLOCK.now().timestamp()
            guest_ns = int(await self.run("guest-get-time"))
            ahead_s = guest_ns / 1e9 - (before + _CLOCK.now().timestamp()) / 2
            if abs(ahead_s) <= _TOLERATED_S:
                return
            if not last_try:
                await self.begin_set_time()
        raise Refused(f"the guest's clock is {ahead_s:+.3f} s off after it was set twice")

    async def stir(self, *, now: bool) -> None:
        """Mix random bytes of the host into the guest's pool; `now`: and make it draw from them at once."""
        seed = base64.b64encode(os.urandom(_SEED_BYTES)).decode()
        file = await self.run("guest-file-open", path="/dev/urandom", mode="w")
        await self.run("guest-file-write", **{"handle": file, "buf-b64": seed})
        await self.run("guest-file-close", handle=file)
        if now:
            await self._reseed()

    async def _reseed(self) -> None:
        """Raises Refused, also for a guest without Perl."""
        started = await self.run("guest-exec", path="perl", arg=["-e", _RESEED])
        while True:
            status = await self.run("guest-exec-status", pid=started["pid"])
            if status["exited"]:
                break
            await asyncio.sleep(_LOOK_S)
        if status.get("exitcode") != 0:
            raise Refused("the reseeding program failed")

    def _send(self, command: str, **arguments: Any) -> None:
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    async def _answer(self) -> dict[str, Any]:
        line = await self._reader.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the agent hung up")
        answer = json.loads(line.rpartition(_FLUSH)[2])
        if not isinstance(answer, dict):
            raise ValueError("not an answer")
        return answer


async def put_right(dial: Dial, vm_id: str, *, again: bool, timeout_s: float) -> PutRight:
    """See `ports.vmm.Handle.put_right`."""
    try:
        async with asyncio.timeout(timeout_s):
            agent = await GuestAgent.connect(dial)
            try:
                trip_s = await agent.sync()
                await agent.begin_set_time()
                if again:
                    return await _finish(agent, again=True)
                await asyncio.sleep(max(_LEAST_S, trip_s * _SHARE))
            except BaseException:
                agent.close()
                raise
    except _FAILURES as error:
        return nothing(_sentence(error), again=again)
    tasks.supervise(_follow_up(agent, vm_id), name=f"put right {vm_id}")
    return PutRight(done=("clock",))


def nothing(why: str, *, again: bool) -> PutRight:
    """Nothing was done, for one reason."""
    return PutRight(undone=dict.fromkeys(("clock", "random") if again else ("clock",), why))


async def _follow_up(agent: GuestAgent, vm_id: str) -> None:
    try:
        async with asyncio.timeout(_SETTLE_S):
            undone = (await _finish(agent, again=False)).undone
    except _FAILURES as error:
        undone = {"clock": _sentence(error)}
    if undone:
        _log.warning(logs.GUEST_NOT_PUT_RIGHT, vm=vm_id, undone=dict(undone))


async def _finish(agent: GuestAgent, *, again: bool) -> PutRight:
    """What follows `begin_set_time`."""
    done, undone = [], {}
    with contextlib.closing(agent):
        for name, work in (("clock", agent.check_clock()), ("random", agent.stir(now=again))):
            try:
                await work
                done.append(name)
            except Refused as error:
                undone[name] = str(error)
    return PutRight(done=tuple(done), undone=undone)


def _sentence(error: Exception) -> str:
    if isinstance(error, Refused):
        return str(error)
    if isinstance(error, TimeoutError):
        return "the guest's agent did not answer in time"
    return f"the guest's agent does not keep to its protocol ({type(error).__name__})"
