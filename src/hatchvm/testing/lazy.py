"""Stored snapshots and live pagers for tests of lazy restore, without virtual machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from hatchvm.base.clock import SystemClock
from hatchvm.base.paths import VMPaths
from hatchvm.base.sockets import short_name
from hatchvm.objects.directory import DirectoryStore
from hatchvm.pager import ledger, mount
from hatchvm.pager.work import WholeWork, Work, outcome
from hatchvm.snapshots.engine import Facts, Files, SnapshotEngine
from hatchvm.snapshots.layout import DISK, MEMORY, SnapshotKeys
from hatchvm.snapshots.manifest import Manifest
from hatchvm.testing.vmm import STAMP

KEYS: Final = SnapshotKeys("vm-0123456789ab", "snap-0123456789ab")
BLOCK: Final = 4096
WHEN: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A snapshot in a directory store."""

    manifest: Manifest
    data: bytes
    where: dict[str, str]

    def work(
        self, paths: VMPaths, *, mounted: bool = True, faults: bool = False, where: dict[str, str] | None = None
    ) -> Work:
        return Work(
            folder=paths.root,
            source=KEYS,
            where=where or self.where,
            ring=(),
            mounted=mounted,
            faults=faults,
            manifest=self.data,
        )


async def store(folder: Path, *, memory: bytes, disk: bytes, order: list[int] | None = None) -> Stored:
    """Store these contents. `order`: pages of the memory."""
    files = Files(memory=folder / "from-memory", state=folder / "from-state", disk=folder / "from-disk")
    files.memory.write_bytes(memory)
    files.state.write_bytes(b"state")
    assert files.disk is not None
    files.disk.write_bytes(disk)
    engine = SnapshotEngine(DirectoryStore(folder / "objects"), folder / "packs", SystemClock())
    pages = None if order is None else np.array(order, np.uint32)
    await engine.write(KEYS, files, Facts(stamp=STAMP, vm_config="{}", created_at=WHEN, order=pages))
    manifest, data = await engine.open(KEYS)
    return Stored(manifest=manifest, data=data, where=await engine.locate(manifest))


def prepare(paths: VMPaths, manifest: Manifest) -> None:
    """The sparse files that a pager fills, as a node leaves them."""
    paths.lazy.mkdir(parents=True, exist_ok=True)
    for stream in manifest.streams:
        if stream.name == DISK:
            ledger.create(paths, KEYS, stream.size, len(stream.slots))
        if stream.name == MEMORY:
            paths.memory.touch()
            os.truncate(paths.memory, stream.size)


class Pager:
    """A pager process and a plain conversation with it."""

    def __init__(self, paths: VMPaths, work: Work | WholeWork) -> None:
        self._paths = paths
        self.child = subprocess.Popen(
            [sys.executable, "-m", "hatchvm.pager"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        assert self.child.stdin and self.child.stdout
        with self.child.stdin, self.child.stdout:
            work.send(self.child.stdin)  # type: ignore[arg-type]
            greeting = self.child.stdout.readline()
        try:
            outcome(greeting)
        except BaseException:
            self.kill()
            raise

    def ask(self, do: str) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX) as sock, short_name(self._paths.pager_socket) as name:
            sock.connect(name)
            sock.sendall(json.dumps({"do": do}).encode() + b"\n")
            return outcome(sock.makefile("rb").readline())

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()


@contextmanager
def paging(paths: VMPaths, work: Work | WholeWork) -> Iterator[Pager]:
    """A pager that serves; afterwards it is gone, and so is its mount."""
    pager = Pager(paths, work)
    try:
        yield pager
    finally:
        pager.kill()
        mount.unmount(paths.lazy)
