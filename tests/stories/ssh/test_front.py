"""OpenSSH's own programs through the SSH front: what they do to a guest directly, they do through it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatchvm.testing.edge.ssh_front import FrontStage


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[FrontStage]:
    async with FrontStage.open(tmp_path) as stage:
        yield stage


async def test_a_command_with_output_errors_and_exit_status(stage: FrontStage) -> None:
    ran = await stage.ssh("echo out; echo err >&2; exit 7")
    assert (ran.status, ran.out, ran.err) == (7, b"out\n", "err\n")
    assert stage.guest_users == ["root"]


async def test_the_end_of_input_reaches_the_command_and_its_answer_the_user(stage: FrontStage) -> None:
    ran = await stage.ssh("cat; echo end", feed=b"one\ntwo\n")
    assert (ran.status, ran.out) == (0, b"one\ntwo\nend\n")


async def test_bulk_arrives_whole_both_ways(stage: FrontStage) -> None:
    noise = os.urandom(20 << 20)
    ran = await stage.ssh("cat", feed=noise)
    assert ran.status == 0
    assert hashlib.sha256(ran.out).digest() == hashlib.sha256(noise).digest()


async def test_a_command_that_a_signal_ends(stage: FrontStage) -> None:
    ran = await stage.ssh("kill -TERM $$")
    assert ran.status == 255


async def test_what_the_client_sends_of_its_environment(stage: FrontStage) -> None:
    ran = await stage.ssh("-o", "SetEnv=LC_COLOUR=blau", "echo $LC_COLOUR")
    assert ran.out == b"blau\n"


async def test_another_login(stage: FrontStage) -> None:
    assert (await stage.ssh("echo hello", user="ann+web")).out == b"hello\n"
    assert stage.guest_users == ["ann"]


async def test_a_terminal_and_its_size(stage: FrontStage) -> None:
    master, slave = pty.openpty()
    _resize(slave, columns=80, rows=24)
    argv = stage.argv("ssh", "-tt", "-o", "EscapeChar=none", "web@127.0.0.1")
    child = await stage.start("env", "TERM=vt220", *argv, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    screen = asyncio.StreamReader()
    with os.fdopen(master, "r+b", buffering=0) as terminal:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(screen), terminal)
        assert await screen.readuntil(b"24") == b"vt220 80x24"
        _resize(master, columns=132, rows=50)
        child.send_signal(signal.SIGWINCH)
        await screen.readuntil(b"now 132x50")
        os.write(master, b"hello\n")
        await screen.readuntil(b"heard hello")
        os.write(master, b"exit\n")
        assert await child.wait() == 3
        transport.close()


async def test_sftp_and_scp(stage: FrontStage, tmp_path: Path) -> None:
    noise = os.urandom(3 << 20)
    (tmp_path / "noise").write_bytes(noise)
    there, back = tmp_path / "there", tmp_path / "back"
    batch = f"put {tmp_path / 'noise'} {there}\nget {there} {back}\n".encode()
    ran = await stage.run(*stage.argv("sftp", "-q", "-b", "-", "web@127.0.0.1"), feed=batch)
    assert (ran.status, ran.err) == (0, ""), ran.out
    assert back.read_bytes() == there.read_bytes() == noise
    # Its status would be that of the guest's SFTP server, and asyncssh's has none.
    await stage.run(*stage.argv("scp", "-q", str(tmp_path / "noise"), f"web@127.0.0.1:{tmp_path / 'copy'}"))
    assert (tmp_path / "copy").read_bytes() == noise


async def test_a_port_of_the_guest_and_one_that_is_closed(stage: FrontStage) -> None:
    server, port = await _shouting()
    async with server:
        ran = await stage.ssh("-W", f"127.0.0.1:{port}", feed=b"hello")
        assert (ran.status, ran.out) == (0, b"HELLO")
    argv = stage.argv("ssh", "-W", f"127.0.0.1:{_closed_port()}", "web@127.0.0.1", log="INFO")
    ran = await stage.run(*argv, feed=b"hello")
    assert ran.status == 255
    assert "open failed: connect failed" in ran.err


async def test_a_local_port_and_a_local_socket(stage: FrontStage, tmp_path: Path) -> None:
    server, port = await _shouting()
    async with server:
        mine = str(tmp_path / "mine")
        async with _tunnel(stage, "-L", f"{mine}:127.0.0.1:{port}"):
            assert [await _shout(mine) for _ in range(3)] == [b"HELLO"] * 3
    guests = str(tmp_path / "guests")
    server = await asyncio.start_unix_server(_answer_loudly, guests)
    async with server, _tunnel(stage, "-L", f"{mine}2:{guests}"):
        assert await _shout(f"{mine}2") == b"HELLO"


async def test_a_port_of_the_user_for_the_guest(stage: FrontStage, tmp_path: Path) -> None:
    server, port = await _shouting()
    async with server, _tunnel(stage, "-R", f"0:127.0.0.1:{port}") as child:
        assert child.stderr
        said = b""
        while not said.startswith(b"Allocated port"):
            said = await child.stderr.readline()
            assert said, "ssh ended"
        there = int(said.split()[2])
        assert [await _shout(there) for _ in range(3)] == [b"HELLO"] * 3


@contextlib.asynccontextmanager
async def _tunnel(stage: FrontStage, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`ssh` with these forwards, which it has set up before its command says so."""
    child = await stage.start(*stage.argv("ssh", *words, "web@127.0.0.1", "echo ready; cat", log="INFO"))
    assert child.stdin and child.stdout
    assert await child.stdout.readline() == b"ready\n"
    yield child
    child.stdin.close()
    assert await child.wait() == 0


async def _shouting() -> tuple[asyncio.Server, int]:
    server = await asyncio.start_server(_answer_loudly, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _answer_loudly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.close()


async def _shout(where: int | str) -> bytes:
    """What a port or socket answers to `hello` and the end of input."""
    opening = (
        asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection("127.0.0.1", where)
    )
    reader, writer = await opening
    writer.write(b"hello")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _resize(terminal: int, *, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
