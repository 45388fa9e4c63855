"""Programs under measurement: started on one core, ended for certain, and what CPU time they took."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

#: The proxy has the first core to itself; load and upstream share the second.
PROXY_CORE: Final = 0
LOAD_CORE: Final = 1
_START_S: Final = 120.0  # 100,000 routes take some proxies a while
_END_S: Final = 10.0
_LOOK_S: Final = 0.02
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


def pinned(core: int, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv`, and whatever it starts, on that core only."""
    return ["taskset", "-c", str(core), *argv]


@contextlib.contextmanager
def running(argv: Sequence[str], *, core: int, port: int, log: Path) -> Iterator[subprocess.Popen[str]]:
    """A server that accepts connections on loopback `port` by now. What it says goes to `log`."""
    with log.open("w") as said:
        child = subprocess.Popen(
            pinned(core, argv), stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, text=True
        )
    try:
        _await_port(child, port, log)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_END_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        if child.stdin:
            child.stdin.close()


def cpu_s(pid: int) -> float:
    """User and system time so far of a process and its living children, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) * _TICK_S
    return own + sum(cpu_s(child) for child in _children(pid))


def resident_kib(pid: int) -> float:
    """Memory of a process and its living children."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    return own + sum(resident_kib(child) for child in _children(pid))


def _children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for listed in lists for child in listed.read_text().split()]


def _await_port(child: subprocess.Popen[str], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(_LOOK_S)
    raise RuntimeError(f"{child.args!r} did not start: {log.read_text()[-2000:]}")
