"""The bridge network: a `Network` of TAPs on a bridge of this host, filtered, with DHCP and a way out.

Bridge, filter and dnsmasq outlive the daemon, and are the same for all guests. A guest's own part is its *seat*: a line
for dnsmasq, an element of the filter's sets, a neighbour of the bridge. It is put into place before the guest first
starts, stays while the guest sleeps, and goes when the VM is deleted. Its TAP is not persistent: the kernel removes it
with the VMM, so no crash of anything can leave one behind.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import platform
import re
import shutil
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Unavailable, Unsupported
from hatchvm.domain.addressing import check_bridge
from hatchvm.net.bridge import links, programs, rules
from hatchvm.net.bridge.dhcp import DHCP
from hatchvm.net.bridge.dialling import dial
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.net.bridge.nest import Arrive, TapNest
from hatchvm.net.bridge.settings import Bridge
from hatchvm.ports.network import Seat
from hatchvm.ports.vmm import Handle, Nest

T = TypeVar("T")

#: The first Linux whose bridge can hold a port to the guest's own hardware address.
_LINUX: Final = (5, 18)
_CAP_NET_ADMIN, _CAP_NET_RAW, _CAP_SYS_ADMIN = 12, 13, 21
#: How long a TAP may still be held by a VMM that is on its way out, and a new one take to come up.
_HELD_S: Final = 2.0
_LOOK_S: Final = 0.01
_HELD: Final = "is still held by its former VMM"


class BridgeNetwork:
    """One Hatch's bridge. Whoever has `open`ed it owns it until `close`, or the end of the process."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.namespace = Namespace(bridge.netns)
        self._dhcp = DHCP(bridge, self.namespace)
        self._seats: dict[str, Seat] = {}
        #: Seats and dnsmasq are changed by one at a time.
        self._turn = asyncio.Lock()
        self._owned: int | None = None

    async def check(self) -> str:
        if not _may(_CAP_NET_ADMIN, _CAP_NET_RAW, *([_CAP_SYS_ADMIN] if self.bridge.netns else [])):
            raise Unsupported("a bridge needs root (CAP_NET_ADMIN); run Hatch as root, or set HATCH_NETWORK=user")
        if not Path("/dev/net/tun").exists():
            raise Unsupported("a bridge needs /dev/net/tun; load the kernel module: modprobe tun")
        if _linux() < _LINUX:
            raise Unsupported(f"a bridge needs Linux {_LINUX[0]}.{_LINUX[1]} or newer, this is {platform.release()}")
        for program in ("nft", "dnsmasq", *(["ip"] if self.bridge.netns else [])):
            programs.find(program)
        return f"{self.bridge.where}, {self.bridge.cidr}"

    async def open(self) -> None:
        async with self._turn:
            await asyncio.to_thread(self._own)
            self._seats = {str(seat.tap_name): seat for seat in await asyncio.to_thread(self._set_up)}

    async def attach(self, seat: Seat) -> int | None:
        await self._expect(seat)
        return await self._when(lambda: self._tap(seat), seat, instead=_HELD)

    async def nest(self, seat: Seat) -> Nest:
        await self._expect(seat)
        return TapNest(str(seat.tap_name), self.namespace, lambda arrive: self._welcome(seat, arrive))

    async def forget(self, seat: Seat) -> None:
        async with self._turn:
            await self._inside(self._without, seat)
            self._seats.pop(str(seat.tap_name), None)

    async def sweep(self, known: Collection[Seat]) -> None:
        """Raises Conflict if one of `known` has an address that is not in the bridge's network."""
        check_bridge(self.bridge.cidr, {seat.vm_id: seat.guest_ip for seat in known})
        async with self._turn:
            await self._inside(self._exactly, known)
            self._seats = {str(seat.tap_name): seat for seat in known}

    async def dial(
        self, seat: Seat, handle: Handle, port: int, *, patient_until: float, deadline: float
    ) -> socket.socket:
        return await dial(self.new_socket, seat.guest_ip, port, patient_until=patient_until, deadline=deadline)

    def new_socket(self) -> socket.socket:
        """A non-blocking TCP socket in the bridge's namespace."""
        with self.namespace.inside():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    async def admit(self, seat: Seat) -> None:
        """Give the guest its seat. May be repeated."""
        check_bridge(self.bridge.cidr, {seat.vm_id: seat.guest_ip})
        async with self._turn:
            await self._inside(self._with, seat)
            self._seats[str(seat.tap_name)] = seat

    def close(self) -> None:
        """Own it no longer; everything stays as it is."""
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None

    async def remove(self) -> None:
        """Leave nothing behind: bridge, filter, dnsmasq, and a namespace of that name with its last bridge.

        Raises Conflict while guests are plugged in or another Hatch owns it.
        """
        async with self._turn:
            await asyncio.to_thread(self._own)
            await asyncio.to_thread(self._tear_down)
            self._seats = {}
        self.close()

    async def _expect(self, seat: Seat) -> None:
        """The guest starts: it has its seat, and somebody to ask for its address."""
        if self._seats.get(str(seat.tap_name)) != seat:
            await self.admit(seat)
        if self._dhcp.pid() is None:
            async with self._turn:
                await self._inside(self._serve)

    async def _when(self, take: Callable[[], Awaitable[T | None]], seat: Seat, *, instead: str) -> T:
        """What `take` gives, as soon as it gives something. Raises Unavailable, saying what happens `instead`."""
        until = asyncio.get_running_loop().time() + _HELD_S
        while (taken := await take()) is None:
            if asyncio.get_running_loop().time() >= until:
                raise Unavailable(f"the VM's network card {instead}", detail=str(seat.tap_name))
            await asyncio.sleep(_LOOK_S)
        return taken

    async def _welcome(self, seat: Seat, arrive: Arrive) -> None:
        """Plug in the TAP that arrives. A guest may be dialled at once: its first packet must not be lost."""
        await self._when(arrive, seat, instead=_HELD)
        await self._inside(self._connect, seat)
        await self._when(lambda: self._inside(self._through, seat), seat, instead="does not come up; start it again")

    async def _tap(self, seat: Seat) -> int | None:
        """As `_plugged`; a cancellation leaves no descriptor behind."""
        work = tasks.spawn(self._inside(self._plugged, seat), name=f"plug in {seat.tap_name}")
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(_close_result)
            raise

    async def _inside(self, work: Callable[..., T], *args: object) -> T:
        """`work` in a thread that is in the bridge's namespace."""

        def entered() -> T:
            with self.namespace.inside():
                return work(*args)

        try:
            return await asyncio.to_thread(entered)
        except OSError as error:
            raise Unavailable("the guests' network does not work; restart Hatch", detail=repr(error)) from error

    def _own(self) -> None:
        if self._owned is not None:
            return
        try:
            self._dhcp.prepare()
            fd = os.open(self.bridge.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Unavailable(f"{self.bridge.folder} cannot be written to", detail=repr(error)) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise Conflict(f"another Hatch uses the {self.bridge.where}; choose a HATCH_BRIDGE_NAME") from error
        self._owned = fd

    def _set_up(self) -> list[Seat]:
        """The filter comes before the address: there is no moment in which guests can do more than they may."""
        self.namespace.make()
        with self.namespace.inside():
            made = links.make_bridge(self.bridge.name)
            seats = list(self._dhcp.seats())
            self._filter(rules.ruleset(self.bridge, seats))
            changed = links.address_bridge(self.bridge.name, self.bridge.cidr) or made
            for setting, value in _settings(self.bridge).items():
                self.namespace.set(setting, value)
            if changed or self._dhcp.pid() is None:
                self._dhcp.start()
        return seats

    def _tear_down(self) -> None:
        if self.namespace.is_there():
            with self.namespace.inside():
                links.remove_bridge(self.bridge.name)
                self._dhcp.end()
                self._filter(rules.removal(self.bridge))
        shutil.rmtree(self.bridge.folder, ignore_errors=True)
        if not list(self.bridge.run.glob(f"{self.bridge.netns}@*")):
            self.namespace.remove()

    def _serve(self) -> None:
        if self._dhcp.pid() is None:
            self._dhcp.start()

    def _plugged(self, seat: Seat) -> int | None:
        """A descriptor of the guest's TAP, plugged in; None if one of that name is still in use."""
        tap = links.open_tap(str(seat.tap_name))
        if tap is None:
            return None
        try:
            self._connect(seat)
        except BaseException:
            os.close(tap)
            raise
        return tap

    def _connect(self, seat: Seat) -> None:
        name = str(seat.tap_name)
        self.namespace.set(f"ipv6/conf/{name}/disable_ipv6", "1")
        links.plug(self.bridge.name, name, seat)

    def _through(self, seat: Seat) -> Literal[True] | None:
        """The bridge itself comes up after its first guest."""
        return True if links.is_through(str(seat.tap_name)) and links.is_through(self.bridge.name) else None

    def _with(self, seat: Seat) -> None:
        self._dhcp.add(seat)
        self._refilter(rules.seat(self.bridge, seat, "add"))

    def _without(self, seat: Seat) -> None:
        self._dhcp.remove([seat])
        self._refilter(rules.seat(self.bridge, seat, "delete"))
        links.forget_neighbour(self.bridge.name, seat)

    def _exactly(self, known: Collection[Seat]) -> None:
        had = {seat.tap_name: seat for seat in self._dhcp.seats()}
        wanted = {seat.tap_name: seat for seat in known}
        self._dhcp.remove([seat for name, seat in had.items() if seat != wanted.get(name)])
        for name, seat in wanted.items():
            if seat != had.get(name):
                self._dhcp.add(seat)
        self._filter(rules.ruleset(self.bridge, known))
        links.put_neighbours(self.bridge.name, known)

    def _refilter(self, change: Sequence[rules.Command]) -> None:
        """Change the filter; if it cannot be changed, because somebody flushed all rules, put all of it back."""
        try:
            self._filter(change)
        except Unavailable:
            self._filter(rules.ruleset(self.bridge, self._dhcp.seats()))

    def _filter(self, commands: Sequence[rules.Command]) -> None:
        programs.run("nft", "-j", "-f", "-", text=json.dumps({"nftables": commands}))


def _settings(bridge: Bridge) -> Mapping[str, str]:
    """Of the kernel. `proxy_arp_pvlan`: the host stands in for every guest, so that what guests send one another comes
    to the filter, which refuses it or not. Redirects would use up the few ICMP messages a guest gets in a second, and
    the refusals with them; they end only where they are off for all devices, which is not Hatch's to say for the host.
    """
    name = bridge.name
    return {
        f"ipv6/conf/{name}/disable_ipv6": "1",
        f"ipv4/conf/{name}/route_localnet": "0",
        f"ipv4/conf/{name}/rp_filter": "1",
        f"ipv4/conf/{name}/proxy_arp_pvlan": "1",
        f"ipv4/neigh/{name}/proxy_delay": "0",
        f"ipv4/conf/{name}/send_redirects": "0",
        **({"ipv4/conf/all/send_redirects": "0"} if bridge.netns else {}),
        "ipv4/ip_forward": "1",
    }


def _may(*capabilities: int) -> bool:
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> capability & 1 for capability in capabilities)


def _linux() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])


def _close_result(work: asyncio.Task[int | None]) -> None:
    if not work.cancelled() and work.exception() is None and (tap := work.result()) is not None:
        os.close(tap)
