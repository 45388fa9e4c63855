"""What the benchmarks ask of a daemon: VMs with a page, requests with a stopwatch, pauses as the daemon saw them."""

from __future__ import annotations

import re
import socket
import time
from typing import Final

import httpx2

from hatchvm.cli.child import ChildDaemon

PAGE: Final = b"GET / HTTP/1.0\r\nHost: %s.hatch.localhost\r\n\r\n"
_ANSWER_S: Final = 120.0
_FILL_S: Final = 600.0
#: A page, and so many MiB of RAM filled with something that is not zero, or that cannot even be compressed.
_USER_DATA: Final = """#!/bin/sh
mkdir -p /www
mount -t tmpfs -o size=100%% ram /mnt
%s
left=%d
while [ $left -gt 0 ]; do cat /piece; printf x; left=$((left - 4)); done > /mnt/filled
echo ready > /www/index.html
httpd -p 8080 -h /www
"""

#: 4 MiB at a time. Random bytes are slow to make under emulation: these are few, but shifted by a byte each time, so
#: that no two blocks are the same.
_TEXT: Final = "yes 'a line of text that fills memory' | head -c 4m > /piece"
_NOISE: Final = "head -c 4m /dev/urandom > /piece"


def create(daemon: ChildDaemon, name: str, mem_mib: int, filled_mib: int, *, noise: bool = False) -> str:
    """A VM behind `<name>.hatch.localhost`; its id. It may still be booting. `noise`: fill with random bytes."""
    with daemon.client() as client:
        vm = client.create_vm(
            name=name, mem_mib=mem_mib, user_data=_USER_DATA % (_NOISE if noise else _TEXT, filled_mib)
        )
        client.create_route(vm["id"], target_port=8080, subdomain=name)
    return vm["id"]


def await_page(daemon: ChildDaemon, name: str) -> None:
    """Return when the VM has filled its memory and serves its page. Raises RuntimeError if that takes minutes."""
    deadline = time.monotonic() + _FILL_S
    while True:
        try:
            first_byte_s(daemon, name)
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise


def first_byte_s(daemon: ChildDaemon, name: str) -> float:
    """Seconds from a request through the proxy to the first byte of its answer. Raises unless it is 200."""
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", daemon.proxy_port), timeout=_ANSWER_S) as connection:
        connection.sendall(PAGE % name.encode())
        head = connection.recv(65536)
        seconds = time.perf_counter() - began
        while connection.recv(65536):
            pass
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise RuntimeError(f"{name}: {head[:200]!r}")
    return seconds


def sleep(daemon: ChildDaemon, vm_id: str) -> float:
    """Put the VM to sleep and wait until its snapshot is stored; how long the guest stood still, in seconds."""
    before = _pauses_s(daemon)
    with daemon.client() as client:
        client.snapshot_vm(vm_id)
    return _pauses_s(daemon) - before


def forget(daemon: ChildDaemon, vm_id: str) -> None:
    """Take from a sleeping VM what this host has of it, as if another one had put it to sleep."""
    paths = daemon.paths.vm(vm_id)
    for path in (paths.saved, paths.memory, paths.state, paths.disk):
        path.unlink(missing_ok=True)


def _pauses_s(daemon: ChildDaemon) -> float:
    text = httpx2.get(f"{daemon.api}/metrics", trust_env=False).text
    match = re.search(r"^hatch_pause_seconds_sum (\S+)$", text, re.MULTILINE)
    return float(match.group(1)) if match else 0.0
