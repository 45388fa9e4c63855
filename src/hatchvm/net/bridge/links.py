"""The bridge, and what is plugged into it, over netlink. Everything here blocks for a moment and acts in the namespace
of the calling thread.

pyroute2 knows the messages. `plug` is part of every wake, so it sends them by itself, all at once, which takes 1.5 ms
in place of 5. pyroute2 takes half a second to import: who has no bridge must not import this.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Interface
from typing import Any, Final

from pyroute2 import IPRoute, NetlinkError
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NLMSG_ERROR, nlmsg
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_NEWLINK, RTM_NEWNEIGH
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.domain.addressing import bridge_mac
from hatchvm.ports.network import Seat

_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_AF_BRIDGE: Final = 7
_NTF_MASTER: Final = 4
#: NUD_NOARP and NUD_PERMANENT: how the bridge's forwarding table and the neighbour table call what never ages. In the
#: former, "permanent" would mean: an address of the bridge itself.
_STATIC, _PERMANENT = 0x40, 0x80
#: Messages in one go. The kernel drops answers for which a socket has no room; hundreds fit.
_BATCH: Final = 64
#: Of a bridge port. A guest's frames go to this host only, and only those from its own hardware address; nothing that
#: is meant for another comes to it. What the host broadcasts does: some DHCP clients want to be answered so.
_PORT: Final = {
    "IFLA_BRPORT_ISOLATED": 1,
    "IFLA_BRPORT_LOCKED": 1,
    "IFLA_BRPORT_LEARNING": 0,
    "IFLA_BRPORT_UNICAST_FLOOD": 0,
    "IFLA_BRPORT_MCAST_FLOOD": 0,
}


def make_bridge(name: str) -> bool:
    """Make the bridge, without an address, unless it is there. True if it was not.

    Raises Conflict if there is something of that name that Hatch did not make, Unavailable if the host refuses.
    """
    with _netlink() as ip:
        found = _find(ip, name)
        if found is None:
            ip.link("add", ifname=name, kind="bridge", address=bridge_mac(name), br_mcast_snooping=0)
        elif found.get("address") != bridge_mac(name):
            raise Conflict(
                f"there is a network device {name} that Hatch did not make; remove it, or choose a HATCH_BRIDGE_NAME"
            )
        return found is None


def address_bridge(name: str, address: IPv4Interface) -> bool:
    """Put the bridge right: up, with this address and no other. True if it had not had it. Raises Unavailable."""
    with _netlink() as ip:
        index = ip.link_lookup(ifname=name)[0]
        had = {(each.get("address"), each["prefixlen"]) for each in ip.get_addr(index=index, family=socket.AF_INET)}
        wanted = (str(address.ip), address.network.prefixlen)
        for stale in had - {wanted}:
            ip.addr("del", index=index, address=stale[0], prefixlen=stale[1])
        if wanted not in had:
            broadcast = str(address.network.broadcast_address)
            ip.addr("add", index=index, address=wanted[0], prefixlen=wanted[1], broadcast=broadcast)
        for port in list(ip.get_links(master=index)):  # somebody else's would be open to every guest
            ip.brport("set", index=port["index"], isolated=1)
        ip.link("set", index=index, state="up")
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        return had != {wanted}


def remove_bridge(name: str) -> None:
    """Raises Conflict while a guest is plugged in."""
    with _netlink() as ip:
        found = _find(ip, name)
        if found is None or found.get("address") != bridge_mac(name):
            return
        if guests := len(list(ip.get_links(master=found["index"]))):
            raise Conflict(f"{guests} guests are on the bridge {name}; stop them first")
        ip.link("del", index=found["index"])


def open_tap(name: str) -> int | None:
    """A descriptor of a new TAP, which ends with its last copy; None if one of that name is still in use."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(tap, _TUNSETIFF, request)
    except OSError as error:
        os.close(tap)
        if error.errno == errno.EBUSY:
            return None
        raise
    return tap


def lay_tap(name: str, uid: int) -> None:
    """Make a TAP that this user can open by its name; it stays until `make_mortal`, or its namespace ends."""
    tap = open_tap(name)
    if tap is None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
    try:
        fcntl.ioctl(tap, _TUNSETOWNER, uid)
        fcntl.ioctl(tap, _TUNSETPERSIST, 1)
    finally:
        os.close(tap)


def make_mortal(tap: int) -> None:
    """The TAP ends with its last descriptor. Raises OSError."""
    fcntl.ioctl(tap, _TUNSETPERSIST, 0)


def send_off(name: str, namespace: int) -> bool:
    """Move a device to the namespace of that descriptor. False if there is one of that name."""
    message = _encode(ifinfmsg(), RTM_NEWLINK, [("IFLA_NET_NS_FD", namespace)], index=socket.if_nametoindex(name))
    try:
        _send([message])
    except FileExistsError:
        return False
    return True


