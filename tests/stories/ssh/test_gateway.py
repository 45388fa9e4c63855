"""The SSH gateway over real sockets: who may come in, what it holds, how it ends, and what a client is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop
from structlog.testing import capture_logs

from hatchvm.base.errors import HatchError, Unavailable, Upstream
from hatchvm.edge.ssh import gateway as gateway_module
from hatchvm.edge.ssh import session as session_module
from hatchvm.edge.ssh.farewell import farewell
from hatchvm.telemetry import logs
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.stage import VM, SSHStage, Wire, free_port

HELLO = b"SSH-2.0-test\r\n"
SIZE = 40_000_000


@pytest.fixture
async def stage() -> AsyncIterator[SSHStage]:
    async with SSHStage.open() as stage:
        yield stage


async def echo(wire: Wire) -> None:
    while data := await wire.reader.read(65536):
        await wire.send(data)


async def silent(wire: Wire) -> None:
    await wire.rest()


async def shout(stage: SSHStage) -> None:
    """A session that certainly is connected to its guest."""
    client = await stage.client()
    await client.send(HELLO)
    assert await client.exactly(len(HELLO)) == HELLO


async def test_a_session_holds_its_vm_from_the_first_moment_to_the_last(stage: SSHStage) -> None:
    await stage.guest(echo)
    client = await stage.client()
    await client.send(HELLO)
    assert await client.exactly(len(HELLO)) == HELLO
    assert stage.gate.holds[VM] == 1
    assert stage.gate.touches[VM] == 2
    assert stage.gate.held_by == [("ssh", "127.0.0.1")]
    assert stage.gate.needed_by == [("ssh", "127.0.0.1")]
    client.end()
    assert await client.rest() == b""
    await stage.gate.until_released(VM)


async def test_what_a_client_says_while_the_vm_sleeps_reaches_its_guest(stage: SSHStage) -> None:
    await stage.guest(echo)
    stage.gate.asleep.add(VM)
    client = await stage.client()
    await client.send(HELLO)
    await stage.gate.until_needed(1)
    assert stage.gate.holds[VM] == 1
    stage.gate.wake.set()
    assert await client.exactly(len(HELLO)) == HELLO


async def test_a_client_that_ended_its_stream_while_the_vm_slept_is_still_answered(stage: SSHStage) -> None:
    await stage.guest(echo)
    stage.gate.asleep.add(VM)
    client = await stage.client()
    await client.send(HELLO)
    client.end()
    await stage.gate.until_needed(1)
    stage.gate.wake.set()
    assert await client.rest() == HELLO


async def test_two_hundred_clients_at_once(stage: SSHStage) -> None:
    await stage.guest(echo)
    stage.gate.asleep.add(VM)
    clients = await asyncio.gather(*(stage.client() for _ in range(200)))
    await stage.gate.until_needed(200)
    stage.gate.wake.set()
    for number, client in enumerate(clients):
        await client.send(b"%03d" % number)
    for number, client in enumerate(clients):
        assert await client.exactly(3) == b"%03d" % number


async def test_a_client_that_breaks_while_the_vm_wakes_stops_holding_it(stage: SSHStage) -> None:
    stage.gate.asleep.add(VM)
    client = await stage.client()
    await stage.gate.until_needed(1)
    client.reset()
    await stage.gate.until_released(VM)
    await stage.gate.until_left(1)


async def test_a_client_that_breaks_after_its_half_stops_holding_the_vm(stage: SSHStage) -> None:
    """Nobody reads it any more, and the guest says nothing that could fail to be sent."""
    heard = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.rest()
        heard.set()
        await asyncio.Event().wait()

    await stage.guest(guest)
    client = await stage.client()
    client.end()
    await heard.wait()
    assert stage.gate.holds[VM] == 1
    client.reset()
    await stage.gate.until_released(VM)


async def half_close_by_the_client(stage: SSHStage) -> None:
    async def guest(wire: Wire) -> None:
        assert await wire.rest() == b"question"
        await wire.send(b"answer")

    await stage.guest(guest)
    client = await stage.client()
    await client.send(b"question")
    client.end()
    assert await client.rest() == b"answer"


async def half_close_by_the_guest(stage: SSHStage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.send(b"answer")
        wire.end()
        assert await wire.rest() == b"afterthought"

    await stage.guest(guest)
    client = await stage.client()
    assert await client.rest() == b"answer"
    await client.send(b"afterthought")
    client.end()
    await stage.gate.until_released(VM)


async def a_guest_that_does_not_read(stage: SSHStage) -> None:
    """What is on its way is kept by the kernel: in sockets, and in one pipe."""
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        wire.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        wire.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await wire.exactly(SIZE)) == SIZE
        await wire.send(b"all")

    await stage.guest(guest)
    client = await stage.client()
    client.writer.write(bytes(SIZE))
    while stage.gateway.pipes.lent != 1:
        await asyncio.sleep(0)
    go.set()
    assert await client.exactly(3) == b"all"
    assert stage.gateway.pipes.lent == 0


async def a_guest_that_breaks(stage: SSHStage) -> None:
    """Its last words are heard first."""

    async def guest(wire: Wire) -> None:
        await wire.send(b"last words")
        await wire.exactly(1)
        wire.reset()

    await stage.guest(guest)
    client = await stage.client()
    assert await client.exactly(10) == b"last words"
    await client.send(b"x")
    with pytest.raises(ConnectionResetError):
        await client.rest()
    await stage.gate.until_released(VM)


async def a_client_that_breaks(stage: SSHStage) -> None:
    broken = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.send(b"x")
        with pytest.raises(ConnectionResetError):
            await wire.rest()
        broken.set()

    await stage.guest(guest)
    client = await stage.client()
    await client.exactly(1)
    client.reset()
    await broken.wait()


STORIES = [
    half_close_by_the_client,
    half_close_by_the_guest,
    a_guest_that_does_not_read,
    a_guest_that_breaks,
    a_client_that_breaks,
]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("story", STORIES)
def test_on_both_loops(
    story: Callable[[SSHStage], Awaitable[None]], loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def play() -> None:
        async with SSHStage.open() as stage:
            await story(stage)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(play())


async def test_a_client_is_told_why_its_vm_does_not_wake(stage: SSHStage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that has said much that nobody wants to hear. It is let go of as soon as it hangs up."""
    monkeypatch.setattr(session_module, "_LINGER_S", 3600)
    stage.gate.wake_error = Unavailable("failed to wake vm", detail="secret", retry_after_s=4)
    stage.gate.asleep.add(VM)
    client = await stage.client()
    await client.send(HELLO + bytes(100_000))
    await stage.gate.until_needed(1)
    stage.gate.wake.set()
    assert await client.rest() == farewell("failed to wake vm; try again in 4 s")
    await stage.gate.until_released(VM)
    assert stage.gateway.sessions == 1
    client.close()
    while stage.gateway.sessions:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [
        ([Upstream("upstream refused connection")], "upstream refused connection"),
        ([Unavailable('vm is in state "stopped", not proxying')] * 3, 'vm is in state "stopped", not proxying'),
    ],
)
async def test_a_client_is_told_why_its_guest_cannot_be_reached(
    stage: SSHStage, errors: list[HatchError], sentence: str
) -> None:
    stage.gate.dial_errors = errors
    client = await stage.client()
    assert await client.rest() == farewell(sentence)


