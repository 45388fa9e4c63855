"""What snapshots cost: bytes in the store, seconds to store them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench import vms
from bench.report import Row, machine, median, publish
from hatchvm.base import ids
from hatchvm.base.clock import SystemClock
from hatchvm.base.units import MIB
from hatchvm.cli.child import ChildDaemon
from hatchvm.domain.snapshot import Stamp
from hatchvm.objects.directory import DirectoryStore
from hatchvm.snapshots.engine import Facts, Files, SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys

_MEM_MIB: Final = 512
_LIBRARIES_MIB: Final = 512
_SECOND_GOAL: Final = 0.03
_OTHER_VM_GOAL: Final = 0.15
_TIME_GOAL: Final = 2.0
_PAGE: Final = 4096


def run(folder: Path, *, rounds: int) -> None:
    daemon = ChildDaemon(folder / "data", {})
    daemon.start()
    try:
        rows, memory = _bytes(daemon, folder, rounds)
    finally:
        daemon.end()
    libraries = folder / "libraries"
    _libraries(libraries)
    rows += _seconds("a guest's memory", memory, folder, rounds)
    rows += _seconds(f"{_LIBRARIES_MIB} MiB of libraries", libraries, folder, rounds)
    publish("stored", f"Hatch: what snapshots cost ({machine()})", rows)


def _bytes(daemon: ChildDaemon, folder: Path, rounds: int) -> tuple[list[Row], Path]:
    """Rows, and a copy of a sleeping guest's memory."""
    first = {name: _booted(daemon, name) for name in ("one", "two")}
    memory = folder / "memory"
    subprocess.run(["cp", "--sparse=always", daemon.paths.vm(first["one"][0]).memory, memory], check=True)
    used = _used_bytes(memory)
    again = []
    for _ in range(rounds):
        vms.first_byte_s(daemon, "one")
        vms.sleep(daemon, first["one"][0])
        again.append(_stored_bytes(daemon, first["one"][0]))
    rows = [
        Row(f"memory in use of {_MEM_MIB} MiB", used / MIB, "MiB"),
        Row("first snapshot of the first VM", first["one"][1] / MIB, "MiB"),
        Row("first snapshot of a second VM", first["two"][1] / MIB, "MiB"),
        Row("second VM against the first", first["two"][1] / first["one"][1], "ratio", _OTHER_VM_GOAL),
        Row("next snapshot, after a wake and one request, p50", median(again) / MIB, "MiB"),
        Row("next snapshot against memory in use, p50", median(again) / used, "ratio", _SECOND_GOAL),
    ]
    return rows, memory


def _booted(daemon: ChildDaemon, name: str) -> tuple[str, int]:
    """(id, stored bytes of its first snapshot) of a new VM that answered a request."""
    vm_id = vms.create(daemon, name, _MEM_MIB, 0)
    vms.await_page(daemon, name)
    vms.sleep(daemon, vm_id)
    return vm_id, _stored_bytes(daemon, vm_id)


def _stored_bytes(daemon: ChildDaemon, vm_id: str) -> int:
    with daemon.client() as client:
        return client.list_snapshots(vm_id)[0]["stored_bytes"]


def _used_bytes(memory: Path) -> int:
    """Pages that are not all zeros."""
    zeros, used = bytes(_PAGE), 0
    with memory.open("rb") as file:
        while window := file.read(4 * MIB):
            used += sum(window[at : at + _PAGE] != zeros for at in range(0, len(window), _PAGE))
    return used * _PAGE


def _libraries(path: Path) -> None:
    """A file of what guests' memory holds most: code, each part once."""
    wanted = _LIBRARIES_MIB * MIB
    with path.open("wb") as file:
        for source in _files(Path("/usr/lib")):
            if file.tell() >= wanted:
                break
            file.write(source.read_bytes()[: wanted - file.tell()])
            file.write(bytes(-file.tell() % _PAGE))
        os.truncate(path, file.tell())


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size >= MIB // 4:
            yield path


def _seconds(what: str, file: Path, folder: Path, rounds: int) -> list[Row]:
    """A first snapshot of `file`, into a directory, against zstd reading the same file."""
    ours, theirs = [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(["zstd", "-1", "-T2", "-q", "-c", file], stdout=subprocess.DEVNULL, check=True)
        theirs.append(time.perf_counter() - began)
        ours.append(_store_s(file, folder / "objects"))
    own, least = median(ours[1:]), median(theirs[1:])  # the first of each warms caches
    return [
        Row(f"store {what}, p50", own, "s"),
        Row(f"zstd -1 -T2 reads {what}, p50", least, "s"),
        Row(f"store {what} against zstd", own / least, "ratio", _TIME_GOAL),
    ]


def _store_s(file: Path, objects: Path) -> float:
    state = file.with_suffix(".state")
    state.touch()
    engine = SnapshotEngine(DirectoryStore(objects), objects.with_name("packs"), SystemClock())
    keys = SnapshotKeys(ids.new(ids.VM), ids.new(ids.SNAPSHOT))
    facts = Facts(stamp=Stamp.of({}), vm_config="{}", created_at=SystemClock().now())
    began = time.perf_counter()
    asyncio.run(engine.write(keys, Files(memory=file, state=state, disk=None), facts))
    taken = time.perf_counter() - began
    shutil.rmtree(objects)
    return taken
