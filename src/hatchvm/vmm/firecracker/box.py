"""What a Firecracker sees of the host: a folder with the VM's files in it, each under a plain name.

A state file remembers the paths of its drives and there is no way to give others when it is loaded, so they are the
same in every VM on every host: relative names inside the box, which is the process's working directory. `Bare` is a
box without walls, for development; `jail.Jail` has them.

The host goes by its own paths. Of what the process makes inside it uses the sockets only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hatchvm.base.errors import Exhausted, Unavailable
from hatchvm.base.files import NO_ROOM
from hatchvm.base.paths import VMPaths


@dataclass(frozen=True, slots=True)
class Entry:
    """One file inside.

    `name`: a plain name. `path`: where it is on the host, absolute; a socket, too. `writable`: it is the VM's own and
    will belong to its user, and is made, empty, if it is not there; all others are shared, stay whose they are and are
    only read.
    """

    name: str
    path: Path
    writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the guest was promised."""

    vcpu_count: int
    mem_mib: int


class Box(Protocol):
    """Everything blocks for a moment. The folder of a VM has its id as its name; that is the instance's id, too."""

    async def check(self, binary: Path) -> str:
        """Prove that this Firecracker can run so here; return a sentence about how. Raises Unsupported."""

    def uid(self, paths: VMPaths) -> int:
        """The user that the VM's process will be, the same for its whole life. Raises Exhausted."""

    def furnish(self, paths: VMPaths, binary: Path, entries: Sequence[Entry]) -> None:
        """Make `paths.box` anew with these in it, while no process is inside. If it raises, nothing is left."""

    def command(self, paths: VMPaths, binary: Path, args: Sequence[str], limits: Limits) -> tuple[list[str], Path]:
        """The arguments, and the working directory, of the process that becomes Firecracker.

        It is that process from its start to its end: same pid, same session, same namespace of the network.
        """

    def settle(self, paths: VMPaths) -> None:
        """The process answers: take away what only its start needed. May be repeated."""

    def clear(self, paths: VMPaths) -> None:
        """The process has ended: take everything away but the VM's files. May be repeated."""


class Bare:
    """A folder of symbolic links. The process is whoever the daemon is, and can reach whatever the daemon can."""

    async def check(self, binary: Path) -> str:
        return "without a jail: a guest that breaks out of Firecracker is this user on this host"

    def uid(self, paths: VMPaths) -> int:
        return os.geteuid()

    def furnish(self, paths: VMPaths, binary: Path, entries: Sequence[Entry]) -> None:
        self.clear(paths)
        with whole(self, paths):
            paths.box.mkdir(mode=0o700)
            for entry in entries:
                found(entry)
                (paths.box / entry.name).symlink_to(entry.path)

    def command(self, paths: VMPaths, binary: Path, args: Sequence[str], limits: Limits) -> tuple[list[str], Path]:
        return [str(binary), "--id", paths.root.name, *args], paths.box

    def settle(self, paths: VMPaths) -> None:
        return

    def clear(self, paths: VMPaths) -> None:
        with told():
            if paths.box.is_symlink():  # the VM ran in a jail before
                paths.box.unlink()
            elif paths.box.exists():
                shutil.rmtree(paths.box)


def found(entry: Entry) -> os.stat_result:
    """Of the entry's file, which is made if it may be. Raises OSError."""
    if entry.writable and not entry.path.exists():  # a socket cannot be opened
        entry.path.touch(mode=0o600)
    return entry.path.stat()


@contextlib.contextmanager
def whole(box: Box, paths: VMPaths) -> Iterator[None]:
    """The block furnishes the box; what it raises leaves nothing behind, and is told in a sentence."""
    try:
        with told():
            yield
    except BaseException:
        box.clear(paths)
        raise


@contextlib.contextmanager
def told() -> Iterator[None]:
    """The host's refusals, in a sentence."""
    try:
        yield
    except OSError as error:
        kind = Exhausted if error.errno in NO_ROOM else Unavailable
        raise kind("the VM's files could not be put before Firecracker; see the log", detail=repr(error)) from error
