"""One user's SSH connection: who it is, which VM, and what is asked of it.

Only public keys are accepted. Before a key is, every VM name is as good as any other: nothing can be learnt by trying.
Afterwards the VM is looked up and woken, and each channel is carried into it. Agents and X11 are not forwarded.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final, Literal, Protocol

import asyncssh
import structlog

from hatchvm.base import tasks
from hatchvm.edge.ssh.front.forwards import Forwards
from hatchvm.edge.ssh.front.legs import PortLeg, Trunk
from hatchvm.edge.ssh.front.link import Link, Means
from hatchvm.edge.ssh.front.sessions import UserSession
from hatchvm.ports.identity import SSHKeys
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: More than the keys in most agents, which are tried one by one.
MAX_REFUSED_KEYS: Final = 10
_MAX_CHANNELS: Final = 512
_ROOT: Final = "root"


class Office(Protocol):
    """The front, as its logins see it."""

    @property
    def means(self) -> Means: ...

    @property
    def keys(self) -> SSHKeys: ...

    def arrived(self, login: Login) -> bool:
        """Count it in, as a stranger; False: it may not stay."""

    def trusted(self, login: Login) -> None:
        """It is no stranger any more: its key is good, or it has left."""

    def left(self, login: Login) -> None:
        """Nothing of it is left."""


def split_user(user: str) -> tuple[str, str]:
    """`web` is root's login at the VM web, `ann+web` is Ann's: (login, VM)."""
    login, _, vm = user.rpartition("+")
    return login or _ROOT, vm.lower()


class Login(asyncssh.SSHServer):
    """See the module. asyncssh makes one for each connection."""

    connection: asyncssh.SSHServerConnection

    def __init__(self, office: Office) -> None:
        self.peer = ""
        self._office = office
        self._stranger = False
        self._trunk = Trunk()
        self._link: Link | None = None
        self._forwards: Forwards | None = None
        self._refused = 0
        self._fingerprint = ""

    def end(self, sentence: str) -> None:
        """Disconnect, saying why. Sessions are told too: `ssh` is gone with its session, before it reads the rest."""
        for leg in list(self._trunk.legs):
            leg.fail(sentence)
        self.connection.disconnect(asyncssh.DISC_BY_APPLICATION, sentence)

    async def ended(self) -> None:
        """Return when both connections are closed, the user's and the guest's."""
        await self.connection.wait_closed()
        if self._link is not None:
            await self._link.closed()

    # -- asyncssh.SSHServer

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self.peer = str(conn.get_extra_info("peername", ("",))[0])
        self._stranger = self._office.arrived(self)
        if self._stranger:
            self._trunk.watch(conn)
        else:
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._welcome()
        if self._link is not None:
            self._link.close()
        tasks.supervise(self._leave(), name="ssh login ends")

    def begin_auth(self, username: str) -> bool:
        """True: everybody must show a key."""
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        fingerprint = key.get_fingerprint()
        if await self._office.keys.knows(fingerprint):
            self._fingerprint = fingerprint
            return True
        self._refused += 1
        if self._refused == MAX_REFUSED_KEYS:
            _log.warning(logs.SSH_LOGIN_REFUSED, peer=self.peer, reason="too many keys")
            reason = "too many keys were refused: name the right one with -i and -o IdentitiesOnly=yes"
            self.connection.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, reason)
        return False

    def auth_completed(self) -> None:
        self._welcome()
        login, name = split_user(str(self.connection.get_extra_info("username")))
        _log.info(logs.SSH_LOGIN, peer=self.peer, vm=name, login=login, key=self._fingerprint)
        self._link = Link(self._office.means, name=name, login=login, peer=self.peer)
        self._link.begin()
        self._forwards = Forwards(self.connection, self._trunk, self._link)

    def session_requested(self) -> UserSession | bool:
        link = self._link
        return False if link is None or self._crowded() else UserSession(self._trunk, link.touch, link.guest)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Awaitable[PortLeg] | Literal[False]:
        if self._forwards is None or self._crowded():
            return False
        return self._forwards.to_port(dest_host, dest_port, orig_host, orig_port)

    def unix_connection_requested(self, dest_path: str) -> Awaitable[PortLeg] | Literal[False]:
        if self._forwards is None or self._crowded():
            return False
        return self._forwards.to_socket(dest_path)

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener | Literal[False]:
        listener = None if self._forwards is None else await self._forwards.listen(listen_host, listen_port)
        return listener or False

    async def _leave(self) -> None:
        await self.ended()
        self._office.left(self)

    def _welcome(self) -> None:
        if self._stranger:
            self._stranger = False
            self._office.trusted(self)

    def _crowded(self) -> bool:
        return len(self._trunk.legs) >= _MAX_CHANNELS
