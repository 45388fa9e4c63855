"""One VM being served: its volumes, its fetcher, its mount, and what the node may ask for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hatchvm.base import sockets
from hatchvm.base.errors import Exhausted, HatchError, Unavailable
from hatchvm.base.files import NO_ROOM
from hatchvm.base.paths import VMPaths
from hatchvm.pager import mount
from hatchvm.pager.fetch import THREADS, Fetcher, Numbers
from hatchvm.pager.front import Front
from hatchvm.pager.fuse import Server
from hatchvm.pager.ledger import Ledger
from hatchvm.pager.source import Source
from hatchvm.pager.volume import Volume
from hatchvm.pager.work import Work, describe
from hatchvm.snapshots.frames import Opener
from hatchvm.snapshots.layout import DISK, MEMORY
from hatchvm.snapshots.manifest import Manifest
from hatchvm.snapshots.parse import decode
from hatchvm.snapshots.seal import Ring

_FUSE_THREADS: Final = 2
#: Between two notes of what has arrived: what a crash makes us fetch again.
_NOTE_S: Final = 5.0
#: The first bytes of the disk hold the tables by which QEMU finds the rest.
_DISK_HEAD_BYTES: Final = 256 * 1024


class Session:
    """Serves from its making until `end`. Raises HatchError if it cannot begin."""

    def __init__(self, work: Work) -> None:
        self._paths = VMPaths(work.folder)
        self._mounted = work.mounted
        ring = Ring([bytes.fromhex(key) for key in work.ring])
        manifest = decode(work.manifest, work.source, ring)
        self._lane = ThreadPoolExecutor(1, thread_name_prefix="sync")
        source = Source(manifest.packs, work.where, width=THREADS)
        self._fetcher = Fetcher(manifest.frames, source.read, Opener(manifest, ring).open, self._spread)
        self._ending = False
        self._disk: Volume | None = None
        self._volumes = self._open(manifest)
        self._front = self._open_front(manifest) if work.faults else None
        #: Set when there is nothing left to do: `end` was answered, or somebody else has unmounted it.
        self.ended = threading.Event()
        order, rest = self._plan(manifest)
        if work.mounted:
            self._serve()
        self._fetcher.begin(order, rest)
        if self._front is not None:
            self._front.begin()
        threading.Thread(target=self._keep_notes, name="notes", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """Bytes still missing, and what went wrong for good, or goes wrong now."""
        lost = self._front.failed if self._front is not None else None
        wrong = self._fetcher.failed or lost or self._fetcher.trouble
        missing = {name: volume.missing_bytes for name, volume in self._volumes.items()}
        return {"missing": missing, "wrong": describe(wrong) if wrong else None}

    def finish(self) -> dict[str, Any]:
        """Return when every block is here, and the disk is durable and known to be whole."""
        self._fetcher.finish()
        self.flush()
        return self.status()

    def asked(self) -> dict[str, Any]:
        """What the guest has waited for of its memory: stretches of `faults.AROUND_BYTES`, first ones first."""
        return {"asked": self._front.asked() if self._front is not None else []}

    def flush(self) -> dict[str, Any]:
        """Make the disk durable, and the note of what is here of it."""
        if self._disk is not None:
            try:
                self._lane.submit(self._disk.checkpoint).result()
            except OSError as error:
                kind = Exhausted if error.errno in NO_ROOM else Unavailable
                raise kind(f"the VM's disk cannot be written: {error.strerror}", detail=repr(error)) from error
        return {}

    def end(self) -> dict[str, Any]:
        """Stop serving. Whoever still uses the files gets errors."""
        self._ending = True
        if self._mounted:
            mount.unmount(self._paths.lazy)
        self._fetcher.close()
        return self.flush()

    def _open(self, manifest: Manifest) -> dict[str, Volume]:
        paths, need, lane = self._paths, self._fetcher.need, self._lane
        volumes = {}
        for stream in manifest.streams:
            if stream.name == MEMORY and self._mounted:
                volumes[paths.memory.name] = Volume(paths.memory, manifest, stream, need, ledger=None, lane=lane)
            elif stream.name == DISK:
                ledger = Ledger(paths, len(stream.slots))
                self._disk = Volume(paths.partial, manifest, stream, need, ledger=ledger, lane=lane)
                volumes[paths.disk.name] = self._disk
        return volumes

    def _open_front(self, manifest: Manifest) -> Front:
        memory = self._volumes[self._paths.memory.name]
        return Front(sockets.listen(self._paths.faults, backlog=1), memory, manifest.order.astype(np.int64))

    def _plan(self, manifest: Manifest) -> tuple[Numbers, Numbers]:
        """Frames: those the last wake needed, in order; the others that hold something missing, as they lie."""
        missing = np.zeros(len(manifest.frames), np.bool_)
        for volume in self._volumes.values():
            missing[volume.frames()] = True
        order = np.zeros(0, np.int64)
        if self._mounted:
            head = _DISK_HEAD_BYTES // manifest.block_bytes
            wanted = [stream.slots[:head] for stream in manifest.streams if stream.name == DISK]
            wanted += [stream.slots[manifest.order] for stream in manifest.streams if stream.name == MEMORY]
            order = _frames(np.concatenate(wanted), manifest.frame_slots)
            order = order[missing[order]]
        missing[order] = False
        return order, np.flatnonzero(missing)

    def _spread(self, frame: int, plain: memoryview) -> bool:
        whole = all(volume.spread(frame, plain) for volume in self._volumes.values())
        if self._front is not None:
            self._front.nudge()
        return whole

    def _serve(self) -> None:
        files = {name: volume for name, volume in self._volumes.items() if not self._front or volume is self._disk}
        server = Server(mount.mount(self._paths.lazy), files)

        def serve() -> None:
            server.run(_FUSE_THREADS)
            if not self._ending:  # somebody else has unmounted it
                self.end()
                self.ended.set()

        threading.Thread(target=serve, name="fuse 0", daemon=True).start()
        mount.ease_writeback(self._paths.lazy)

    def _keep_notes(self) -> None:
        while not self.ended.wait(_NOTE_S):
            try:
                self.flush()
            except HatchError:  # whoever needs it to be durable asks again, and is told
                continue


def _frames(slots: npt.NDArray[np.uint32], frame_slots: int) -> Numbers:
    """The frames of these slots, each where it comes first."""
    frames = (slots[slots > 0].astype(np.int64) - 1) // frame_slots
    _, first = np.unique(frames, return_index=True)
    return frames[np.sort(first)]
