"""What guests may reach, as nftables commands (libnftables-json(5)): pure data.

Guests are kept apart on the wire by the bridge (`links.plug`), which passes frames between a guest and this host only,
from the guest's own hardware address. So all they send comes by here, as the host's own (`input`) or on its way through
(`forward`). `seats` holds the pairs of hardware address and IP address that guests have; what comes with another pair
is dropped. What a guest may not reach is refused at once, so that it need not wait for a timeout.

The ARP table keeps guests from filling the host's neighbour table with made-up addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

from hatchvm.net.bridge.settings import Allow, Bridge
from hatchvm.ports.network import Seat

Command = dict[str, Any]

_SEATS: Final = "seats"
_DHCP, _DNS = 67, 53
_LINK_LOCAL: Final = {"prefix": {"addr": "169.254.0.0", "len": 16}}
#: Table -> how the source addresses of its packets are called.
_SOURCES: Final[dict[str, list[tuple[str, str]]]] = {
    "inet": [("ether", "saddr"), ("ip", "saddr")],
    "arp": [("arp", "saddr ether"), ("arp", "saddr ip")],
}
_DROP: Final = {"drop": None}
_ACCEPT: Final = {"accept": None}
_REFUSE: Final = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}


def ruleset(bridge: Bridge, seats: Iterable[Seat]) -> list[Command]:
    """Replaces whatever was there, in one transaction."""
    commands: list[Command] = [{"metainfo": {"json_schema_version": 1}}, *removal(bridge)]
    pairs = [_pair(seat) for seat in seats]
    for family in _SOURCES:
        names = {"family": family, "table": bridge.table}
        commands.append({"add": {"table": {"family": family, "name": bridge.table}}})
        held = {**names, "name": _SEATS, "type": ["ether_addr", "ipv4_addr"]}
        commands.append({"add": {"set": {**held, "elem": pairs} if pairs else held}})
        for chain, hook, rules in _chains(bridge, family):
            commands.append({"add": {"chain": {**names, "name": chain, **hook}}})
            commands += [{"add": {"rule": {**names, "chain": chain, "expr": rule}}} for rule in rules]
    return commands


def removal(bridge: Bridge) -> list[Command]:
    """Removes it all. A table is added first, because one that is not there cannot be deleted."""
    return [
        {verb: {"table": {"family": family, "name": bridge.table}}} for family in _SOURCES for verb in ("add", "delete")
    ]


def seat(bridge: Bridge, seat: Seat, verb: Literal["add", "delete"]) -> list[Command]:
    """Lets a guest's packets pass from now on, or no longer. May be repeated."""
    return [
        {each: {"element": {"family": family, "table": bridge.table, "name": _SEATS, "elem": [_pair(seat)]}}}
        for family in _SOURCES
        for each in dict.fromkeys(("add", verb))
    ]


def _chains(bridge: Bridge, family: str) -> Iterator[tuple[str, Command, list[list[Command]]]]:
    if family == "arp":
        foreign = [_is("arp", "saddr ip", "0.0.0.0", op="!="), _is_no_seat(family), _DROP]  # 0.0.0.0: a probe
        yield "input", _hook("filter", "input"), [_elsewhere(bridge), foreign]
        return
    yield "input", _hook("filter", "input"), [_elsewhere(bridge), *_to_host(bridge), [_REFUSE]]
    yield "guest", {}, _from_guest(bridge)
    yield "forward", _hook("filter", "forward"), _through(bridge)
    yield "postrouting", _hook("nat", "postrouting", 100), [_masquerade(bridge)]


def _to_host(bridge: Bridge) -> list[list[Command]]:
    own = _is("ip", "daddr", str(bridge.cidr.ip))
    return [
        [_meta("nfproto", "ipv6"), _DROP],
        [_is("ip", "saddr", "0.0.0.0"), _is("udp", "dport", _DHCP), _ACCEPT],
        [_is_no_seat("inet"), _DROP],
        _answers(),
        [_is("udp", "dport", _DHCP), _ACCEPT],
        [own, _is("udp", "dport", _DNS), _ACCEPT],
        [own, _is("tcp", "dport", _DNS), _ACCEPT],
        *map(_allowed, bridge.allow),
    ]


def _from_guest(bridge: Bridge) -> list[list[Command]]:
    return [
        [_meta("nfproto", "ipv6"), _DROP],
        [_is_no_seat("inet"), _DROP],
        _answers(),
        *map(_allowed, bridge.allow),
        [_meta("oifname", bridge.name), _REFUSE],
        [_is("ip", "daddr", _LINK_LOCAL), _REFUSE],
        [_ACCEPT],
    ]


def _through(bridge: Bridge) -> list[list[Command]]:
    to_guest = _meta("oifname", bridge.name)
    return [[_meta("iifname", bridge.name), {"jump": {"target": "guest"}}], [to_guest, *_answers()], [to_guest, _DROP]]


def _masquerade(bridge: Bridge) -> list[Command]:
    network = bridge.cidr.network
    guests = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
    return [_is("ip", "saddr", guests), _meta("oifname", bridge.name, op="!="), {"masquerade": None}]


def _elsewhere(bridge: Bridge) -> list[Command]:
    """Ends the chain for what does not come from the bridge."""
    return [_meta("iifname", bridge.name, op="!="), _ACCEPT]


def _answers() -> list[Command]:
    return [_match({"ct": {"key": "state"}}, ["established", "related"], "in"), _ACCEPT]


def _allowed(rule: Allow) -> list[Command]:
    network = rule.network
    matches = [_is("ip", "daddr", {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}})]
    if rule.port is not None:
        matches += [_meta("l4proto", {"set": ["tcp", "udp"]}), _is("th", "dport", rule.port)]
    return [*matches, _ACCEPT]


def _is_no_seat(family: str) -> Command:
    left = {"concat": [_payload(protocol, name) for protocol, name in _SOURCES[family]]}
    return _match(left, f"@{_SEATS}", "!=")


def _pair(seat: Seat) -> Command:
    return {"concat": [seat.guest_mac, seat.guest_ip]}


def _hook(kind: str, hook: str, priority: int = 0) -> Command:
    return {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}


def _is(protocol: str, name: str, value: object, *, op: str = "==") -> Command:
    return _match(_payload(protocol, name), value, op)


def _meta(key: str, value: object, *, op: str = "==") -> Command:
    return _match({"meta": {"key": key}}, value, op)


def _match(left: Command, right: object, op: str) -> Command:
    return {"match": {"op": op, "left": left, "right": right}}


def _payload(protocol: str, name: str) -> Command:
    return {"payload": {"protocol": protocol, "field": name}}
