"""The legs of a session: a shell, a command or a subsystem such as SFTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import asyncssh

from hatchvm.base import tasks
from hatchvm.base.errors import HatchError
from hatchvm.edge.ssh.farewell import sentence_of
from hatchvm.edge.ssh.front.legs import Leg, Trunk
from hatchvm.edge.ssh.front.link import Guest

#: SSH_EXTENDED_DATA_STDERR: RFC 4254, section 5.2.
_STDERR: Final = 1
#: What OpenSSH's own `ssh` ends with when it was not the command that failed.
_FAILED: Final = 255
_LOST: Final = "the connection to the VM is lost"

Signal = tuple[str, bool, str, str]


class GuestSession(Leg[asyncssh.SSHClientChannel[bytes]], asyncssh.SSHClientSession[bytes]):
    """The guest's end. How its command ended is told to the user after the last byte of its output."""

    status: int | None = None
    signal: Signal | None = None

    def exit_status_received(self, status: int) -> None:
        self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self.signal = (signal, core_dumped, msg, lang)


class UserSession(Leg[asyncssh.SSHServerChannel[bytes]], asyncssh.SSHServerSession[bytes]):
    """The user's end: it is accepted at once, and what goes wrong behind it is told on its stderr."""

    _guest: GuestSession | None = None

    def __init__(self, trunk: Trunk, touch: Callable[[], None], reach: Callable[[], Awaitable[Guest]]) -> None:
        super().__init__(trunk, touch)
        self._reach = reach

    def fail(self, sentence: str) -> None:
        if not self.channel.is_closing():
            self.channel.write(f"hatch: {sentence}\r\n".encode(), _STDERR)
        self.channel.exit(_FAILED)

    def part(self, error: Exception | None) -> None:
        guest = self._guest
        if guest is not None and guest.status is not None:
            self.channel.exit(guest.status)
        elif guest is not None and guest.signal is not None:
            self.channel.exit_with_signal(*guest.signal)
        elif error is not None:
            self.fail(_LOST)
        else:
            self.channel.close()

    # -- asyncssh.SSHServerSession

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: object) -> bool:
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        return True

    def session_started(self) -> None:
        tasks.supervise(self._open(), name="ssh session")

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._guest is not None:
            self._guest.channel.change_terminal_size(width, height, pixwidth, pixheight)

    def signal_received(self, signal: str) -> None:
        if self._guest is not None:
            self._guest.channel.send_signal(signal)

    def break_received(self, msec: int) -> bool:
        if self._guest is None:
            return False
        self._guest.channel.send_break(msec)
        return True

    async def _open(self) -> None:
        """Open the guest's end as the user asked for this one."""
        try:
            guest = await self._reach()
            size = self.channel.get_terminal_size()
            end = await self._ask(guest, size)
        except HatchError as error:
            self.fail(sentence_of(error))
        except asyncssh.Error as error:
            self.fail(f"the VM refused: {error.reason}")
        else:
            self._guest = end
            if self.channel.get_terminal_size() != size:
                end.channel.change_terminal_size(*self.channel.get_terminal_size())
            self.join(end)

    async def _ask(self, guest: Guest, size: tuple[int, int, int, int]) -> GuestSession:
        channel, end = self.channel, GuestSession(guest.trunk, self._touch)
        await guest.connection.create_session(
            lambda: end,
            command=channel.get_command(),
            subsystem=channel.get_subsystem(),
            env=list(channel.get_environment_bytes().items()),
            term_type=channel.get_terminal_type(),
            term_size=size,
            term_modes=channel.get_terminal_modes(),
            encoding=None,
        )
        return end
