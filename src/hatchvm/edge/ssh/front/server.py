"""The SSH front: one port that leads to every VM, `ssh <vm>@host`, for users whose keys Hatch knows.

Only for a configured address: importing asyncssh takes most of a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import asyncssh
import structlog

from hatchvm.base.errors import Unsupported
from hatchvm.edge.ssh.allow import Network, admits
from hatchvm.edge.ssh.front.link import CIPHERS, Means
from hatchvm.edge.ssh.front.login import Login
from hatchvm.ports.gate import Gate
from hatchvm.ports.identity import SSHKeys
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: Connections at once, and how many of them may be strangers yet: in all, and from one address.
_MAX_LOGINS: Final = 4096
_MAX_STRANGERS: Final = 256
_MAX_STRANGERS_OF_A_PEER: Final = 32
_LOGIN_TIMEOUT_S: Final = 30.0
#: A peer that has been silent for a minute is asked whether it lives, four times in as many minutes.
_KEEPALIVE_S: Final = 60.0
_KEEPALIVES: Final = 4
#: A flood of refused connections is told once in a while.
_REFUSAL_LOG_S: Final = 10.0
_BACKLOG: Final = 1024


class SSHFront:
    """Start it once, close it once. `allowed`: who may connect at all; `house_key`, `host_key`: private key files."""

    def __init__(
        self,
        gate: Gate,
        keys: SSHKeys,
        *,
        house_key: Path,
        host_key: Path,
        allowed: Sequence[Network],
        wake_timeout_s: float,
    ) -> None:
        """Raises Unsupported, naming the file, for a key that cannot be used."""
        self.keys = keys
        self.means = Means(gate=gate, house_key=_read(house_key), wake_timeout_s=wake_timeout_s)
        self._host_key = _read(host_key)
        self._allowed = allowed
        self._logins: set[Login] = set()
        self._strangers: Counter[str] = Counter()
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._told_at = -_REFUSAL_LOG_S
        # What it says at `info` holds users' command lines.
        logging.getLogger("asyncssh").setLevel(logging.WARNING)

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which the system chose if `port` is 0. Raises OSError if it is taken."""
        self._acceptor = await asyncssh.listen(
            host,
            port,
            config=None,
            backlog=_BACKLOG,
            server_factory=lambda: Login(self),
            server_host_keys=[self._host_key],
            server_version="Hatch",
            encryption_algs=CIPHERS,
            compression_algs=None,
            encoding=None,
            line_editor=False,
            agent_forwarding=False,
            login_timeout=_LOGIN_TIMEOUT_S,
            keepalive_interval=_KEEPALIVE_S,
            keepalive_count_max=_KEEPALIVES,
        )
        bound = self._acceptor.get_port()
        _log.info(logs.SSH_FRONT_STARTED, port=bound)
        return bound

    async def close(self) -> None:
        """Stop listening and disconnect everybody, saying why."""
        if self._acceptor is None:
            return
        self._acceptor.close()
        logins = list(self._logins)
        for login in logins:
            login.end("Hatch is shutting down")
        await asyncio.gather(*(login.ended() for login in logins))

    # -- login.Office

    def arrived(self, login: Login) -> bool:
        if not admits(self._allowed, login.peer):
            return self._refuse(login, "not in HATCH_SSH_ALLOWED_CIDR")
        crowded = len(self._logins) >= _MAX_LOGINS or self._strangers.total() >= _MAX_STRANGERS
        if crowded or self._strangers[login.peer] >= _MAX_STRANGERS_OF_A_PEER:
            return self._refuse(login, "too many connections")
        self._logins.add(login)
        self._strangers[login.peer] += 1
        return True

    def trusted(self, login: Login) -> None:
        self._strangers[login.peer] -= 1
        if not self._strangers[login.peer]:
            del self._strangers[login.peer]

    def left(self, login: Login) -> None:
        self._logins.discard(login)

    def _refuse(self, login: Login, reason: str) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._told_at >= _REFUSAL_LOG_S:
            self._told_at = now
            _log.warning(logs.SSH_LOGIN_REFUSED, peer=login.peer, reason=reason)
        return False


def _read(path: Path) -> asyncssh.SSHKey:
    try:
        return asyncssh.read_private_key(path)
    except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise Unsupported(f"{path} is not a private SSH key that can be read", detail=str(error)) from error
