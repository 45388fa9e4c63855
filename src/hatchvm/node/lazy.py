"""Pagers, seen from the node: starting one, talking to it, ending it, and completing what it left incomplete.

A pager is a process of its own that serves a VM's memory and disk while they are being fetched (`hatchvm.pager`). It
outlives the daemon, as the VMM on its files does. It also serves memory that is whole on this host to a VMM that opens
no file. Nothing here touches the files it serves on the event loop: a call into them waits as long as the object store
does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from hatchvm.base import process, sockets, tasks
from hatchvm.base.errors import Corrupt, HatchError, NotFound, Unavailable
from hatchvm.base.files import sync_file
from hatchvm.base.paths import DataPaths, VMPaths
from hatchvm.base.process import Marks, Process
from hatchvm.pager import ledger, mount
from hatchvm.pager.work import WholeWork, Work, described, outcome
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.workers import outlast

_MODULE: Final = "hatchvm.pager"
#: A pager that was asked to end makes the disk durable first.
_END_S: Final = 30.0
_KEPT: Final = ("PATH", "PYTHON", "SSL_CERT_", "LANG", "LC_")


class Pager:
    """One live pager."""

    def __init__(self, paths: VMPaths, process: Process) -> None:
        self._paths = paths
        self._process = process
        #: The version of the VMM that wrote the state beside what it serves, while a wake on it is still to come.
        self.written_by: str | None = None

    async def finish(self) -> None:
        """Return when every block is here. Raises Corrupt for a damaged snapshot, Unavailable if the store is away."""
        await self._ask("finish")

    async def settle(self) -> None:
        """`finish`, and let the files at their real place hold what the guest has written by now.

        Memory that is served by faults is no file: what the guest writes there is the VMM's to hand over.
        """
        await self.finish()
        for name in (self._paths.memory.name, self._paths.disk.name):
            await self.hand_over(name)

    async def hand_over(self, name: str) -> None:
        """Let the kernel hand to the pager what the VMM wrote to this file. Takes as long as there is much of it."""
        await asyncio.to_thread(_sync, self._paths.lazy / name)

    async def asked(self) -> list[int]:
        """What the guest has waited for of memory that is served by faults: see `pager.faults.Faults.asked`."""
        asked: list[int] = (await self._ask("asked"))["asked"]
        return asked

    async def wrong(self) -> HatchError | None:
        """What went wrong with fetching, if anything did."""
        try:
            wrong = (await self._ask("status"))["wrong"]
        except HatchError as error:
            return error
        return described(wrong) if wrong else None

    async def wait(self) -> None:
        """Return when the process has ended."""
        await self._process.wait()

    async def end(self) -> None:
        """Let it make the disk durable, and end it. The VMM must have ended. May be repeated."""
        try:
            async with asyncio.timeout(_END_S):
                await self._ask("end")
                await self._process.wait()
        except (HatchError, TimeoutError):
            pass
        await self.kill()

    async def kill(self) -> None:
        """End it at once, and remove what it leaves."""
        if self._process.child is not None or process.find(_marks(self._paths)) is not None:
            self._process.signal(signal.SIGKILL)
        await tasks.finish(self._gone(), name=f"end of a pager {self._paths.root.name}")

    async def _gone(self) -> None:
        await self._process.wait()
        await asyncio.to_thread(mount.unmount, self._paths.lazy)
        self._paths.faults.unlink(missing_ok=True)
        self._process.forget()

    async def _ask(self, do: str) -> dict[str, Any]:
        try:
            sock = await sockets.connect(self._paths.pager_socket)
        except OSError as error:
            raise _ended(error) from error
        try:
            reader, writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise
        try:
            writer.write(json.dumps({"do": do}).encode() + b"\n")
            return outcome(await reader.readline())
        except (OSError, ValueError) as error:
            raise _ended(error) from error
        finally:
            writer.close()


class Pagers:
    """Starts pagers. `lazy`: whether file systems can be mounted here, so that VMs may run before they are whole.

    `ring`: the keys of encrypted snapshots. Importing its libraries takes a pager longer than all the rest of a wake:
    one is kept waiting.
    """

    def __init__(self, *, lazy: bool, ring: Ring) -> None:
        self.lazy = lazy
        self._ring = ring
        self._spare: subprocess.Popen[bytes] | None = None

    def warm(self, *, always: bool) -> None:
        """See to it that a process waits for work: if VMs are to be restored lazily, or `always`."""
        if (self.lazy or always) and (self._spare is None or self._spare.poll() is not None):
            self._spare = _spawn()

    def close(self) -> None:
        """End the process that waits."""
        if self._spare is not None:
            self._spare.kill()
            self._spare.communicate()
            self._spare = None

    async def start(
        self,
        paths: VMPaths,
        source: SnapshotKeys,
        where: Mapping[str, str],
        manifest: bytes,
        *,
        mounted: bool,
        faults: bool = False,
    ) -> Pager:
        """A pager that serves (or, not `mounted`, only completes the disk). `where`: its packs. `faults`: see `Work`.

        Raises what it says; nothing is left behind then.
        """
        work = Work(
            folder=paths.root,
            source=source,
            where=where,
            ring=tuple(self._ring.dump()),
            mounted=mounted,
            faults=faults,
            manifest=manifest,
        )
        if mounted:
            try:
                paths.lazy.mkdir(exist_ok=True)
            except OSError as error:
                raise _unwritable(error) from error
        return await self._start(paths, work)

    async def start_whole(self, paths: VMPaths) -> Pager:
        """A pager that serves the memory's file, which is whole, by page faults.

        Raises what it says; nothing is left behind then.
        """
        return await self._start(paths, WholeWork(paths.root))

    async def _start(self, paths: VMPaths, work: Work | WholeWork) -> Pager:
        child, self._spare = self._spare or _spawn(), None
        started = Process(child.pid, _marks(paths), child)
        pager = Pager(paths, started)
        try:
            started.note()
        except OSError as error:
            await pager.kill()
            raise _unwritable(error) from error
        talk = tasks.spawn(asyncio.to_thread(_hand_over, child, work), name=f"start a pager {paths.root.name}")
        try:
            await asyncio.shield(talk)
        except BaseException:
            child.kill()
            await outlast([talk])
            await pager.kill()
            raise
        return pager


def find(paths: VMPaths) -> Pager | None:
    """The live pager that an earlier daemon started for this VM."""
    found = process.find(_marks(paths))
    return None if found is None else Pager(paths, found)


async def kill_stray(paths: VMPaths) -> None:
    """End a pager that an earlier daemon left, and remove the mount and the socket that a dead one left."""
    pager = find(paths)
    if pager is not None:
        await pager.kill()
    else:
        await asyncio.to_thread(mount.unmount, paths.lazy)
        paths.faults.unlink(missing_ok=True)


def shoot(paths: VMPaths) -> None:
    """As `kill_stray`, for those without an event loop; does not wait for its end."""
    found = process.find(_marks(paths))
    if found is not None:
        found.signal(signal.SIGKILL)
    mount.unmount(paths.lazy)


async def complete(paths: VMPaths, engine: SnapshotEngine, pagers: Pagers) -> None:
    """Make the VM's disk whole, if it is not: a pager ended before it was. Nothing else uses it.

    Raises Corrupt if that is not possible any more, Unavailable if it is not now.
    """
    source = ledger.source(paths)
    if source is None:
        return
    try:
        manifest, data = await engine.open(source)
    except NotFound as error:
        raise Corrupt(
            f"the VM's disk is not whole, and snapshot {source.snapshot_id} that has the rest is gone; restore another"
        ) from error
    pager = await pagers.start(paths, source, await engine.locate(manifest), data, mounted=False)
    try:
        await pager.finish()
    finally:
        await pager.end()


async def release(
    vms: DataPaths, engine: SnapshotEngine, pagers: Pagers, needed: Callable[[SnapshotKeys], bool]
) -> None:
    """Complete every disk on this host that still needs one of these snapshots."""
    for folder in sorted(vms.vms.glob("*")):
        paths = VMPaths(folder)
        try:
            source = ledger.source(paths)
        except Corrupt:  # nothing can complete that one
            continue
        if source is None or not needed(source):
            continue
        pager = find(paths)
        if pager is not None:
            await pager.finish()
        else:
            await complete(paths, engine, pagers)


def _marks(paths: VMPaths) -> Marks:
    return Marks(record=paths.pager, socket=paths.pager_socket, log=paths.pager_log, program=_MODULE.encode())


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name.startswith(_KEPT)},
    )


def _hand_over(child: subprocess.Popen[bytes], work: Work | WholeWork) -> None:
    """Give it its work, and wait for its word. Raises what it says."""
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        with child.stdin, child.stdout:
            work.send(child.stdin)  # type: ignore[arg-type]  # typeshed has it as IO[bytes]
            outcome(child.stdout.readline())
    except (OSError, ValueError) as error:
        raise _ended(error) from error


def _sync(path: Path) -> None:
    try:
        sync_file(path)
    except FileNotFoundError:  # a VM without a disk, memory that is served by faults
        return
    except OSError as error:
        raise Unavailable(
            "what the guest wrote could not be brought to the VM's files: the disk is full or failing",
            detail=repr(error),
        ) from error


def _unwritable(error: OSError) -> Unavailable:
    return Unavailable(f"the VM's folder cannot be written: {error.strerror}", detail=repr(error))


def _ended(error: Exception) -> Unavailable:
    return Unavailable("the process that fetches the VM's memory and disk has ended", detail=repr(error))
