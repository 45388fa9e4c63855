"""From a login to its guest: the VM is held and woken, its port 22 dialled, and the house logs in with its own key.

One connection a login, made when the login succeeds and shared by its channels. If it breaks, the next channel makes
another one; while there is none, the VM is not held.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import asyncssh

from hatchvm.base import tasks
from hatchvm.base.errors import NotFound, Upstream, UpstreamTimeout
from hatchvm.edge.ssh.front.legs import Trunk
from hatchvm.edge.ssh.reach import reach_sshd
from hatchvm.ports.gate import Gate, Hold

#: How long a guest's SSH server, perhaps under emulation, may take for the key exchange and the login.
_GREETING_S: Final = 60.0
#: asyncssh seals an AES-GCM packet in one call and a ChaCha20 one in several: twice the bytes per second of CPU.
CIPHERS: Final = ("aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr")


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every link works with."""

    gate: Gate
    house_key: asyncssh.SSHKey
    wake_timeout_s: float


class Guest(asyncssh.SSHClient):
    """The connection to a guest's SSH server, and the hold that it has on the VM."""

    connection: asyncssh.SSHClientConnection

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.trunk = Trunk()
        self.open = False
        self.on_loss: Callable[[], None] = lambda: None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn
        self.open = True
        self.trunk.watch(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self.hold.release()
        self.on_loss()


class Link:
    """What one login has of its VM. `name`: what the user called it. `peer`: the user's address."""

    def __init__(self, means: Means, *, name: str, login: str, peer: str) -> None:
        self._means = means
        self._name = name
        self._login = login
        self._peer = peer
        self._opening: asyncio.Task[Guest] | None = None
        self._guest: Guest | None = None

    def begin(self) -> None:
        """Wake the VM, as somebody will want it in a moment."""
        self._opening = tasks.spawn(self._connect(), name="ssh link")
        # Whoever wants the guest awaits the outcome; there may be nobody.
        self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def guest(self) -> Guest:
        """The guest, connected. Raises HatchError with the sentence for the user."""
        if self._guest is not None and self._guest.open:
            return self._guest
        if self._opening is None or self._opening.done():
            self.begin()
        assert self._opening is not None
        return await asyncio.shield(self._opening)

    def touch(self) -> None:
        """Bytes flowed."""
        if self._guest is not None:
            self._guest.hold.touch()

    def close(self) -> None:
        """The user is gone. A wake under way goes on."""
        if self._opening is not None:
            self._opening.cancel()
        if self._guest is not None and self._guest.open:
            self._guest.connection.close()

    async def closed(self) -> None:
        """Return when nothing of it is left."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        if self._guest is not None:
            await self._guest.connection.wait_closed()

    async def _connect(self) -> Guest:
        vm_id = self._means.gate.find(self._name)
        if vm_id is None:
            raise NotFound(f'no VM is called "{self._name}"')
        means = self._means
        hold = means.gate.hold(vm_id, "ssh", self._peer)
        guest = Guest(hold)
        try:
            sock = await reach_sshd(means.gate, vm_id, peer=self._peer, timeout_s=means.wake_timeout_s)
            await self._greet(guest, sock)
        except BaseException:
            hold.release()
            raise
        self._guest = guest
        return guest

    async def _greet(self, guest: Guest, sock: socket.socket) -> None:
        """Log in to the guest's SSH server."""
        try:
            with _told(self._login):
                await asyncssh.run_client(sock, **self._manners(guest))
        finally:
            if not hasattr(guest, "connection"):
                sock.close()  # it never came to a transport, which would own it

    def _manners(self, guest: Guest) -> dict[str, object]:
        return {
            "config": None,
            "client_factory": lambda: guest,
            "username": self._login,
            "client_keys": [self._means.house_key],
            "agent_path": None,
            # The network between this host and its guests is this host's own: nobody can stand in the middle.
            "known_hosts": None,
            "preferred_auth": "publickey",
            "encryption_algs": CIPHERS,
            "compression_algs": None,
            "client_version": "Hatch",
            "connect_timeout": _GREETING_S,
            "login_timeout": _GREETING_S,
        }


@contextlib.contextmanager
def _told(login: str) -> Iterator[None]:
    """What went wrong in the guest, as a sentence for the user."""
    try:
        yield
    except asyncssh.PermissionDenied as error:
        sentence = f'the VM does not let this Hatch in as "{login}": its authorized_keys lack the house key'
        raise Upstream(sentence, detail=str(error)) from error
    except TimeoutError as error:
        raise UpstreamTimeout("the VM's SSH server did not answer in time") from error
    except (asyncssh.Error, OSError) as error:
        raise Upstream("the VM does not answer like an SSH server", detail=str(error)) from error
