"""A host whose snapshots come and go at random, and that is killed at random moments. Run as a program: it forks.

    python -m hatchvm.testing.kills <folder> <seed> <lives>

Each life is a child process over what the last one left. It first looks whether everything that was promised is there,
then writes, deletes, retains, collects and lets hours pass, until it sends itself SIGKILL before or after a random
call of the object store or of the file system. The last one lives on: everything comes back as it was stored, and after
the grace period a collection leaves nothing that no snapshot needs. What went wrong is the output.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from hatchvm.objects.directory import DirectoryStore
from hatchvm.ports.objects import ObjectInfo
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.crash import forked
from hatchvm.testing.storeroom import GRACE, Storeroom, snapshot, vm_id

VMS: Final = 3
_KEPT: Final = 2
_STEPS: Final = 160
_FILE_CALLS: Final = ("link", "replace", "unlink", "fsync", "ftruncate", "mkdir", "rmdir")


class Journal:
    """What a user was told. `path`: kept there too, for the next life."""

    def __init__(self, path: Path | None = None) -> None:
        self.promised: set[SnapshotKeys] = set()
        self.made = 0
        self.passed_s = 0.0
        self._path = path
        for line in path.read_text().splitlines() if path and path.exists() else ():
            self._note(*line.split())

    def tell(self, what: str, *words: object) -> None:
        """`begins n`, `stored vm n`, `deletes vm n` or `passed s`: see `_note`."""
        line = [what, *map(str, words)]
        if self._path:
            with self._path.open("a") as file:
                file.write(" ".join(line) + "\n")
        self._note(*line)

    def _note(self, what: str, *words: str) -> None:
        if what == "begins":
            self.made = int(words[0])
        elif what == "passed":
            self.passed_s += float(words[0])
        elif what == "stored":
            self.promised.add(SnapshotKeys(*words))
        elif what == "deletes":
            self.promised.discard(SnapshotKeys(*words))


class Host:
    """Does one thing after the other to the snapshots of a few VMs."""

    def __init__(self, room: Storeroom, journal: Journal, wait: Callable[[float], None]) -> None:
        self.room = room
        self._journal = journal
        self._wait = wait

    async def something(self, dice: random.Random) -> None:
        """At random."""
        vm = dice.randrange(VMS)
        kind = dice.choices(("write", "delete", "retain", "delete vm", "collect", "wait"), (6, 2, 3, 1, 3, 3))[0]
        if kind == "write":
            await self.write(vm)
        elif kind == "delete":
            await self.delete(dice.randrange(100))
        elif kind == "retain":
            await self.retain(vm)
        elif kind == "delete vm":
            await self.delete_vm(vm)
        elif kind == "collect":
            await self.room.collect()
        else:
            self.wait(dice.choice((0.2, 1, 3, 5, 7)))

    async def write(self, vm: int) -> None:
        """A new snapshot, over the VM's own and the others'."""
        self._journal.tell("begins", self._journal.made + 1)
        keys = snapshot(vm, self._journal.made)
        here = sorted(await self.room.snapshots(), key=lambda one: one.snapshot_id, reverse=True)
        here.sort(key=lambda one: one.vm_id != keys.vm_id)
        await self.room.write(keys, here)
        self._journal.tell("stored", keys.vm_id, keys.snapshot_id)

    async def delete(self, which: int) -> None:
        here = await self.room.snapshots()
        if here:
            await self._delete(here[which % len(here)])

    async def retain(self, vm: int) -> None:
        """Keep the VM's newest ones."""
        mine = sorted(keys.snapshot_id for keys in await self.room.snapshots() if keys.vm_id == vm_id(vm))
        for old in mine[:-_KEPT]:
            await self._delete(SnapshotKeys(vm_id(vm), old))

    async def delete_vm(self, vm: int) -> None:
        for keys in self._journal.promised.copy():
            if keys.vm_id == vm_id(vm):
                self._journal.tell("deletes", keys.vm_id, keys.snapshot_id)
        await self.room.engine.delete_vm(vm_id(vm))

    def wait(self, hours: float) -> None:
        self._wait(hours * 3600)
        self._journal.tell("passed", hours * 3600)

    async def look(self) -> None:
        """Raises AssertionError, or what the engine raises, unless everything that was promised is there, whole."""
        here = await self.room.snapshots()
        assert self._journal.promised <= set(here), f"lost: {self._journal.promised - set(here)}"
        for keys in here:
            await self.room.restore(keys)

    async def settle(self) -> None:
        """Raises as `look` does, and if anything is left that no snapshot needs, once it is old."""
        await self.look()
        self.wait(GRACE.total_seconds() / 3600 + 1)
        await self.room.collect()
        assert await self.room.unneeded() == set()
        await self.look()

    async def _delete(self, keys: SnapshotKeys) -> None:
        self._journal.tell("deletes", keys.vm_id, keys.snapshot_id)
        await self.room.engine.delete(keys)


class Fate:
    """Ends this process at the n-th step after it was armed."""

    def __init__(self) -> None:
        self._left = 0
        self._lock = threading.Lock()

    def step(self) -> None:
        with self._lock:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def arm(self, n: int) -> None:
        """From now on calls of the file system are steps too, in whichever thread. For a process of its own."""
        self._left = n

        def fateful(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **options: Any) -> Any:
                self.step()
                return call(*args, **options)

            return wrapped

        for name in _FILE_CALLS:
            setattr(os, name, fateful(getattr(os, name)))


class FatefulStore(DirectoryStore):
    """A directory whose every call is a step before and after."""

    def __init__(self, root: Path, fate: Fate) -> None:
        super().__init__(root)
        self._fate = fate

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._fate.step()
        await super().put(key, data, if_absent=if_absent)
        self._fate.step()

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self._fate.step()
        return await super().get(key, start=start, length=length)

    async def delete(self, key: str) -> None:
        self._fate.step()
        await super().delete(key)
        self._fate.step()

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in super().list(prefix):
            yield info
        self._fate.step()


async def live(root: Path, seed: str, steps: int | None) -> None:
    """One life; None: the last."""
    fate = Fate()
    clock, journal = SteeredClock(), Journal(root / "journal")
    clock.advance(journal.passed_s)

    def wait(seconds: float) -> None:
        """Everything that is stored becomes older."""
        clock.advance(seconds)
        for path in (root / "objects").rglob("*"):
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))

    room = Storeroom(FatefulStore(root / "objects", fate), root / "host", clock)
    host, dice = Host(room, journal, wait), random.Random(seed)
    if steps is None:
        await host.settle()
        return
    await host.look()
    fate.arm(steps)
    while True:
        await host.something(dice)


def main(root: Path, seed: str, lives: int) -> int:
    """The number of lives that went wrong."""
    root.mkdir(parents=True, exist_ok=True)
    dice = random.Random(seed)
    wrong = 0
    for number in range(lives):
        steps = dice.randint(1, _STEPS)
        ended = forked(lambda number=number, steps=steps: live(root, f"{seed}.{number}", steps))  # type: ignore[misc]
        if ended != -signal.SIGKILL:
            print(f"seed {seed}: life {number} found something wrong")
            wrong += 1
    if forked(lambda: live(root, seed, None)):
        print(f"seed {seed}: what is left after {lives} lives is wrong")
        wrong += 1
    return wrong


if __name__ == "__main__":
    sys.exit(min(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])), 100))
