"""The memory that storing takes does not grow with the guest; a store gets at most a few packs at a time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hatchvm.base.units import MIB
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import FRAME, Sleeper, piece

_LIMIT_MIB: Final = 200
#: A process of its own, for `VmHWM` is the most memory that a process has ever had.
_CHILD: Final = """
import asyncio, sys
from pathlib import Path
from hatchvm.base.clock import SystemClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import Sleeper

class Drain(MemoryStore):
    async def put(self, key, data, *, if_absent=False):
        await super().put(key, b"" if key.startswith("packs/") else data, if_absent=if_absent)
        total.append(len(data))

def most_kib():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

total = []
vm = Sleeper(Drain(SystemClock()), Path(sys.argv[1]), SystemClock())
before = most_kib()
asyncio.run(vm.write())
print(most_kib() - before, sum(total))
"""


def test_a_large_guest_takes_little_memory(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    files = tmp_path / "files"
    files.mkdir()
    with (files / "memory").open("wb") as file:
        file.truncate(1024 * MIB)
        for number in range(75):
            os.pwrite(file.fileno(), os.urandom(4 * MIB), number * 13 * MIB)
    (files / "state").write_bytes(b"state")
    (files / "disk").write_bytes(b"disk")
    done = subprocess.run([sys.executable, "-c", _CHILD, tmp_path], capture_output=True, text=True, check=True)
    grown_kib, stored = map(int, done.stdout.split())
    record_property("grown_mib", grown_kib // 1024)
    assert stored > 300 * MIB
    assert grown_kib < _LIMIT_MIB * 1024


async def test_a_slow_store_gets_three_packs_at_a_time(tmp_path: Path) -> None:
    at_once = most = 0

    async def slow(step: str, key: str) -> None:
        nonlocal at_once, most
        if key.startswith("packs/"):
            at_once += 1 if step == "put" else -1
            most = max(most, at_once)
            for _ in range(100):
                await asyncio.sleep(0)

    store = MemoryStore(SteeredClock(), slow)
    vm = Sleeper(store, tmp_path, store.clock)
    vm.holds(memory=piece(6 * 64 * FRAME, "1"), state=b"")
    await vm.write()
    assert most <= 3
