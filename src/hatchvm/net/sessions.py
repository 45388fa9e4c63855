"""Established TCP connections to one of this host's ports: how an SSH session that bypasses Hatch is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ESTABLISHED: Final = "01"
_PROC: Final = Path("/proc/net")


def established(port: int, proc: Path = _PROC) -> int:
    """How many connections to `port` are established, by connection tracking (bridged guests) or on this host.

    Ports are compared as numbers: `dport=2200` is not `dport=22001`. What the kernel does not offer counts as none.
    """
    return _tracked(port, proc / "nf_conntrack") + _local(port, proc / "tcp") + _local(port, proc / "tcp6")


def _tracked(port: int, table: Path) -> int:
    """Lines like `ipv4 2 tcp 6 431999 ESTABLISHED src=… dport=16000 src=… dport=…`; the first dport was dialled."""
    count = 0
    for words in _rows(table):
        dport = next((word for word in words if word.startswith("dport=")), "")
        count += "ESTABLISHED" in words and dport == f"dport={port}"
    return count


def _local(port: int, table: Path) -> int:
    """Lines like `0: 0100007F:3E80 0100007F:D431 01 …`: local address, remote address, state."""
    suffix = f":{port:04X}"
    return sum(len(words) > 3 and words[1].endswith(suffix) and words[3] == _ESTABLISHED for words in _rows(table))


def _rows(table: Path) -> list[list[str]]:
    try:
        return [line.split() for line in table.read_text().splitlines()]
    except OSError:
        return []
