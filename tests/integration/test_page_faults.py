"""Memory that comes by page faults: real userfaultfds of processes that play the VMM, served by real pagers."""

from __future__ import annotations

import functools
import http.server
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.errors import Corrupt, Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.base.units import MIB
from hatchvm.pager import mount
from hatchvm.pager.regions import HUGE_PAGE
from hatchvm.pager.work import WholeWork
from hatchvm.snapshots.layout import MEMORY as MEMORY_FILE
from hatchvm.testing.lazy import BLOCK, Pager, Stored, paging, prepare, store
from hatchvm.testing.pager import faulty
from hatchvm.testing.pager.faulty import PAGE, Guest, guest

TROUBLE: Final = mount.probe() or faulty.trouble()
pytestmark = pytest.mark.skipif(TROUBLE is not None, reason=TROUBLE or "")

_DICE: Final = random.Random(11)
SIZE: Final = 8 * MIB
#: The memory has no hole; its mapping has one.
REGIONS: Final = [(0, 5 * MIB), (5 * MIB, 3 * MIB)]


def content(blocks: int) -> bytes:
    """Zeros, repetitions and noise, in stretches and alone."""
    parts: list[bytes] = []
    while len(parts) < blocks:
        kind = _DICE.randrange(3)
        length = _DICE.choice([1, 1, 3, 40])
        parts += [[bytes(BLOCK), b"same" * (BLOCK // 4), _DICE.randbytes(BLOCK)][kind] for _ in range(length)]
    return b"".join(parts[:blocks])


MEMORY: Final = content(SIZE // BLOCK)
DISK: Final = _DICE.randbytes(3 * BLOCK)
#: Not zeros: those are here from the start.
ORDER: Final = [page for page in (5, 6, 700, 1000, 1001) if any(MEMORY[page * BLOCK : (page + 1) * BLOCK])]


@pytest.fixture
async def stored(tmp_path: Path) -> Stored:
    return await store(tmp_path, memory=MEMORY, disk=DISK, order=ORDER)


@pytest.fixture
def paths(tmp_path: Path, stored: Stored) -> VMPaths:
    paths = VMPaths(tmp_path / "vm")
    prepare(paths, stored.manifest)
    return paths


@contextmanager
def served(paths: VMPaths, stored: Stored, where: dict[str, str] | None = None) -> Iterator[tuple[Pager, Guest]]:
    with (
        paging(paths, stored.work(paths, faults=True, where=where)) as pager,
        guest(paths.faults, REGIONS) as vmm,
    ):
        yield pager, vmm


class _Gated(http.server.SimpleHTTPRequestHandler):
    """Ranges of files, when the gate is open."""

    def __init__(self, gate: threading.Event, *args: Any, **more: Any) -> None:
        self._gate = gate
        super().__init__(*args, **more)

    def do_GET(self) -> None:
        assert self._gate.wait(60)
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        data = Path(self.translate_path(self.path)).read_bytes()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@contextmanager
def gated(stored: Stored, tmp_path: Path, gate: threading.Event) -> Iterator[dict[str, str]]:
    """Where the packs are: behind a server that answers when the gate is opened."""
    handler = functools.partial(_Gated, gate, directory=tmp_path / "objects")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield {pack: base + place.removeprefix(str(tmp_path / "objects")) for pack, place in stored.where.items()}
        finally:
            gate.set()
            server.shutdown()
            thread.join()


def everything(stored: Stored) -> set[int]:
    return set(range(len(stored.manifest.frames)))


def needed(stored: Stored, blocks: list[int]) -> set[int]:
    """The frames in which these blocks of the memory are."""
    memory = next(stream for stream in stored.manifest.streams if stream.name == MEMORY_FILE)
    return {(int(slot) - 1) // stored.manifest.frame_slots for slot in memory.slots[blocks]}


def damage(stored: Stored, frames: set[int]) -> None:
    for frame in frames:
        row = stored.manifest.frames[frame]
        place = Path(stored.where[stored.manifest.packs[int(row["pack"])].id])
        place.chmod(0o600)
        with place.open("r+b") as pack:
            pack.seek(int(row["offset"]))
            pack.write(bytes(int(row["length"])))


def until(true: Callable[[], bool]) -> None:
    """Wait for what is only a matter of time."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pages(offset: int, length: int) -> bytes:
    return MEMORY[offset : offset + length]


def test_a_guest_finds_its_memory_and_its_disk(paths: VMPaths, stored: Stored) -> None:
    with served(paths, stored) as (pager, vmm):
        assert vmm.read(1000 * BLOCK, BLOCK) == MEMORY[1000 * BLOCK : 1001 * BLOCK]
        assert vmm.read(0, 5 * MIB) + vmm.read(5 * MIB, 3 * MIB) == MEMORY
        assert (paths.lazy / "disk").read_bytes() == DISK
        with pytest.raises(FileNotFoundError):
            (paths.lazy / "memory").stat()
        pager.ask("finish")
    assert paths.memory.read_bytes() == MEMORY


@pytest.mark.parametrize("seed", range(2))
def test_it_is_the_memory_that_it_stands_for_whatever_a_guest_does(paths: VMPaths, stored: Stored, seed: int) -> None:
    dice, model = random.Random(seed), bytearray(MEMORY)
    with served(paths, stored) as (_, vmm):
        for _ in range(150):
            start = dice.randrange(SIZE)
            region = next(end for at, size in REGIONS if start < (end := at + size))
            end = min(start + dice.choice([1, 100, 5000, 300_000]), region)
            do = dice.choice(["read", "read", "write", "give back"])
            if do == "read":
                assert vmm.read(start, end - start) == bytes(model[start:end])
            elif do == "write":
                model[start:end] = data = dice.randbytes(min(end - start, 5000)).ljust(end - start, b"x")
                vmm.write(start, data)
            else:
                start, end = start // PAGE * PAGE, -(-end // PAGE) * PAGE
                model[start:end] = bytes(end - start)
                vmm.give_back(start, end - start)
        assert vmm.read(0, 5 * MIB) + vmm.read(5 * MIB, 3 * MIB) == bytes(model)
    # What a guest writes is its own until it is captured; a late frame must not find it there.
    here = paths.memory.read_bytes()
    assert all(here[at : at + BLOCK] in (bytes(BLOCK), pages(at, BLOCK)) for at in range(0, SIZE, BLOCK))


def test_threads_that_fault_at_once_all_get_what_is_theirs(paths: VMPaths, stored: Stored) -> None:
    dice, spans = random.Random(3), []
    for _ in range(6):
        mine = [(at, PAGE) for at in range(0, SIZE, PAGE)]
        dice.shuffle(mine)
        spans.append(mine)
    with served(paths, stored) as (_, vmm):
        assert vmm.read_at_once(spans) == b"".join(pages(*span) for mine in spans for span in mine)


def test_threads_fault_while_others_give_back(paths: VMPaths, stored: Stored) -> None:
    dice, spans = random.Random(5), []
    holds = {
        frame: {page for page in range(SIZE // PAGE) if needed(stored, [page]) == {frame}}
        for frame in everything(stored)
    }
    lost = next(frame for frame, held in holds.items() if held and min(held) >= 3 * MIB // PAGE and not held & {*ORDER})
    damage(stored, {lost})  # or all would be installed soon
    for _ in range(4):
        mine = [
            (at, PAGE) for at in range(0, SIZE, PAGE) if not 2 * MIB <= at < 3 * MIB and at // PAGE not in holds[lost]
        ]
        dice.shuffle(mine)
        spans.append(mine)
    dropped = [(2 * MIB + dice.randrange(200) * PAGE, dice.randrange(1, 50) * PAGE) for _ in range(400)]
    with served(paths, stored) as (_, vmm):
        found = vmm.read_at_once(spans, meanwhile=dropped)
        assert found == b"".join(pages(*span) for mine in spans for span in mine)
        kept, given = (
            bytearray(pages(2 * MIB, MIB)),
            {at for start, size in dropped for at in range(start, start + size)},
        )
        for at in given:
            kept[at - 2 * MIB] = 0
        assert vmm.read(2 * MIB, MIB) == bytes(kept)


def test_a_guest_waits_for_a_store_that_is_slow(paths: VMPaths, stored: Stored, tmp_path: Path) -> None:
    gate, wanted = threading.Event(), ORDER[-1] * BLOCK
    damage(stored, everything(stored) - needed(stored, [wanted // BLOCK]))  # or all would be installed soon
    with gated(stored, tmp_path, gate) as where, served(paths, stored, where) as (pager, vmm):
        vmm.start({"read": [[[wanted, BLOCK]], [[wanted + 1, 1]]]})
        until(lambda: wanted // 65536 in pager.ask("asked")["asked"])
        assert pager.ask("status")["missing"]["memory"] > 0
        gate.set()
        assert vmm.answer() == pages(wanted, BLOCK) + pages(wanted + 1, 1)


def test_what_a_guest_has_given_back_is_zeros_even_if_it_comes_later(
    paths: VMPaths, stored: Stored, tmp_path: Path
) -> None:
    gate = threading.Event()
    with gated(stored, tmp_path, gate) as where, served(paths, stored, where) as (pager, vmm):
        vmm.give_back(2 * MIB, MIB)
        gate.set()
        pager.ask("finish")
        until(lambda: sum(vmm.resident()) == (SIZE - MIB) // PAGE)
        assert vmm.read(2 * MIB, MIB) == bytes(MIB)
        vmm.write(6 * MIB, b"written")
        vmm.give_back(6 * MIB, PAGE)
        assert vmm.read(6 * MIB - PAGE, 3 * PAGE) == pages(6 * MIB - PAGE, PAGE) + bytes(PAGE) + pages(
            6 * MIB + PAGE, PAGE
        )


def test_what_the_last_wake_needed_is_installed_before_all_is_here(paths: VMPaths, stored: Stored) -> None:
    damage(stored, everything(stored) - needed(stored, ORDER))
    with served(paths, stored) as (pager, vmm):
        until(lambda: all(vmm.resident()[page] for page in ORDER))
        assert pager.ask("asked")["asked"] == []
        assert [vmm.read(page * BLOCK, BLOCK) for page in ORDER] == [pages(page * BLOCK, BLOCK) for page in ORDER]


def test_the_rest_is_installed_when_it_is_here(paths: VMPaths, stored: Stored) -> None:
    with served(paths, stored) as (pager, vmm):
        pager.ask("finish")
        until(lambda: all(vmm.resident()))
        assert pager.ask("asked")["asked"] == []
        assert vmm.read(0, 5 * MIB) + vmm.read(5 * MIB, 3 * MIB) == MEMORY


def test_damage_ends_the_vmm_and_is_told(paths: VMPaths, stored: Stored) -> None:
    damage(stored, everything(stored))
    with served(paths, stored) as (pager, vmm):
        with pytest.raises(EOFError):
            vmm.read(0, 5 * MIB)
        assert vmm.ended() == -signal.SIGKILL
        assert "packs/" in pager.ask("status")["wrong"]["error"]
        with pytest.raises(Corrupt, match="packs/"):
            pager.ask("finish")


def test_a_vmm_that_ends_leaves_a_pager_that_still_completes_the_files(paths: VMPaths, stored: Stored) -> None:
    with served(paths, stored) as (pager, vmm):
        vmm.read(0, 1)
        vmm.child.kill()
        vmm.ended()
        pager.ask("finish")
        assert pager.ask("status") == {"missing": {"memory": 0, "disk": 0}, "wrong": None}
    assert paths.memory.read_bytes() == MEMORY
    assert paths.disk.read_bytes() == DISK


@pytest.mark.parametrize(
    ("message", "send"),
    [
        (json.dumps([{"base_host_virt_addr": 0, "size": SIZE + PAGE, "offset": 0, "page_size": PAGE}]), None),
        (None, 1),
        (None, 3),
    ],
)
def test_a_vmm_that_talks_nonsense_is_ended(paths: VMPaths, stored: Stored, message: str | None, send: int) -> None:
    with (
        paging(paths, stored.work(paths, faults=True)) as pager,
        guest(paths.faults, REGIONS, message=message, send=send) as vmm,
    ):
        assert vmm.ended() == -signal.SIGKILL
        wrong = pager.ask("status")["wrong"]["error"]
        assert "not understood" in wrong if message else "one userfaultfd" in wrong


def test_a_vmm_that_is_tried_again_is_served_too_and_the_socket_is_its_users(paths: VMPaths, stored: Stored) -> None:
    with served(paths, stored) as (_, vmm):
        assert paths.faults.stat().st_mode & 0o777 == 0o600
        vmm.write(0, b"its own")
        vmm.child.kill()
        with guest(paths.faults, REGIONS) as other:
            assert other.read(0, 5 * MIB) == pages(0, 5 * MIB)


def test_a_fault_where_it_said_nothing_of_ends_it(paths: VMPaths, stored: Stored) -> None:
    told = json.dumps([{"base_host_virt_addr": 1 << 40, "size": SIZE, "offset": 0, "page_size": PAGE}])
    with paging(paths, stored.work(paths, faults=True)) as pager, guest(paths.faults, REGIONS, message=told) as vmm:
        vmm.start({"read": [[[0, 1]]]})
        assert vmm.ended() == -signal.SIGKILL
        assert pager.ask("status")["wrong"]["error"]


@contextmanager
def whole(tmp_path: Path) -> Iterator[tuple[VMPaths, Pager]]:
    """A pager over memory that is all here, and was never stored."""
    paths = VMPaths(tmp_path / "vm")
    paths.root.mkdir()
    paths.memory.write_bytes(MEMORY)
    with paging(paths, WholeWork(paths.root)) as pager:
        yield paths, pager


def test_memory_that_is_whole_here_is_served_without_a_store(tmp_path: Path) -> None:
    with whole(tmp_path) as (paths, pager), guest(paths.faults, REGIONS) as vmm:
        vmm.write(2 * MIB, b"its own")
        vmm.give_back(6 * MIB, PAGE)
        until(lambda: sum(vmm.resident()) == SIZE // PAGE - 1)
        assert vmm.read(0, 5 * MIB) == pages(0, 2 * MIB) + b"its own" + pages(2 * MIB + 7, 3 * MIB - 7)
        assert vmm.read(5 * MIB, 3 * MIB) == pages(5 * MIB, MIB) + bytes(PAGE) + pages(6 * MIB + PAGE, 2 * MIB - PAGE)
        for do in ("status", "finish"):
            assert pager.ask(do) == {"missing": {}, "wrong": None}
        assert pager.ask("asked")["asked"]
        assert paths.memory.read_bytes() == MEMORY
        assert pager.ask("end") == {}
        assert pager.child.wait(30) == 0


def test_a_whole_memory_that_was_cut_ends_the_vmm_and_is_told(tmp_path: Path) -> None:
    with whole(tmp_path) as (paths, pager):
        os.truncate(paths.memory, 5 * MIB)
        with guest(paths.faults, REGIONS) as vmm:
            with pytest.raises(EOFError):
                vmm.read(5 * MIB, PAGE)
            assert vmm.ended() == -signal.SIGKILL
        assert "the file was cut" in pager.ask("status")["wrong"]["error"]


def test_whole_memory_that_is_not_there_is_told(tmp_path: Path) -> None:
    paths = VMPaths(tmp_path / "vm")
    paths.root.mkdir()
    with pytest.raises(Unavailable, match="files cannot be used"), paging(paths, WholeWork(paths.root)):
        pass


def huge_pages_here() -> int:
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    return int(free.split()[1])


@pytest.mark.skipif(huge_pages_here() < SIZE // HUGE_PAGE, reason="no huge pages are set aside here")
def test_huge_pages_are_installed_whole(paths: VMPaths, stored: Stored) -> None:
    regions = [(0, 6 * MIB), (6 * MIB, 2 * MIB)]
    with (
        paging(paths, stored.work(paths, faults=True)) as pager,
        guest(paths.faults, regions, page_bytes=HUGE_PAGE) as vmm,
    ):
        vmm.give_back(2 * MIB, 2 * MIB)
        assert vmm.read(4 * MIB - 5, 10) == bytes(5) + pages(4 * MIB, 5)
        pager.ask("finish")
        assert vmm.read(0, 6 * MIB) == pages(0, 2 * MIB) + bytes(2 * MIB) + pages(4 * MIB, 2 * MIB)
        assert vmm.read(6 * MIB, 2 * MIB) == pages(6 * MIB, 2 * MIB)


@pytest.mark.skipif(huge_pages_here() < SIZE // HUGE_PAGE, reason="no huge pages are set aside here")
def test_whole_memory_is_installed_in_huge_pages(tmp_path: Path) -> None:
    regions = [(0, 6 * MIB), (6 * MIB, 2 * MIB)]
    with whole(tmp_path) as (paths, _), guest(paths.faults, regions, page_bytes=HUGE_PAGE) as vmm:
        vmm.give_back(2 * MIB, 2 * MIB)
        assert vmm.read(0, 6 * MIB) == pages(0, 2 * MIB) + bytes(2 * MIB) + pages(4 * MIB, 2 * MIB)
        assert vmm.read(6 * MIB, 2 * MIB) == pages(6 * MIB, 2 * MIB)