async def test_a_vm_that_fell_asleep_again_is_woken_again(stage: SSHStage) -> None:
    await stage.guest(echo)
    stage.gate.dial_errors = [Unavailable("the VMM is gone")] * 2
    await shout(stage)
    assert (stage.gate.needs, stage.gate.dials) == (3, 3)


async def test_a_client_that_was_told_and_stays_is_let_go_of(stage: SSHStage) -> None:
    stage.gate.dial_errors = [Upstream("vm not found")]
    client = await stage.client()
    await client.exactly(len(farewell("vm not found")))
    await stage.gate.until_released(VM)
    SteeredClock().advance(2)
    await client.send(b"x")  # it still takes that, and now resets
    with pytest.raises(ConnectionError):
        while True:
            await client.send(b"x")
            await asyncio.sleep(0)


async def test_a_stranger_is_closed_before_anything_else_happens() -> None:
    async with SSHStage.open("127.0.0.2/32") as stage:
        await stage.guest(echo)
        with capture_logs() as lines:
            for _ in range(5):
                assert await (await stage.client()).rest() == b""
            welcome = await stage.client(source="127.0.0.2")
            await welcome.send(HELLO)
            assert await welcome.exactly(len(HELLO)) == HELLO
            assert stage.gate.held_by == [("ssh", "127.0.0.2")]
            stage.clock.advance(60)
            assert await (await stage.client()).rest() == b""
        refusals = [line for line in lines if line["event"] == logs.SSH_REFUSED]
        assert [(line["peer"], line["refused"]) for line in refusals] == [("127.0.0.1", 1), ("127.0.0.1", 5)]


async def test_clients_come_over_both_families() -> None:
    async with SSHStage.open("127.0.0.0/8,::1/128") as stage:
        await stage.guest(echo)
        for host in ("127.0.0.1", "::1"):
            client = await stage.client(host)
            await client.send(HELLO)
            assert await client.exactly(len(HELLO)) == HELLO
        assert stage.gate.held_by == [("ssh", "127.0.0.1"), ("ssh", "::1")]


async def test_a_family_that_may_not_connect_finds_no_listener(stage: SSHStage) -> None:
    with pytest.raises(ConnectionRefusedError):
        await stage.client("::1")


