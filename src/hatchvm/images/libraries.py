"""The shared libraries that programs need, found among unpacked packages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def needed(packages: Path, programs: Iterable[Path]) -> dict[str, bytes]:
    """File name -> content of every library that the programs, or the libraries they need, mention by name.

    A name in a binary is enough: it finds what is linked and what is opened at run time, and a library too many costs
    a few kilobytes.
    """
    known = {file.name: file for file in packages.rglob("*.so.*") if "gconv" not in file.parts}
    found: dict[str, bytes] = {}
    waiting = [program.read_bytes() for program in programs]
    while waiting:
        content = waiting.pop()
        for name in sorted(known.keys() - found.keys()):
            if name.encode() + b"\0" in content:
                found[name] = known[name].read_bytes()
                waiting.append(found[name])
    return found
