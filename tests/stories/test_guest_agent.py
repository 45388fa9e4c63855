"""Conversations with a guest's agent over a real socket: an honest one, and guests that make the worst of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hatchvm.base import tasks
from hatchvm.base.clock import SystemClock
from hatchvm.base.sockets import connect, listen
from hatchvm.ports.vmm import PutRight
from hatchvm.vmm.guest_agent import put_right

Answer = Callable[[dict[str, Any]], Awaitable[bytes | None]]


class Agent:
    """What `qemu-guest-agent` does, its clock wrong by `ahead_s` until it is set. `asked`: the commands, in order."""

    def __init__(self) -> None:
        self.ahead_s = -86400.0
        self.asked: list[str] = []
        self.refused: set[str] = set()
        self.stirred = ""
        self.perl_exit = 0
        self.hwclock = asyncio.Event()
        self.hwclock.set()
        self.settable = True

    async def answer(self, request: dict[str, Any]) -> bytes | None:
        command, given = request["execute"], request.get("arguments", {})
        self.asked.append(command)
        if command in self.refused:
            return json.dumps(
                {"error": {"class": "CommandNotFound", "desc": f"{command} is \x1b[31mdisabled"}}
            ).encode()
        result = json.dumps({"return": await self._result(command, given)}).encode()
        return b"\xff" + result if command == "guest-sync-delimited" else result

    async def _result(self, command: str, given: dict[str, Any]) -> Any:
        now = SystemClock().now().timestamp()
        match command:
            case "guest-sync-delimited":
                return given["id"]
            case "guest-set-time":
                if self.settable:
                    self.ahead_s = given["time"] / 1e9 - now
                await self.hwclock.wait()
                return {}
            case "guest-get-time":
                return round((now + self.ahead_s) * 1e9)
            case "guest-file-open":
                return 1000
            case "guest-file-write":
                self.stirred = given["buf-b64"]
                return {"count": 64, "eof": False}
            case "guest-exec":
                return {"pid": 7}
            case "guest-exec-status":
                return {"exited": True, "exitcode": self.perl_exit}
            case _:
                return {}


@asynccontextmanager
async def served(path: Path, answer: Answer, *, greeting: bytes = b"") -> AsyncIterator[None]:
    """An agent's port, as the VMM serves it."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        try:
            while line := await reader.readline():
                reply = await answer(json.loads(line.lstrip(b"\xff")))
                if reply is None:
                    return
                writer.write(reply + b"\n")
        finally:
            writer.close()

    server = await asyncio.start_unix_server(converse, sock=listen(path, backlog=1))
    try:
        yield
    finally:
        server.close()


@pytest.fixture
def port(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


async def settled(agent: Agent, last: str) -> None:
    """Until the agent was asked `last`."""
    async with asyncio.timeout(5):
        while last not in agent.asked:
            await asyncio.sleep(0)


async def test_the_clock_is_right_when_the_wake_goes_on(port: Path) -> None:
    agent = Agent()
    agent.hwclock.clear()  # `hwclock` waits for its half second all the while
    async with served(port, agent.answer):
        assert await put_right(partial(connect, port), "vm-1", again=False, timeout_s=5) == PutRight(done=("clock",))
        assert abs(agent.ahead_s) < 0.05
        agent.hwclock.set()
        await settled(agent, "guest-file-close")
    assert agent.stirred


async def test_memory_that_may_have_run_before_is_reseeded_before_the_wake_goes_on(port: Path) -> None:
    agent = Agent()
    async with served(port, agent.answer):
        done = await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)
    assert done == PutRight(done=("clock", "random"))
    assert agent.asked[-2:] == ["guest-exec", "guest-exec-status"]


async def test_two_guests_get_different_seeds(port: Path) -> None:
    one, other = Agent(), Agent()
    for agent in (one, other):
        async with served(port, agent.answer):
            await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)
    assert one.stirred != other.stirred


async def test_an_agent_that_may_not_run_programs(port: Path) -> None:
    agent = Agent()
    agent.refused = {"guest-exec"}
    async with served(port, agent.answer):
        done = await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)
    assert done == PutRight(done=("clock",), undone={"random": "guest-exec is [31mdisabled"})


async def test_a_guest_without_perl(port: Path) -> None:
    agent = Agent()
    agent.perl_exit = 1
    async with served(port, agent.answer):
        done = await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)
    assert done.undone == {"random": "the reseeding program failed"}


async def test_a_clock_that_cannot_be_set_is_told(port: Path) -> None:
    agent = Agent()
    agent.settable = False
    async with served(port, agent.answer):
        done = await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)
    assert done.done == ("random",)
    assert "off after it was set twice" in done.undone["clock"]
    assert agent.asked.count("guest-set-time") == 2


async def test_words_left_over_from_an_earlier_conversation_are_not_an_answer(port: Path) -> None:
    agent = Agent()
    async with served(port, agent.answer, greeting=b'{"return": 1}\nhalf a li'):
        assert (await put_right(partial(connect, port), "vm-1", again=True, timeout_s=5)).done == ("clock", "random")


async def _hangs_up(request: dict[str, Any]) -> bytes | None:
    return None


async def _never(request: dict[str, Any]) -> bytes | None:
    await asyncio.Event().wait()
    return None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (_hangs_up, "does not keep to its protocol (ConnectionError)"),
        (_never, "did not answer in time"),
        (lambda line: _say(b"not json"), "does not keep to its protocol (JSONDecodeError)"),
        (lambda line: _say(b"[]"), "does not keep to its protocol (ValueError)"),
        (lambda line: _say(b"x" * 200_000), "does not keep to its protocol (ValueError)"),
    ],
    ids=["hangs up", "is silent", "babbles", "answers nonsense", "floods"],
)
@pytest.mark.parametrize("again", [False, True])
async def test_a_hostile_guest_costs_no_more_than_its_own_clock(
    port: Path, answer: Answer, why: str, again: bool
) -> None:
    async with served(port, answer):
        done = await put_right(partial(connect, port), "vm-1", again=again, timeout_s=0.2)
    assert done.done == ()
    assert all(why in words for words in done.undone.values())
    assert set(done.undone) == ({"clock", "random"} if again else {"clock"})


async def _say(line: bytes) -> bytes:
    return line


async def test_nobody_serves_the_port(port: Path) -> None:
    done = await put_right(partial(connect, port), "vm-1", again=False, timeout_s=5)
    assert done.undone == {"clock": "the guest's agent does not keep to its protocol (FileNotFoundError)"}


async def test_a_cancelled_wake_leaves_no_connection(port: Path) -> None:
    async with served(port, _never):
        waiting = tasks.spawn(put_right(partial(connect, port), "vm-1", again=True, timeout_s=60), name="put right")
        await asyncio.sleep(0)
        await tasks.cancel_and_wait(waiting)
        assert waiting.cancelled()
