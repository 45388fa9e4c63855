"""The SSH front when something is wrong: with the key, the VM, the guest or the user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.testing.edge.ssh_front import VM, FrontStage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FrontStage]:
    async with FrontStage.open(tmp_path) as stage:
        yield stage


async def test_the_vm_is_held_while_somebody_is_there(stage: FrontStage) -> None:
    child = await stage.start(*stage.argv("ssh", "web@127.0.0.1", "echo ready; cat"))
    assert child.stdin and child.stdout
    assert await child.stdout.readline() == b"ready\n"
    assert stage.gate.holds[VM] == 1
    assert stage.gate.held_by == stage.gate.needed_by == [("ssh", "127.0.0.1")]
    assert stage.gate.touches[VM]
    await child.communicate(b"")
    await stage.gate.until_released(VM)


async def test_a_wake(stage: FrontStage) -> None:
    stage.gate.asleep.add(VM)
    running = tasks.spawn(stage.ssh("cat", feed=b"hello"), name="ssh")
    await stage.gate.until_needed(1)
    stage.gate.wake.set()
    assert (await running).out == b"hello"


async def test_a_vm_that_falls_asleep_again_before_it_is_reached(stage: FrontStage) -> None:
    stage.gate.dial_errors = [Unavailable('vm is in state "snapshotted"'), Unavailable("and again")]
    assert (await stage.ssh("echo hello")).out == b"hello\n"
    assert stage.gate.needs == 3


async def test_a_vm_that_cannot_wake(stage: FrontStage) -> None:
    stage.gate.asleep.add(VM)
    stage.gate.wake.set()
    stage.gate.wake_error = Unavailable("failed to wake vm", retry_after_s=3.2)
    ran = await stage.ssh("echo hello")
    assert (ran.status, ran.out, ran.err) == (255, b"", "hatch: failed to wake vm; try again in 4 s\r\n")
    ran = await stage.run(*stage.argv("ssh", "-W", "127.0.0.1:80", "web@127.0.0.1", log="INFO"))
    assert "open failed: connect failed: failed to wake vm; try again in 4 s" in ran.err
    ran = await stage.run(*stage.argv("sftp", "-b", "-", "web@127.0.0.1"))
    assert "hatch: failed to wake vm" in ran.err


async def test_a_user_who_leaves_while_the_vm_wakes(stage: FrontStage) -> None:
    stage.gate.asleep.add(VM)
    child = await stage.start(*stage.argv("ssh", "web@127.0.0.1", "true"))
    await stage.gate.until_needed(1)
    child.kill()
    await child.communicate()
    await stage.gate.until_left(1)
    await stage.gate.until_released(VM)


async def test_an_unknown_vm(stage: FrontStage) -> None:
    ran = await stage.ssh("true", user="elsewhere")
    assert (ran.status, ran.err) == (255, 'hatch: no VM is called "elsewhere"\r\n')


async def test_an_unknown_key_learns_nothing(stage: FrontStage) -> None:
    for user in ("web", "elsewhere"):
        ran = await stage.ssh("true", user=user, key="stranger")
        assert (ran.status, ran.err) == (255, f"{user}@127.0.0.1: Permission denied (publickey).\r\n")
    assert not stage.gate.held_by


async def test_a_removed_key_is_refused_at_once(stage: FrontStage) -> None:
    assert (await stage.ssh("true")).status == 0
    stage.keys.known.clear()
    assert "Permission denied" in (await stage.ssh("true")).err


async def test_trying_one_key_after_the_other_is_ended(stage: FrontStage) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(12)]
    with pytest.raises(asyncssh.DisconnectError, match="too many keys were refused"):
        await asyncssh.connect(
            "127.0.0.1", stage.port, config=None, username="web", client_keys=keys, known_hosts=None, agent_path=None
        )


async def test_a_guest_that_does_not_know_the_house(stage: FrontStage) -> None:
    (stage.folder / "house").write_bytes((stage.folder / "stranger").read_bytes())
    front = stage.make_front()
    stage.port = await front.start("127.0.0.1", 0)
    ran = await stage.ssh("true", user="ann+web")
    sentence = 'the VM does not let this Hatch in as "ann": its authorized_keys lack the house key'
    assert (ran.status, ran.err) == (255, f"hatch: {sentence}\r\n")
    await front.close()
    assert not stage.gate.holds[VM]


async def test_a_guest_that_speaks_no_ssh(stage: FrontStage) -> None:
    async def mumble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(mumble, "127.0.0.1", 0)
    stage.gate.ports[VM, 22] = server.sockets[0].getsockname()[1]
    async with server:
        ran = await stage.ssh("true")
    assert (ran.status, ran.err) == (255, "hatch: the VM does not answer like an SSH server\r\n")


async def test_a_guest_that_refuses_sessions(stage: FrontStage) -> None:
    await stage.serve_guest()
    ran = await stage.ssh("true")
    assert (ran.status, ran.err) == (255, "hatch: the VM refused: Session refused\r\n")


async def test_a_guest_that_is_lost_and_comes_back(stage: FrontStage) -> None:
    """The session ends with a word, the user's connection stays, and its next session finds the VM again."""
    async with await _user(stage) as user:
        process = await user.create_process("echo ready; cat")
        assert await process.stdout.readline() == "ready\n"
        stage.lose_guests()
        done = await process.wait()
        assert (done.exit_status, done.stderr) == (255, "hatch: the connection to the VM is lost\r\n")
        await stage.gate.until_released(VM)
        assert (await user.run("echo again")).stdout == "again\n"
        assert stage.gate.needs == 2


