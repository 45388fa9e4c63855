"""A guest's memory served by page faults, for VMMs that take a userfaultfd: beside FUSE, over the same memory.

A VMM connects once, and sends how it has mapped the memory together with its userfaultfd; `faults` does the rest. A
page that cannot be had ends the VMM: a guest cannot be told, and must neither wait for ever nor run on with something
else. One is served after the other: the first may end before its guest has run, and another is tried.

The socket is the pager's user's, mode 0600, in a folder that only he can enter. A jailed VMM may connect because the
socket is given to its user, as the VM's other files are: nobody but this VM's VMM can. And whatever a taken-over one
sends, it only gets to see the memory that is its guest's own, and can only have itself ended.
"""

from __future__ import annotations

import array
import errno
import os
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from typing import Final

from hatchvm.base.errors import Exhausted, HatchError, Invalid, Unavailable
from hatchvm.pager import regions, uffd
from hatchvm.pager.faults import Faults
from hatchvm.pager.install import GoneError
from hatchvm.pager.memory import Memory
from hatchvm.pager.regions import Layout
from hatchvm.pager.volume import Numbers

_MAX_MESSAGE: Final = 64 * 1024
#: One is expected; more are only taken to be closed.
_MAX_FDS: Final = 8
_HANDSHAKE_S: Final = 10.0
_CREDENTIALS: Final = struct.Struct("3i")


class Front:
    """Serves `memory` to those who connect to `listener`. `order`: blocks, those that are needed first."""

    def __init__(self, listener: socket.socket, memory: Memory, order: Numbers) -> None:
        self._listener = listener
        self._memory = memory
        self._order = order
        self._faults: Faults | None = None
        #: Why a VMM was ended; there is none after it.
        self.failed: HatchError | None = None

    def begin(self) -> None:
        threading.Thread(target=self._serve, name="faults", daemon=True).start()

    def nudge(self) -> None:
        """Something has arrived in the memory's file. From any thread."""
        if self._faults is not None:
            self._faults.nudge()

    def asked(self) -> list[int]:
        """See `Faults.asked`."""
        return self._faults.asked() if self._faults is not None else []

    def _serve(self) -> None:
        with self._listener:
            while self.failed is None:
                connection, _ = self._listener.accept()
                with connection, suppress(ProcessLookupError):
                    self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        vmm = _peer(connection)
        try:
            connection.settimeout(_HANDSHAKE_S)
            layout, fd = receive(connection, self._memory.size)
            self._faults = Faults(fd, connection, layout, self._memory, self._order)
            self._faults.run()
        except GoneError:
            return
        except (HatchError, OSError) as error:
            self.failed = _reason(error)
            print(f"{self.failed}: {self.failed.detail}", file=sys.stderr, flush=True)
            signal.pidfd_send_signal(vmm, signal.SIGKILL)
        finally:
            os.close(vmm)


def receive(connection: socket.socket, size: int) -> tuple[Layout, int]:
    """The layout of a memory of `size` bytes, and the userfaultfd. Raises Invalid, GoneError."""
    descriptors = array.array("i")
    try:
        message, ancillary, _, _ = connection.recvmsg(
            _MAX_MESSAGE, socket.CMSG_SPACE(_MAX_FDS * descriptors.itemsize), socket.MSG_CMSG_CLOEXEC
        )
    except OSError as error:
        raise Invalid("the VMM said nothing about the guest's memory", detail=repr(error)) from error
    for _, kind, data in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) // descriptors.itemsize * descriptors.itemsize])
    try:
        if not message:
            raise GoneError
        layout = regions.parse(message, size)
        if len(descriptors) != 1 or not uffd.is_one(descriptors[0]):
            raise Invalid("the VMM did not send the one userfaultfd that serves the guest's memory")
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
    os.set_blocking(descriptors[0], False)
    return layout, descriptors[0]


def _peer(connection: socket.socket) -> int:
    """The process at the other end, as a pidfd: it cannot be mistaken for another once it has ended.

    Raises ProcessLookupError if it has already.
    """
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return os.pidfd_open(_CREDENTIALS.unpack(credentials)[0])


def _reason(error: HatchError | OSError) -> HatchError:
    if isinstance(error, HatchError):
        return error
    if error.errno == errno.ENOMEM:
        return Exhausted("this host has no memory for a page of the guest", detail=repr(error))
    return Unavailable(f"a page of the guest's memory could not be served: {error.strerror}", detail=repr(error))
