"""Which pages of its memory a guest needs first after a wake: what the next one, from the store, fetches first.

The kernel knows which pages of the memory file are in the VMM's page table (`/proc/<pid>/pagemap`, bit 63): those that
were touched since the VMM started, and a few around them that came along.

Memory that is served by page faults has most of its pages there before anybody touches them. What is known then is what
the guest had to wait for, although it was thought to have what it needs first: that is added to what was known. The
next wake on this host maps the file again and starts the record anew.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import HatchError
from hatchvm.base.files import write_atomic
from hatchvm.base.paths import VMPaths
from hatchvm.node.lazy import Pager
from hatchvm.pager.faults import AROUND_BYTES
from hatchvm.ports.vmm import Pages

#: Pages that were touched by now, each once; first ones first as far as that is known.
Look = Callable[[], Awaitable[Pages]]

#: When to look, in seconds after the guest began to run. Earlier looks come first in the order.
MOMENTS_S: Final = (0.2, 0.6, 2.0)
_PAGE: Final = 4096
_JAILED: Final = "/memory"
_PRESENT: Final = np.uint64(1 << 63)
_NONE: Final[Pages] = np.zeros(0, np.uint32)


async def record(paths: VMPaths, look: Look, order: Pages = _NONE) -> None:
    """Look at each of the moments, and write down what was touched by then, behind `order`.

    The VMM may end meanwhile.
    """
    passed_s = 0.0
    for moment_s in MOMENTS_S:
        await asyncio.sleep(moment_s - passed_s)
        passed_s = moment_s
        now = await look()
        if len(now):
            order = np.concatenate([order, now[~np.isin(now, order)]])
            await asyncio.to_thread(write, paths, order)


async def record_faults(paths: VMPaths, pager: Pager) -> None:
    """As `record`, for memory that this pager serves by page faults."""

    async def asked() -> Pages:
        try:
            stretches = await pager.asked()
        except HatchError:  # it has ended
            return _NONE
        numbers = np.array(stretches, np.uint32) * np.uint32(AROUND_BYTES // _PAGE)
        pages: Pages = np.add.outer(numbers, np.arange(AROUND_BYTES // _PAGE, dtype=np.uint32)).ravel()
        return pages

    known = await asyncio.to_thread(read, paths)
    await record(paths, asked, _NONE if known is None else known)


async def record_file(paths: VMPaths, pid: int) -> None:
    """As `record`, for a file of memory that this process maps."""
    await record(paths, lambda: asyncio.to_thread(resident, pid, paths))


def resident(pid: int, paths: VMPaths) -> Pages:
    """Pages (of 4 KiB) of the memory file that are in this process's page table.

    A process in a jail has it by another name, and one on a file system of a pager by another number.
    """
    found: list[npt.NDArray[np.int64]] = []
    root = paths.root.resolve()
    names = {str(root / paths.memory.name), str(root / paths.lazy.name / paths.memory.name)}
    try:
        number = str(paths.memory.stat().st_ino)
        with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as table:
            for line in maps:
                span, _, offset, _, inode, *name = line.rstrip("\n").split(maxsplit=5)
                if not name or not (name[0] in names or (inode == number and name[0].endswith(_JAILED))):
                    continue
                start, end = (int(part, 16) for part in span.split("-"))
                raw = os.pread(table.fileno(), (end - start) // _PAGE * 8, start // _PAGE * 8)
                present = np.flatnonzero(np.frombuffer(raw, np.uint64) & _PRESENT)
                found.append(present + int(offset, 16) // _PAGE)
    except OSError:  # the process has ended, or is not ours to look at
        return np.zeros(0, np.uint32)
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found])).astype(np.uint32)


def write(paths: VMPaths, order: Pages) -> None:
    """Replace what is known of the VM."""
    write_atomic(paths.order, order.astype("<u4").tobytes(), durable=False)


def read(paths: VMPaths) -> Pages | None:
    """What is known; None if nothing is."""
    try:
        data = paths.order.read_bytes()
    except FileNotFoundError:
        return None
    return np.frombuffer(data[: len(data) // 4 * 4], "<u4").astype(np.uint32)
