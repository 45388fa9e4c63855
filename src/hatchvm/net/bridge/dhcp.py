"""dnsmasq: tells guests their addresses and answers their DNS questions. One process, which outlives the daemon.

Every guest has a file of its own in a folder that dnsmasq watches, so a new guest needs no restart. The files are also
what the next daemon knows about seats before it is told. dnsmasq has no leases of its own to keep: only guests with a
file get an address, always the same, for ever; guests that sleep do not renew.

It runs as `nobody`. Its pid file is written by itself when it is ready, and names it together with its arguments.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from hatchvm.base.files import write_atomic
from hatchvm.net.bridge import programs
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.net.bridge.settings import Bridge
from hatchvm.ports.network import Seat

_END_MS: Final = 2000
_SERVER: Final = 67


class DHCP:
    """Everything here blocks for a moment; what starts, ends or talks to dnsmasq is called inside the namespace."""

    def __init__(self, bridge: Bridge, namespace: Namespace) -> None:
        self._bridge = bridge
        self._namespace = namespace
        self._hosts = bridge.folder / "hosts"
        self._pid_file = bridge.folder / "dnsmasq.pid"

    def prepare(self) -> None:
        """Make the folders. Raises OSError."""
        for folder in (self._bridge.run, self._bridge.folder, self._hosts):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o755)

    def seats(self) -> Iterator[Seat]:
        """Whom dnsmasq knows."""
        for path in self._hosts.glob("[!.]*"):
            mac, address, _ = path.read_text().split(",")
            yield Seat(vm_id=path.name, guest_ip=address, guest_mac=mac, tap_name=path.name)

    def add(self, seat: Seat) -> None:
        """The guest gets its address from now on. Raises OSError."""
        line = f"{seat.guest_mac},{seat.guest_ip},infinite\n"
        write_atomic(self._hosts / str(seat.tap_name), line.encode(), mode=0o644, durable=False)

    def remove(self, seats: Collection[Seat]) -> None:
        """These addresses can be given to others."""
        for seat in seats:
            (self._hosts / str(seat.tap_name)).unlink(missing_ok=True)
        if seats and (pid := self.pid()) is not None:
            _signal(pid, signal.SIGHUP)  # forget what was read
            for seat in seats:
                self._release(seat)

    def pid(self) -> int | None:
        """Of the dnsmasq that serves this bridge as it is set up now, or None."""
        pid = self._found()
        return pid if pid is not None and self._namespace.holds(pid) and _arguments(pid)[1:] == self._argv() else None

    def start(self) -> None:
        """Start it, after whatever ran before. Returns when it serves. Raises Unsupported, Unavailable."""
        self.end()
        programs.run("dnsmasq", *self._argv())

    def end(self) -> None:
        if (pid := self._found()) is None:
            return
        try:
            watched = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                _signal(pid, number)
                ended = select.poll()
                ended.register(watched, select.POLLIN)
                if ended.poll(_END_MS):
                    return
        finally:
            os.close(watched)
            self._pid_file.unlink(missing_ok=True)

    def _argv(self) -> list[str]:
        network = self._bridge.cidr.network
        return [
            "--conf-file=/dev/null",
            "--no-hosts",
            f"--interface={self._bridge.name}",
            "--except-interface=lo",
            "--bind-interfaces",
            f"--dhcp-range={network.network_address},static,{network.netmask},infinite",
            f"--dhcp-hostsdir={self._hosts}",
            f"--dhcp-lease-max={network.num_addresses}",
            "--dhcp-authoritative",  # a guest may ask for its address again after dnsmasq was started anew
            "--dhcp-ignore-clid",  # copies of one guest tell one client id; hardware addresses differ
            "--leasefile-ro",
            "--quiet-dhcp",
            f"--pid-file={self._pid_file}",
            f"--log-facility={self._bridge.folder / 'dnsmasq.log'}",
            f"--resolv-file={self._servers()}",
        ]

    def _servers(self) -> Path:
        """Where the DNS servers to ask are named: for a namespace, where `ip netns` looks too."""
        own = Path(f"/etc/netns/{self._bridge.netns}/resolv.conf")
        return own if own.exists() else Path("/etc/resolv.conf")

    def _found(self) -> int | None:
        """The live process that wrote the pid file; its number alone may be another's by now."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if f"--pid-file={self._pid_file}" in _arguments(pid) else None

    def _release(self, seat: Seat) -> None:
        """Tell dnsmasq, in the guest's name, that it needs its address no longer (RFC 2131, DHCPRELEASE).

        It would not give it to another hardware address before.
        """
        server = self._bridge.cidr.ip.packed
        hardware = bytes.fromhex(seat.guest_mac.replace(":", ""))
        head = bytes([1, 1, 6, 0]) + os.urandom(4) + bytes(4) + socket.inet_aton(seat.guest_ip) + bytes(12)
        options = b"\x63\x82\x53\x63" + b"\x35\x01\x07" + b"\x36\x04" + server + b"\xff"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._bridge.name.encode())
            sender.sendto(head + hardware.ljust(16, b"\0") + bytes(192) + options, (str(self._bridge.cidr.ip), _SERVER))


def _arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
