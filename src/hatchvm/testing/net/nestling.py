"""A VMM of few words, for tests of nests: another user, who opens a TAP by name and returns every datagram.

    python -m hatchvm.testing.net.nestling <network namespace> <step>

Run as a program it is a daemon that plugs such a VMM into the bridge in that namespace, and kills itself when the step
(a function of `net.bridge.links`) is done. It prints the VMM's pid. A cable leads from the nest to the bridge's
namespace: its end there, `canary`, goes when the nest does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Final

from hatchvm.net.bridge import links
from hatchvm.ports.network import Seat
from hatchvm.ports.vmm import Nest
from hatchvm.testing.net.wires import Lab, ip

UID: Final = 1_900_000_042
_PROGRAM: Final = """
import fcntl, os, struct, sys
name, uid, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3]
tap = os.open("/dev/net/tun", os.O_RDWR)
os.setgroups([]), os.setgid(uid), os.setuid(uid)
if wanted:
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))
print("ready", flush=True)
while True:
    if not wanted:
        sys.stdin.read()
    frame = os.read(tap, 65536)[10:]
    if frame[12:14] == b"\\x08\\x00" and frame[23] == 17:
        ports = frame[36:38] + frame[34:36]
        head = frame[6:12] + frame[:6] + frame[12:26] + frame[30:34] + frame[26:30]
        os.write(tap, bytes(10) + head + ports + frame[38:])
"""


@contextlib.contextmanager
def hatched(nest: Nest, seat: Seat, *, uid: int = UID, opens: bool = True) -> Iterator[subprocess.Popen[str]]:
    """It has opened its TAP, unless it is not to; killed after the block."""
    argv = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(seat.tap_name), str(uid), "opens" if opens else ""]
    with nest.inside():
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def canary(netns: str) -> None:
    """Lay the cable, from inside the nest."""
    ip("link", "add", "canary", "type", "veth", "peer", "name", "canary", "netns", netns)


async def _be_killed(netns: str, step: str) -> None:
    lab = Lab(netns=netns)
    seat = lab.seat(2)
    _after("lay_tap", lambda: canary(netns))
    _after(step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    nest = await lab.network.nest(seat)
    await nest.lay(UID)
    with hatched(nest, seat) as vmm:
        print(vmm.pid, flush=True)
        await nest.plug(vmm.pid)


def _after(step: str, then: Callable[[], None]) -> None:
    done = getattr(links, step)

    def both(*args: object) -> None:
        done(*args)
        then()

    setattr(links, step, both)


if __name__ == "__main__":
    asyncio.run(_be_killed(*sys.argv[1:]))
