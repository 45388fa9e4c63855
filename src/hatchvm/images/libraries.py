"""The shared libraries that programs need, found among unpacked packages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

#: The dynamic loader: the file that a program names as its interpreter, in `/lib64`.
LOADER: Final = "ld-linux-x86-64.so.2"


def needed(packages: Path, programs: Iterable[Path]) -> dict[str, bytes]:
    """File name -> content of every library that the programs, or the libraries they need, mention by name.

    A name in a binary is enough: it finds what is linked and what is opened at run time, and a library too many costs
    a few kilobytes.
    """
    known = {file.name: file for file in packages.rglob("*.so.*") if not _leads_out(file)}
    found: dict[str, bytes] = {}
    waiting = [program.read_bytes() for program in programs]
    while waiting:
        content = waiting.pop()
        for name in sorted(known.keys() - found.keys()):
            if name.encode() + b"\0" in content:
                found[name] = known[name].read_bytes()
                waiting.append(found[name])
    return found


def runnable(packages: Path, program: Path, folder: Path) -> tuple[str, ...]:
    """The command that runs an unpacked program on this host, with its own libraries, copied to the new `folder`."""
    folder.mkdir()
    for name, content in needed(packages, [program]).items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return (str(folder / LOADER), "--library-path", str(folder), str(program))


def _leads_out(file: Path) -> bool:
    """True for an absolute link, which means a file of this host here, not one of the packages."""
    return file.is_symlink() and file.readlink().is_absolute()
