"""The SSH front between OpenSSH's own programs and a guest's SSH server, all on loopback."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncssh

from hatchvm.base import tasks
from hatchvm.edge.ssh.allow import parse
from hatchvm.edge.ssh.front.server import SSHFront
from hatchvm.testing.gate import FakeGate

VM: Final = "vm-000000000001"
_FRONT_USER: Final = "web"
#: Nothing of this machine's user takes part.
_ALONE: Final = (
    *("-F", "none", "-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
)


class FakeSSHKeys:
    """The fingerprints that may come in."""

    def __init__(self) -> None:
        self.known: set[str] = set()

    async def knows(self, fingerprint: str) -> bool:
        return fingerprint in self.known


class GuestServer(asyncssh.SSHServer):
    """A guest's SSH server: lets the house key in, and lets it do everything. Remembers who logged in."""

    def __init__(self, house_key: asyncssh.SSHKey, stage: FrontStage) -> None:
        self._house_key = house_key
        self._stage = stage

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._stage.guest_connections.append(conn)

    def begin_auth(self, username: str) -> bool:
        self._stage.guest_users.append(username)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._house_key.public_data

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True

    def unix_connection_requested(self, dest_path: str) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


async def _execute(process: asyncssh.SSHServerProcess[bytes], count: Callable[[int], None]) -> None:
    """Run a command. `count` hears how many bytes of its output were sent."""
    assert process.command
    environment = {name: value for name, value in process.env.items() if name.startswith("LC_")}
    child = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", process.command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment
    )
    assert child.stdin and child.stdout and child.stderr
    feeding = tasks.spawn(_feed(process.stdin, child.stdin), name="stdin")
    try:
        await asyncio.gather(_pump(child.stdout, process.stdout, count), _pump(child.stderr, process.stderr))
        status = await child.wait()
    finally:
        await tasks.cancel_and_wait(feeding)
        _let_go(child)
    if status < 0:
        process.exit_with_signal("TERM")
    else:
        process.exit(status)


def _let_go(child: asyncio.subprocess.Process) -> None:
    """Close what asyncio keeps of a process, which it does itself only some turns of its loop after the end: a test may
    be over before. One that still runs is killed, and awaited here: nobody else will."""
    transport = child._transport  # type: ignore[attr-defined]
    transport.close()
    transport.get_extra_info("subprocess").wait()


async def _pump(reader: Any, writer: Any, count: Callable[[int], None] = lambda size: None) -> None:
    """From one stream to another until it ends, or nobody reads the other."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
            count(len(data))


async def _feed(reader: Any, writer: asyncio.StreamWriter) -> None:
    await _pump(reader, writer)
    writer.close()


async def _tell(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """A shell that tells its terminal, every change of its size, every signal and every line."""
    columns, rows, *_ = process.term_size
    process.stdout.write(f"{process.term_type} {columns}x{rows}\n".encode())
    while True:
        try:
            line = await process.stdin.readline()
        except asyncssh.TerminalSizeChanged as change:
            process.stdout.write(f"now {change.width}x{change.height}\n".encode())
        except asyncssh.SignalReceived as signal:
            process.stdout.write(f"signal {signal.signal}\n".encode())
        else:
            process.stdout.write(b"heard " + line)
            if line.strip() in (b"", b"exit"):
                process.exit(3)
                return


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended."""

    status: int
    out: bytes
    err: str


class FrontStage:
    """One VM called `web` behind the front; users' private keys are files in `folder`: `user`, `stranger`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gate = FakeGate()
        self.keys = FakeSSHKeys()
        self.guest_users: list[str] = []
        self.guest_connections: list[asyncssh.SSHServerConnection] = []
        self.sent_bytes = 0
        self.port = 0
        self.front: SSHFront
        self._guests: list[asyncssh.SSHAcceptor] = []
        self._children: list[asyncio.subprocess.Process] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path) -> AsyncIterator[FrontStage]:
        stage = cls(folder)
        await stage._start()
        try:
            yield stage
        finally:
            await stage.front.close()
            for guest in stage._guests:
                guest.close()
                await guest.wait_closed()
            for child in stage._children:
                _let_go(child)
        assert not +stage.gate.holds, "a hold was never released"

    async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        await (_tell(process) if process.command is None else _execute(process, self._count))

    def _count(self, size: int) -> None:
        self.sent_bytes += size

    async def _start(self) -> None:
        keys = {name: self._key(name) for name in ("user", "stranger", "house", "host")}
        self.keys.known.add(keys["user"].get_fingerprint())
        self.gate.names["web"] = VM
        await self.serve_guest(process_factory=self._run, sftp_factory=True)
        self.front = self.make_front()
        self.port = await self.front.start("127.0.0.1", 0)

    async def serve_guest(self, **options: Any) -> None:
        """Let the VM's port 22 be an SSH server that does what `options` say."""
        house = asyncssh.read_private_key(self.folder / "house")
        acceptor = await asyncssh.listen(
            "127.0.0.1",
            0,
            config=None,
            server_factory=lambda: GuestServer(house, self),
            server_host_keys=[self._key("guest")],
            encoding=None,
            line_editor=False,
            **options,
        )
        self._guests.append(acceptor)
        self.gate.ports[VM, 22] = acceptor.get_port()

    def lose_guests(self) -> None:
        """As if the VM's process had ended."""
        for connection in self.guest_connections:
            connection.abort()
        self.guest_connections.clear()

    def make_front(self, allowed: str = "127.0.0.0/8") -> SSHFront:
        return SSHFront(
            self.gate,
            self.keys,
            house_key=self.folder / "house",
            host_key=self.folder / "host",
            allowed=parse(allowed),
            wake_timeout_s=30,
        )

    def argv(self, program: str, *words: str, key: str = "user", log: str = "ERROR") -> list[str]:
        """The command line of `ssh`, `scp` or `sftp`, with this stage's port, a key and a level of messages."""
        flag = "-p" if program == "ssh" else "-P"
        own = ("-o", f"LogLevel={log}", "-i", str(self.folder / key), flag, str(self.port))
        return [program, *_ALONE, *own, *words]

    async def start(self, *argv: str, **streams: Any) -> asyncio.subprocess.Process:
        """Start a program with pipes, or with the streams given."""
        child = await asyncio.create_subprocess_exec(
            *argv, **{"stdin": PIPE, "stdout": PIPE, "stderr": PIPE, **streams}
        )
        self._children.append(child)
        return child

    async def run(self, *argv: str, feed: bytes = b"") -> Ran:
        """Run a program to its end; its standard input ends after `feed`."""
        child = await self.start(*argv)
        out, err = await child.communicate(feed)
        assert child.returncode is not None
        return Ran(child.returncode, out, err.decode())

    async def ssh(self, *words: str, user: str = _FRONT_USER, key: str = "user", feed: bytes = b"") -> Ran:
        """`ssh user@front words`."""
        return await self.run(*self.argv("ssh", f"{user}@127.0.0.1", *words, key=key), feed=feed)

    def _key(self, name: str) -> asyncssh.SSHKey:
        key = asyncssh.generate_private_key("ssh-ed25519")
        path = self.folder / name
        path.write_bytes(key.export_private_key())
        path.chmod(0o600)
        return key
