"""Opening a TCP connection to a guest that may still be booting, or has just woken."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final

from hatchvm.base.errors import Exhausted, Upstream, UpstreamTimeout

#: A guest that has not answered a SYN by then gets a fresh one; the kernel resends its own after a second only. A guest
#: that is slow to answer has more time each turn.
_ATTEMPTS_S: Final = (0.3, 0.6, 1.2)
_PAUSE_S: Final = 0.01
_SILENT: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})


async def dial(
    new_socket: Callable[[], socket.socket], address: str, port: int, *, patient_until: float, deadline: float
) -> socket.socket:
    """See `ports.network.Network.dial`. `new_socket` makes a non-blocking TCP socket."""
    loop = asyncio.get_running_loop()
    turn = 0
    while True:
        attempt_s = _ATTEMPTS_S[min(turn, len(_ATTEMPTS_S) - 1)]
        sock, refused = new_socket(), False
        try:
            async with asyncio.timeout_at(min(deadline, loop.time() + attempt_s)):
                await loop.sock_connect(sock, (address, port))
            return sock
        except TimeoutError:
            sock.close()
            turn += 1
        except OSError as error:
            sock.close()
            refused = error.errno == errno.ECONNREFUSED
            if not refused and error.errno not in _SILENT:
                raise Exhausted("no connection to the guest", detail=repr(error)) from error
        except BaseException:
            sock.close()
            raise
        if refused and loop.time() >= min(patient_until, deadline):
            raise Upstream("upstream refused connection")
        if loop.time() >= deadline:
            raise UpstreamTimeout("upstream timed out")
        await asyncio.sleep(_PAUSE_S)
