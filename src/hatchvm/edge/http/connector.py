"""From a route to a connection into its guest: the slow path, with a wake in it if need be."""

from __future__ import annotations

import asyncio
import socket

from hatchvm.base import errors
from hatchvm.base.clock import Clock
from hatchvm.domain.route import Route
from hatchvm.edge.http.admission import Admission, Slot
from hatchvm.edge.http.h2.upstream import H2Upstream
from hatchvm.edge.http.limits import Limits
from hatchvm.edge.http.pool import Pool, Target
from hatchvm.edge.http.upstream import Upstream
from hatchvm.edge.reach import reach
from hatchvm.ports.gate import Gate


class Connector:
    """Makes and pools connections to guests."""

    def __init__(self, gate: Gate, limits: Limits, clock: Clock) -> None:
        self._gate = gate
        self._limits = limits
        self._now = clock.monotonic
        self._admission = Admission(slots=limits.fresh_slots)
        self._pool: Pool[Upstream] = Pool(per_target=limits.pooled_per_port)
        self._h2_pool: Pool[Upstream] = Pool(per_target=limits.pooled_per_port)
        self._pools = self._pool, self._h2_pool

    def pooled(self, target: Target, *, repeatable: bool, h2: bool = False) -> Upstream | None:
        """A connection that has served before. `repeatable`: if it proves dead, its request may be sent again.

        `h2`: one that speaks HTTP/2 to the guest.
        """
        max_idle_s = self._limits.pool_timeout_s if repeatable else self._limits.trusted_idle_s
        pool = self._h2_pool if h2 else self._pool
        return pool.take(target, self._now() - max_idle_s)

    def give_back(self, upstream: Upstream) -> None:
        upstream.user = None
        upstream.served = True
        upstream.pool.give(upstream, self._now())

    def forget(self, vm_id: str) -> None:
        for pool in self._pools:
            pool.forget(vm_id)

    def sweep(self) -> None:
        for pool in self._pools:
            pool.sweep(idle_since=self._now() - self._limits.pool_timeout_s)
        self._admission.sweep()

    def close(self) -> None:
        for pool in self._pools:
            pool.close()

    async def connect(self, route: Route, *, awake: bool, fresh: bool, by: str, h2: bool = False) -> Upstream:
        """A connection to the route's port, after a wake unless `awake`. `fresh`: one that has served nobody yet.

        `by`: the client's address, for who asks why the VM woke. `h2`: speak HTTP/2 to the guest.
        Raises HatchError with the sentence for the client.
        """
        limits, vm_id = self._limits, route.vm_id
        return await reach(
            lambda: self._gate.need(vm_id, reason="http", timeout_s=limits.wake_timeout_s, by=by),
            lambda: self._knock((vm_id, route.target_port), fresh=fresh, h2=h2),
            awake=awake,
        )

    async def _knock(self, target: Target, *, fresh: bool, h2: bool) -> Upstream:
        slot = await self._admission.enter(target)
        try:
            # Whoever had to queue may find that those before him have left their connections.
            if not fresh and (pooled := self.pooled(target, repeatable=False, h2=h2)):
                slot.leave()
                return pooled
            slot.leave_within(self._limits.fresh_slot_timeout_s, silence_s=self._limits.fresh_slot_silence_s)
            sock = await self._gate.dial(*target, timeout_s=self._limits.wake_timeout_s)
            return await self._wrap(sock, target, slot, h2=h2)
        except BaseException:
            slot.leave()
            raise

    async def _wrap(self, sock: socket.socket, target: Target, slot: Slot, *, h2: bool) -> Upstream:
        loop = asyncio.get_running_loop()
        made = H2Upstream(target, self._h2_pool, slot) if h2 else Upstream(target, self._pool, slot)
        if sock.family != socket.AF_UNIX:  # asyncio does so itself only for sockets made with the protocol's number
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            _, upstream = await loop.create_connection(lambda: made, sock=sock)
        except OSError as error:
            sock.close()
            raise errors.Upstream("upstream refused connection", detail=str(error)) from error
        except BaseException:
            sock.close()
            raise
        return upstream
