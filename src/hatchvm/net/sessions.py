"""SSH sessions that bypass Hatch, found in the kernel's connection tracking table.

There are two ways past Hatch's own SSH door: a forward that somebody made by a firewall rule, which is dialled at the
VM's SSH port, and, where guests are on a bridge, a connection straight to port 22 of the guest's address. Whoever comes
through the door is known to it already, by a hold that ends when the connection does. So what this host itself dialled
is not counted: the door's own connection to the guest would stand for one session twice, or for one that is over. For
the same reason sockets of this host (`/proc/net/tcp`) are not looked at: the door listens on the SSH ports. The other
half of such a session, from the client to the door, looks like a forward; the asker knows the door's peers and leaves
those out.

A line of the table, where the first addresses and ports are the ones that were dialled:

    ipv4 2 tcp 6 431999 ESTABLISHED src=… dst=… sport=… dport=16000 src=… dst=… sport=22 dport=… [ASSURED] …

The number before the state is how many seconds the entry has left. Every packet winds it up to five days, so what is
missing of those is how long both sides have been silent: a peer that died without a word is forgotten then, not after
five days. While data waits for its acknowledgement the kernel winds it up to five minutes only; such an entry is young,
or gone within those five minutes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from hatchvm.domain.activity import Tracked
from hatchvm.domain.vm import VM

#: That of the network namespace in which the calling thread is.
TABLE: Final = Path("/proc/thread-self/net/nf_conntrack")
_SETTINGS: Final = Path("/proc/sys/net/netfilter")
_SSH: Final = 22
#: The kernel's own values (Documentation/networking/nf_conntrack-sysctl), used where it does not tell.
_ESTABLISHED_S: Final = 432_000
_SHORT_S: Final = 300


def established(
    vm: VM,
    *,
    table: Path = TABLE,
    settings: Path = _SETTINGS,
    own: Collection[str] = (),
    silence_s: float = float("inf"),
) -> list[Tracked]:
    """Sessions with the VM that are established and were not silent for longer than `silence_s`.

    `own`: this host's addresses on the guests' network. Ports are compared as numbers: `dport=2200` is not
    `dport=22001`. What the kernel does not offer counts as none.
    """
    dialled = {("", vm.ssh_port)} if vm.ssh_port is not None else set()
    if vm.tap_name is not None and vm.guest_ip is not None:
        dialled.add((vm.guest_ip, _SSH))
    long_s = _setting(settings, "established", _ESTABLISHED_S)
    short_s = max(_setting(settings, "unacknowledged", _SHORT_S), _setting(settings, "max_retrans", _SHORT_S))
    found = []
    for left_s, src, dst, dport in _entries(table, {port for _, port in dialled}):
        if not dialled & {("", dport), (dst, dport)} or src in own or _is_local(src, dst):
            continue
        silent_s = max(0, (short_s if left_s <= short_s < long_s else long_s) - left_s)
        if silent_s <= silence_s:
            found.append(Tracked(peer=src, silent_s=silent_s))
    return found


def _entries(table: Path, ports: Collection[int]) -> Iterator[tuple[int, str, str, int]]:
    """Of every established TCP connection to one of the ports: seconds left, source, destination, port."""
    try:
        lines = table.read_text(errors="replace").splitlines()
    except OSError:
        return
    words = [f"dport={port}" for port in ports]
    for line in lines:
        head, state, tail = line.partition(" ESTABLISHED ")
        # Most lines of a busy host are somebody else's.
        if not state or not any(word in tail for word in words):
            continue
        left = head.rpartition(" ")[2]
        fields: dict[str, str] = {}
        for word in tail.split():
            name, _, value = word.partition("=")
            fields.setdefault(name, value)
        dport = fields.get("dport", "")
        if left.isdecimal() and dport.isdecimal() and " tcp " in head:
            yield int(left), fields.get("src", ""), fields.get("dst", ""), int(dport)


def _is_local(src: str, dst: str) -> bool:
    """True if a host speaks to itself."""
    return src.startswith("127.") or src == "::1" or (src == dst and src != "")


def _setting(settings: Path, name: str, usual: int) -> int:
    """Seconds of one of the kernel's timeouts."""
    try:
        return int((settings / f"nf_conntrack_tcp_timeout_{name}").read_text())
    except (OSError, ValueError):
        return usual