def plug(bridge: str, link: str, seat: Seat) -> None:
    """Make `link` a port of the bridge through which the guest of that seat, and nobody else, is reached.

    Who has the address is written down for good, so that no ARP is needed and nobody else's is believed.
    """
    port, master = socket.if_nametoindex(link), socket.if_nametoindex(bridge)
    slave = _nested("IFLA_INFO_SLAVE_DATA", _PORT.items())
    kind = ("IFLA_INFO_SLAVE_KIND", "bridge")
    _send(
        [
            _encode(ifinfmsg(), RTM_NEWLINK, [("IFLA_MASTER", master)], index=port),
            _encode(
                ifinfmsg(), RTM_NEWLINK, [_nested("IFLA_LINKINFO", [kind, slave])], index=port, flags=_IFF_UP, change=1
            ),
            _encode(
                ndmsg(),
                RTM_NEWNEIGH,
                [("NDA_LLADDR", seat.guest_mac)],
                family=_AF_BRIDGE,
                ifindex=port,
                state=_STATIC,
                flags=_NTF_MASTER,
            ),
            _neighbour(master, seat),
        ]
    )


def is_through(link: str) -> bool:
    """True if frames pass through a device that is up: the kernel has noticed that there is something to pass them to.

    It notices in its own time, which may be a second; since Linux 6.8 it does when it is asked, as here.
    """
    message = _encode(ifinfmsg(), RTM_GETLINK, [], index=socket.if_nametoindex(link))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.send(message)
        told = netlink.recv(1 << 16)
    for number in _answers(told):
        raise OSError(number, os.strerror(number))
    flags: int = struct.unpack_from("=I", told, 24)[0]  # after two headers, of 16 and 8 bytes
    return bool(flags & _IFF_RUNNING)


def put_neighbours(bridge: str, known: Collection[Seat]) -> None:
    """Whose hardware address is whose: those of `known`, and no others for good."""
    with _netlink() as ip:
        index = ip.link_lookup(ifname=bridge)[0]
        wanted = {(seat.guest_ip, seat.guest_mac) for seat in known}
        for entry in list(ip.get_neighbours(family=socket.AF_INET, ifindex=index)):
            if (entry.get("dst"), entry.get("lladdr")) not in wanted and entry["state"] & _PERMANENT:
                _remove_neighbour(ip, index, entry.get("dst"))
    _send([_neighbour(index, seat) for seat in known])


def forget_neighbour(bridge: str, seat: Seat) -> None:
    """May be repeated."""
    with _netlink() as ip:
        _remove_neighbour(ip, ip.link_lookup(ifname=bridge)[0], seat.guest_ip)


def _remove_neighbour(ip: IPRoute, index: int, address: str) -> None:
    with contextlib.suppress(NetlinkError):  # it is gone
        ip.neigh("del", dst=address, ifindex=index, family=socket.AF_INET)


def _neighbour(bridge: int, seat: Seat) -> bytes:
    attributes = [("NDA_DST", seat.guest_ip), ("NDA_LLADDR", seat.guest_mac)]
    return _encode(ndmsg(), RTM_NEWNEIGH, attributes, family=socket.AF_INET, ifindex=bridge, state=_PERMANENT)


@contextlib.contextmanager
def _netlink() -> Iterator[IPRoute]:
    try:
        with IPRoute() as ip:
            yield ip
    except (NetlinkError, OSError) as error:
        raise Unavailable("the guests' network could not be set up", detail=repr(error)) from error


def _find(ip: IPRoute, name: str) -> Any:
    """What the kernel tells of the device, or None."""
    indexes = ip.link_lookup(ifname=name)
    return next(iter(ip.get_links(*indexes)), None) if indexes else None


def _nested(name: str, attributes: Iterable[tuple[str, object]]) -> tuple[str, object]:
    return name, {"attrs": list(attributes)}


def _encode(message: nlmsg, kind: int, attributes: Sequence[tuple[str, object]], **fields: int) -> bytes:
    message.update(fields)
    message["attrs"] = attributes
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE | NLM_F_REPLACE if kind == RTM_NEWNEIGH else 0)
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 0, "pid": 0}
    message.encode()
    return bytes(message.data)


def _send(messages: Sequence[bytes]) -> None:
    """Send and await every acknowledgement. Raises OSError with the first error that the kernel answers."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        for start in range(0, len(messages), _BATCH):
            batch = messages[start : start + _BATCH]
            link.send(b"".join(batch))
            answered = 0
            while answered < len(batch):
                for number in _answers(link.recv(1 << 16)):
                    if number:
                        raise OSError(number, os.strerror(number))
                    answered += 1


def _answers(data: bytes) -> Iterator[int]:
    """The errno of every acknowledgement: a header of 16 bytes, then its negative, then what it answers."""
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if kind == NLMSG_ERROR:
            yield -struct.unpack_from("=i", data, offset + 16)[0]
        offset += (length + 3) & ~3