async def test_no_more_than_so_many_wait_for_one_vm(stage: SSHStage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "MAX_WAITING", 2)
    await stage.guest(echo)
    stage.gate.asleep.add(VM)
    waiting = [await stage.client(), await stage.client()]
    await stage.gate.until_needed(2)
    excess = await stage.client()
    assert await excess.rest() == farewell("too many clients wait for this vm; try again in 5 s")
    stage.gate.wake.set()
    for client in waiting:
        await client.send(HELLO)
        assert await client.exactly(len(HELLO)) == HELLO
    await shout(stage)


async def test_no_more_than_so_many_sessions_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "MAX_SESSIONS", 2)
    async with SSHStage.open() as stage:
        await stage.guest(echo)
        first = await stage.client()
        await shout(stage)
        assert await (await stage.client()).rest() == b""
        first.end()
        await first.rest()
        await shout(stage)


async def test_a_port_that_a_stranger_holds_is_one_warning_and_is_had_later(stage: SSHStage) -> None:
    await stage.guest(echo)
    clock = SteeredClock()
    with capture_logs() as lines:
        with socket.create_server(("127.0.0.1", free_port())) as stranger:
            port = stranger.getsockname()[1]
            stage.gateway.open(VM, port)
            stage.gateway.open(VM, port)
            clock.advance(30)
            await shout(stage)
        clock.advance(30)
        await shout(stage)
    client = await stage.client(port=port)
    await client.send(HELLO)
    assert await client.exactly(len(HELLO)) == HELLO
    said = [line["event"] for line in lines if line.get("port") == port]
    assert said == [logs.SSH_NOT_LISTENING, logs.SSH_LISTENING]


async def test_a_closed_port_is_closed_at_once_and_its_sessions_go_on(stage: SSHStage) -> None:
    await stage.guest(echo)
    client = await stage.client()
    await client.send(b"a")
    assert await client.exactly(1) == b"a"
    stage.gateway.close(stage.port)
    stage.gateway.close(stage.port)
    with pytest.raises(ConnectionRefusedError):
        await stage.client()
    await client.send(b"b")
    assert await client.exactly(1) == b"b"
    stage.gateway.open("vm-next", stage.port)
    await stage.guest(echo, "vm-next")
    await shout(stage)
    assert stage.gate.holds["vm-next"] == 1


async def test_a_port_can_change_hands(stage: SSHStage) -> None:
    await stage.guest(echo, "vm-next")
    stage.gateway.open("vm-next", stage.port)
    await shout(stage)
    assert +stage.gate.holds == {"vm-next": 1}


async def test_sessions_of_a_vm_that_stopped_end_in_good_order(stage: SSHStage) -> None:
    """Its guest cannot say so itself. Whoever waits for its wake goes on waiting."""
    await stage.guest(silent)
    await stage.guest(echo, "vm-other")
    other_port = free_port()
    stage.gateway.open("vm-other", other_port)
    other = await stage.client(port=other_port)
    await other.send(b"x")
    await other.exactly(1)
    client = await stage.client()
    await client.send(HELLO)
    while not stage.gate.touches[VM]:
        await asyncio.sleep(0)
    stage.gate.asleep.add(VM)
    late = await stage.client()
    await stage.gate.until_needed(3)
    stage.gateway.forget(VM)
    assert await client.rest() == b""
    await stage.guest(echo)
    stage.gate.wake.set()
    await late.send(HELLO)
    assert await late.exactly(len(HELLO)) == HELLO
    await other.send(b"y")
    assert await other.exactly(1) == b"y"


async def test_the_daemon_ends(stage: SSHStage) -> None:
    await stage.guest(silent)
    client = await stage.client()
    await client.send(HELLO)
    while not stage.gate.touches[VM]:
        await asyncio.sleep(0)
    stage.gate.asleep.add(VM)
    waiting = await stage.client()
    await stage.gate.until_needed(2)

    async def told(wire: Wire, words: bytes) -> None:
        assert await wire.rest() == words
        wire.close()

    restarting = farewell("hatch is restarting; try again in 5 s")
    await asyncio.gather(told(client, b""), told(waiting, restarting), stage.gateway.aclose())
    assert not +stage.gate.holds
    with pytest.raises(ConnectionRefusedError):
        await stage.client()


async def test_the_dead_are_noticed(stage: SSHStage) -> None:
    """The kernel asks a silent guest, and gives up one that takes nothing."""
    dialled: list[socket.socket] = []
    dial = stage.gate.dial

    async def noted(vm_id: str, port: int, *, timeout_s: float) -> socket.socket:
        dialled.append(await dial(vm_id, port, timeout_s=timeout_s))
        return dialled[0]

    stage.gate.dial = noted  # type: ignore[method-assign]
    await stage.guest(echo)
    await shout(stage)
    options = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT]
    assert dialled[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert [dialled[0].getsockopt(socket.IPPROTO_TCP, option) for option in options] == [60, 15, 4, 120_000]