async def test_a_user_whom_the_guest_listens_for_hears_that_it_is_lost(stage: FrontStage) -> None:
    async with await _user(stage) as user:
        await user.create_server(lambda host, port: False, "127.0.0.1", 0)
        stage.lose_guests()
        await user.wait_closed()


async def test_a_reader_that_stops_is_waited_for(stage: FrontStage) -> None:
    """The guest's command is stopped too, by windows and buffers that are full, and goes on when there is room."""
    async with await _user(stage) as user:
        total = 32 << 20
        process = await user.create_process(f"head -c {total} /dev/zero; echo sent >&2", encoding=None)
        process.stdout.channel.pause_reading()
        assert await _settled(stage) < total // 4
        process.stdout.channel.resume_reading()
        assert len(await process.stdout.read()) == total
        assert (await process.wait()).exit_status == 0


async def test_a_user_whose_windows_are_endless_is_waited_for_too(stage: FrontStage) -> None:
    """Such a client allows the front to send a gigabyte, and then takes nothing from its socket."""
    stalled, ended = asyncio.Event(), asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        front_reader, front_writer = await asyncio.open_connection("127.0.0.1", stage.port)
        upwards = tasks.spawn(_copy(reader, front_writer, asyncio.Event()), name="up")
        await _copy(front_reader, writer, stalled)
        await ended.wait()
        await tasks.cancel_and_wait(upwards)
        front_writer.transport.abort()
        writer.transport.abort()

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server, await _user(stage, server.sockets[0].getsockname()[1]) as user:
        total = 128 << 20
        process = await user.create_process(f"echo ready; head -c {total} /dev/zero", encoding=None, window=1 << 30)
        assert await process.stdout.readline() == b"ready\n"
        stalled.set()
        assert await _settled(stage) < total // 4
        ended.set()


async def test_closing_tells_everybody(stage: FrontStage) -> None:
    child = await stage.start(*stage.argv("ssh", "web@127.0.0.1", "echo ready; cat", log="INFO"))
    assert child.stdout
    assert await child.stdout.readline() == b"ready\n"
    await stage.front.close()
    _, err = await child.communicate()
    assert b"Hatch is shutting down" in err
    assert not stage.gate.holds[VM]


async def test_who_may_connect_at_all(stage: FrontStage) -> None:
    front = stage.make_front(allowed="10.0.0.0/8, ::1/128")
    stage.port = await front.start("127.0.0.1", 0)
    ran = await stage.ssh("true")
    assert (ran.status, "Connection closed" in ran.err or "reset" in ran.err) == (255, True)
    await front.close()


async def test_strangers_are_few(stage: FrontStage) -> None:
    """A flood of connections that never log in leaves no room for more of them, but for those who are in."""
    child = await stage.start(*stage.argv("ssh", "web@127.0.0.1", "echo ready; cat"))
    assert child.stdout
    assert await child.stdout.readline() == b"ready\n"
    flood = [await asyncio.open_connection("127.0.0.1", stage.port) for _ in range(40)]
    heads = [await reader.readline() for reader, _ in flood]
    assert heads.count(b"SSH-2.0-Hatch\r\n") == 32
    assert (await child.communicate(b"still here"))[0] == b"still here"
    for _, writer in flood:
        writer.close()
    while (await stage.ssh("true")).status:
        await asyncio.sleep(0)


async def test_keys_that_cannot_be_used(stage: FrontStage) -> None:
    (stage.folder / "house").write_text("nonsense")
    with pytest.raises(Unsupported, match="house is not a private SSH key"):
        stage.make_front()
    (stage.folder / "host").unlink()
    with pytest.raises(Unsupported):
        stage.make_front()


async def _settled(stage: FrontStage) -> int:
    """How much guests have sent, once they send no more."""
    seen = 0
    while not seen or seen != stage.sent_bytes:
        seen = stage.sent_bytes
        for _ in range(2000):
            await asyncio.sleep(0)
    return seen


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stop: asyncio.Event) -> None:
    while not stop.is_set() and (data := await reader.read(65536)):
        writer.write(data)
        await writer.drain()


async def _user(stage: FrontStage, port: int = 0) -> asyncssh.SSHClientConnection:
    return await asyncssh.connect(
        "127.0.0.1",
        port or stage.port,
        config=None,
        username="web",
        client_keys=[str(stage.folder / "user")],
        known_hosts=None,
        agent_path=None,
    )
