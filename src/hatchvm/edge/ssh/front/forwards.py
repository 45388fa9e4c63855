"""Forwarded ports and sockets: `ssh -L` and `-D` towards the guest, `ssh -R` from the guest to the user."""

from __future__ import annotations

import asyncssh

from hatchvm.base.errors import HatchError
from hatchvm.edge.ssh.farewell import sentence_of
from hatchvm.edge.ssh.front.legs import PortLeg, Trunk
from hatchvm.edge.ssh.front.link import Guest, Link


class Forwards:
    """What one user's connection forwards. A refusal of the guest's is the user's answer too."""

    def __init__(self, connection: asyncssh.SSHServerConnection, trunk: Trunk, link: Link) -> None:
        self._connection = connection
        self._trunk = trunk
        self._link = link

    async def to_port(self, host: str, port: int, orig_host: str, orig_port: int) -> PortLeg:
        """The user's leg of a connection that the guest makes. Raises ChannelOpenError with a sentence."""
        guest = await self._guest()
        end = self._leg(guest.trunk)
        await guest.connection.create_connection(lambda: end, host, port, orig_host, orig_port)
        return self._joined(end)

    async def to_socket(self, path: str) -> PortLeg:
        """The same to a Unix socket in the guest."""
        guest = await self._guest()
        end = self._leg(guest.trunk)
        await guest.connection.create_unix_connection(lambda: end, path)
        return self._joined(end)

    async def listen(self, host: str, port: int) -> asyncssh.SSHListener | None:
        """Let the guest listen for the user; None: it does not. A user who listens leaves when the guest is lost."""

        async def accept(orig_host: str, orig_port: int) -> PortLeg:
            end, own = self._leg(self._trunk), self._leg(guest.trunk)
            await self._connection.create_connection(lambda: end, host, listener.get_port(), orig_host, orig_port)
            own.expect(end)
            return own

        try:
            guest = await self._guest()
            listener = await guest.connection.create_server(accept, host, port)
        except asyncssh.Error:
            return None
        guest.on_loss = self._disconnect
        return listener

    async def _guest(self) -> Guest:
        try:
            return await self._link.guest()
        except HatchError as error:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, sentence_of(error)) from error

    def _leg(self, trunk: Trunk) -> PortLeg:
        return PortLeg(trunk, self._link.touch)

    def _joined(self, end: PortLeg) -> PortLeg:
        own = self._leg(self._trunk)
        own.expect(end)
        return own

    def _disconnect(self) -> None:
        self._connection.disconnect(asyncssh.DISC_CONNECTION_LOST, "the connection to the VM is lost")
