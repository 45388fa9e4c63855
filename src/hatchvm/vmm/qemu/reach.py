"""Reaching a guest's ports through QEMU's user-mode network.

A host port on loopback forwards to a guest port. The forward's listener accepts at once, whether or not the guest does,
so a connection proves nothing: a closed guest port ends it without a byte, a booting guest leaves it hanging. QEMU does
know (`info usernet` lists `SYN_SENT` or `ESTABLISHED`), so until a port has accepted once, one connection at a time is
tried and proven; everybody else waits for that proof and then connects freely. A woken guest is asked for it again: now
and then the first packet after a wake is lost, and user-mode networking sends it once more only after six seconds.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import socket
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Exhausted, Unavailable, Upstream, UpstreamTimeout
from hatchvm.vmm.qemu.cmdline import NETDEV
from hatchvm.vmm.qemu.qmp import QMP

#: Outside Linux' usual ephemeral range, so that outgoing connections do not take a forward's port.
PORTS: Final = range(26001, 32768)
#: A guest that has not answered a SYN by then gets a fresh one; user-mode networking resends its own after seconds.
_ATTEMPT_S: Final = 0.3
#: Between two looks at `info usernet`.
_LOOK_S: Final = 0.005

_CONNECTION: Final = re.compile(r"TCP\[(?P<state>\w+)\]\s+-?\d+\s+127\.0\.0\.1\s+(?P<host>\d+)\s+\S+\s+(?P<guest>\d+)")


def free_ports(count: int, *, avoid: Collection[int] = ()) -> list[int]:
    """`count` loopback ports that nobody listens on now. Somebody may take one before QEMU does: be ready to retry.

    Raises Exhausted if there are not enough.
    """
    found: list[int] = []
    if not count:
        return found
    for port in random.sample(PORTS, len(PORTS)):
        if port not in avoid and is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise Exhausted(f"no free loopback port in {PORTS.start}..{PORTS.stop - 1} for the guest's network")


def is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def parse_usernet(text: str) -> Iterable[tuple[str, int, int]]:
    """(state, host port, guest port) of every TCP line of `info usernet`; forwards have state `HOST_FORWARD`."""
    for match in _CONNECTION.finditer(text):
        yield match["state"], int(match["host"]), int(match["guest"])


class Reach:
    """The forwards of one live VMM, and which guest ports have accepted."""

    def __init__(self, qmp: Callable[[], QMP], forwards: dict[int, int], accepted: Collection[int]) -> None:
        self._qmp = qmp
        self._forwards = forwards
        self._accepted = set(accepted)
        #: Ports that have accepted since this process started.
        self._proven: set[int] = set()
        self._proofs: dict[int, asyncio.Lock] = {}

    @property
    def accepted(self) -> frozenset[int]:
        """Guest ports that have accepted a connection: after a suspend and a wake they still will."""
        return frozenset(self._accepted)

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        """See `ports.vmm.Handle.dial`."""
        host_port = await self._forward(port)
        if port not in self._proven:
            async with self._proofs.setdefault(port, asyncio.Lock()):
                if port not in self._proven:
                    patience = patient_until if port not in self._accepted else 0.0
                    sock = await self._prove(port, host_port, patience, deadline)
                    self._proven.add(port)
                    self._accepted.add(port)
                    return sock
        return await _connect(host_port)

    async def _forward(self, port: int) -> int:
        if port not in self._forwards:
            host_port = free_ports(1, avoid=self._forwards.values())[0]
            refusal = await self._qmp().monitor(f"hostfwd_add {NETDEV} tcp:127.0.0.1:{host_port}-:{port}")
            if refusal.strip():
                raise Unavailable("no forward to the guest's port", detail=f"port {host_port} is taken")
            self._forwards[port] = host_port
        return self._forwards[port]

    async def _prove(self, port: int, host_port: int, patient_until: float, deadline: float) -> socket.socket:
        """Try until the guest accepts. A refusal proves that the guest is there: only then is patience asked for."""
        loop = asyncio.get_running_loop()
        while True:
            sock = await _connect(host_port)
            accepted = None
            try:
                accepted = await self._watch(sock, port, host_port, min(deadline, loop.time() + _ATTEMPT_S))
            finally:
                if not accepted:
                    sock.close()
            if accepted:
                return sock
            if accepted is None and loop.time() >= deadline:
                raise UpstreamTimeout("upstream timed out")
            if accepted is False and loop.time() >= min(patient_until, deadline):
                raise Upstream("upstream refused connection")
            await asyncio.sleep(_LOOK_S)

    async def _watch(self, sock: socket.socket, port: int, host_port: int, until: float) -> bool | None:
        """True: the guest accepted. False: it refused. None: no word by `until`."""
        loop = asyncio.get_running_loop()
        while True:
            if _ended(sock):
                return False
            lines = parse_usernet(await self._qmp().monitor("info usernet"))
            if ("ESTABLISHED", host_port, port) in lines:
                return True
            if loop.time() >= until:
                return None
            await asyncio.sleep(_LOOK_S)


async def _connect(host_port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", host_port))
    except OSError as error:
        sock.close()
        if error.errno == errno.ECONNREFUSED:
            raise Unavailable("the VMM is gone", detail=f"its forward on port {host_port} is closed") from error
        raise Exhausted("no connection to the guest", detail=repr(error)) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def ephemeral_ports_overlap() -> bool:
    """True if this host's outgoing connections may take ports that forwards use (a doctor's warning)."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    return low < PORTS.stop and high >= PORTS.start
