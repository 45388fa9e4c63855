"""A network card: frames between the host's TAP and that of a guest's kernel, which is a network namespace."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from typing import Final

_TUNSETIFF, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
_FLAGS: Final = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_HEADER: Final = 12
_FRAME: Final = 1 << 16
_NAME_MAX: Final = 15
_CLONE_NEWNET: Final = 0x40000000
_TELL: Final = b"""#!/bin/sh
[ "$1" = bound ] && echo "ip=$ip/$mask gw=$router"
exit 0
"""
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Card:
    """Firecracker opens the TAP when it is told of the card. Raises OSError if it may not, or it is in use."""

    def __init__(self, tap: str) -> None:
        self._host = _open(tap)
        self._guest: int | None = None
        self._space: int | None = None

    def join(self, mac: str | None, port: int) -> socket.socket:
        """Bring the guest's side up, without an address; a socket that listens there. Raises OSError without root."""
        here = _namespace()
        try:
            _call(_libc.unshare(_CLONE_NEWNET))
            self._space = _namespace()
        finally:
            _call(_libc.setns(here, _CLONE_NEWNET))
            os.close(here)
        with self._inside():
            self._guest = _open("eth0")
            _ip(*([f"link set eth0 address {mac}"] if mac else []), "link set lo up", "link set eth0 up")
            return socket.create_server(("", port))

    def address(self, address: str, gateway: str | None) -> None:
        """`address`: with the length of its prefix."""
        with self._inside():
            _ip(f"addr add {address} dev eth0", *([f"route add default via {gateway}"] if gateway else []))

    async def ask(self) -> dict[str, str]:
        """What a DHCP server tells: `ip` as `address` takes it, `gw`. Empty if nobody answers."""
        script = os.memfd_create("script", 0)
        try:
            os.write(script, _TELL)
            os.fchmod(script, 0o700)
            asking = self._start_asking(f"/proc/{os.getpid()}/fd/{script}")
            told, _ = await asyncio.to_thread(asking.communicate)
        finally:
            os.close(script)
        return dict(word.split("=", 1) for word in told.split() if not word.endswith("="))

    def _start_asking(self, script: str) -> subprocess.Popen[str]:
        command = f"setpriv --pdeathsig KILL busybox udhcpc -i eth0 -n -q -f -t 20 -T 1 -s {script}"
        with self._inside():
            return subprocess.Popen(command.split(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        """What is opened or started inside is in the guest's network."""
        here = _namespace()
        try:
            _call(_libc.setns(self._space, _CLONE_NEWNET))
            yield
        finally:
            _call(_libc.setns(here, _CLONE_NEWNET))
            os.close(here)

    def run(self) -> None:
        if self._guest is not None:
            asyncio.get_running_loop().add_reader(self._host, _pass, self._host, self._guest)
            asyncio.get_running_loop().add_reader(self._guest, _pass, self._guest, self._host)

    def stop(self) -> None:
        if self._guest is not None:
            asyncio.get_running_loop().remove_reader(self._host)
            asyncio.get_running_loop().remove_reader(self._guest)

    def close(self) -> None:
        os.close(self._host)


def _pass(source: int, target: int) -> None:
    """One frame with its header. One that cannot be sent is lost, as on a wire."""
    with contextlib.suppress(OSError):
        os.write(target, os.read(source, _FRAME))


def _open(name: str) -> int:
    if not 0 < len(name) <= _NAME_MAX:
        raise OSError(errno.EINVAL, "not a name of an interface")
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _FLAGS))
        fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("=i", _HEADER))
    except OSError:
        os.close(tap)
        raise
    return tap


def _namespace() -> int:
    """The calling thread's network."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _ip(*commands: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)


def _call(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
