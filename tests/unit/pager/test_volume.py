"""A volume behaves like the plain file it stands for, in whatever order its frames arrive."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Corrupt
from hatchvm.base.paths import VMPaths
from hatchvm.pager import ledger
from hatchvm.pager.ledger import Ledger
from hatchvm.pager.volume import Volume
from hatchvm.snapshots.layout import DISK
from hatchvm.snapshots.manifest import FRAME, Manifest, Stream
from hatchvm.testing.lazy import BLOCK, KEYS, WHEN
from hatchvm.testing.vmm import STAMP

FRAMES: Final = 4
FRAME_SLOTS: Final = 64
_PUNCH: Final = 3


@dataclass
class Answer:
    """Notes what it was told, and does then what a test wants done."""

    told: Callable[[bytes | int], None]
    errors: list[int] = field(default_factory=list)

    def data(self, *parts: bytes) -> None:
        self.told(b"".join(parts))

    def wrote(self, count: int) -> None:
        self.told(count)

    def error(self, number: int) -> None:
        self.errors.append(number)


class Disk:
    """A volume over `slots` with a model of it beside it. Frames come when a test says so."""

    def __init__(self, folder: Path, slots: Sequence[int], short: int) -> None:
        self.paths = VMPaths(folder)
        size = len(slots) * BLOCK - short
        self.stream = Stream(DISK, size, np.array(slots, np.uint32))
        self.manifest = Manifest(
            snapshot_id=KEYS.snapshot_id,
            vm_id=KEYS.vm_id,
            created_at=WHEN,
            stamp=STAMP,
            vm_config="{}",
            block_bytes=BLOCK,
            packs=(),
            frames=np.zeros(FRAMES, FRAME),
            streams=(self.stream,),
            order=np.zeros(0, np.uint32),
            added_bytes=0,
        )
        self.plain = [os.urandom(FRAME_SLOTS * BLOCK) for _ in range(FRAMES)]
        self.model = bytearray()
        for slot in slots:
            frame, place = divmod(slot - 1, FRAME_SLOTS)
            self.model += self.plain[frame][place * BLOCK :][:BLOCK] if slot else bytes(BLOCK)
        del self.model[size:]
        self.done: set[int] = set()
        self.held: set[int] = set()
        self.lane = ThreadPoolExecutor(1)
        ledger.create(self.paths, KEYS, size, len(slots))
        self.open()

    def open(self) -> None:
        """As after a crash."""
        self.waiting: list[tuple[set[int], Callable[[int, memoryview], None], Callable[[int], None]]] = []
        self.done, self.held, self.changing = set(), set(), 0
        note = Ledger(self.paths, len(self.stream.slots))
        self.volume = Volume(self.paths.partial, self.manifest, self.stream, self.need, ledger=note, lane=self.lane)

    def need(self, frames: Sequence[int], take: Callable[[int, memoryview], None], then: Callable[[int], None]) -> None:
        for frame in set(frames) & self.held:
            take(frame, memoryview(self.plain[frame]))
        left = set(frames) - self.held - self.done
        if left:
            self.waiting.append((left, take, then))
        else:
            then(0)

    def arrive(self, frame: int, *, hold: bool) -> None:
        plain = memoryview(self.plain[frame])
        if hold and frame not in self.done:
            self.held.add(frame)
            for left, take, _ in self.waiting:
                if frame in left:
                    take(frame, plain)
        else:
            while not self.volume.spread(frame, plain):
                pass
            self.held.discard(frame)
            self.done.add(frame)
        told = [entry for entry in self.waiting if entry[0] == {frame}]
        self.waiting = [entry for entry in self.waiting if entry[0] != {frame}]
        for left, _, _ in self.waiting:
            left.discard(frame)
        for _, _, then in told:
            then(0)

    def read(self, offset: int, length: int) -> None:
        def same(data: bytes | int) -> None:
            assert data == bytes(self.model[offset : offset + length])

        self.volume.read(offset, length, Answer(same))  # type: ignore[arg-type]

    def write(self, offset: int, data: bytes) -> None:
        def model(count: bytes | int) -> None:
            self.changing -= 1
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + len(data)] = data

        self.changing += 1
        self.volume.write(offset, memoryview(data), Answer(model))  # type: ignore[arg-type]

    def punch(self, offset: int, length: int) -> None:
        def model(_: bytes | int) -> None:
            self.changing -= 1
            end = min(offset + length, len(self.model))
            self.model[offset:end] = bytes(max(0, end - offset))

        self.changing += 1
        self.volume.allocate(offset, length, _PUNCH, Answer(model))  # type: ignore[arg-type]

    def resize(self, size: int) -> None:
        def model(code: int) -> None:
            assert code == 0
            self.changing -= 1
            del self.model[size:]
            self.model.extend(bytes(size - len(self.model)))

        self.changing += 1
        self.volume.resize(size, model)

    def everything_arrives(self) -> None:
        for frame in range(FRAMES):
            self.arrive(frame, hold=False)

    def content(self) -> bytes:
        return (self.paths.disk if self.paths.disk.exists() else self.paths.partial).read_bytes()


@contextmanager
def disk(slots: Sequence[int], short: int = 0) -> Iterator[Disk]:
    with TemporaryDirectory() as folder:
        made = Disk(Path(folder), slots, short)
        with made.lane:
            yield made


#: Zeros, blocks of few frames, the same block in several places.
SLOTS: Final = st.lists(
    st.one_of(
        st.just(0),
        st.builds(lambda frame, place: 1 + frame * FRAME_SLOTS + place, st.integers(0, 3), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=12,
)
SPOT: Final = st.one_of(st.integers(0, 14 * BLOCK), st.integers(0, 14).map(lambda block: block * BLOCK))
LENGTH: Final = st.one_of(st.integers(1, 4 * BLOCK), st.integers(1, 4).map(lambda blocks: blocks * BLOCK))
OPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("read"), SPOT, LENGTH),
        st.tuples(st.just("write"), SPOT, LENGTH),
        st.tuples(st.just("punch"), SPOT, LENGTH),
        st.tuples(st.just("resize"), SPOT, st.just(0)),
        st.tuples(st.just("arrive"), st.integers(0, FRAMES - 1), st.just(0)),
        st.tuples(st.just("hold"), st.integers(0, FRAMES - 1), st.just(0)),
    ),
    max_size=25,
)


def run(disk: Disk, ops: Sequence[tuple[str, int, int]]) -> None:
    actions: dict[str, Callable[[int, int], Any]] = {
        "read": disk.read,
        "write": lambda offset, length: disk.write(offset, os.urandom(length)),
        "punch": disk.punch,
        "resize": lambda size, _: disk.resize(size),
        "arrive": lambda frame, _: disk.arrive(frame, hold=False),
        "hold": lambda frame, _: disk.arrive(frame, hold=True),
    }
    for name, first, second in ops:
        if name in ("resize", "write", "punch") and disk.changing:
            disk.everything_arrives()  # the kernel makes one change of a file after the other
        actions[name](first, second)


@settings(deadline=None)  # files are slow on a busy host
@given(SLOTS, st.integers(0, BLOCK - 1), OPS)
def test_it_is_the_file_it_stands_for(slots: list[int], short: int, ops: list[tuple[str, int, int]]) -> None:
    with disk(slots, short) as made:
        run(made, ops)
        made.everything_arrives()
        assert not made.waiting
        assert made.volume.missing_bytes == 0
        assert made.volume.size == len(made.model)
        assert made.content() == bytes(made.model)


@settings(deadline=None)
@given(SLOTS, st.integers(0, BLOCK - 1), OPS, OPS)
def test_what_was_synced_is_there_after_a_crash(
    slots: list[int], short: int, before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    """And every other block is that of the snapshot, or of some moment since."""
    with disk(slots, short) as made:
        run(made, [op for op in before if op[0] != "resize"])
        made.everything_arrives() if made.waiting else None
        made.volume.checkpoint()
        synced = bytes(made.model)
        run(made, [op for op in after if op[0] in ("read", "arrive", "hold")])
        if made.paths.partial.exists():
            made.open()
            made.everything_arrives()
        assert made.content() == synced


@pytest.mark.parametrize("hold", [False, True])
def test_a_frame_that_comes_late_does_not_undo_a_write(hold: bool) -> None:
    with disk([1, 2, 3]) as made:
        made.read(0, 3 * BLOCK)
        made.write(BLOCK, b"n" * BLOCK)
        made.arrive(0, hold=hold)
        assert made.content()[BLOCK : 2 * BLOCK] == b"n" * BLOCK
        assert made.content() == bytes(made.model)


def test_a_part_of_a_block_is_written_when_the_rest_is_there() -> None:
    with disk([1]) as made:
        made.write(7, b"new")
        assert made.waiting
        made.arrive(0, hold=False)
        assert made.content()[7:10] == b"new"
        assert made.content() == bytes(made.model)


def test_a_frame_that_never_comes_is_an_error_for_whoever_needs_it() -> None:
    with disk([1]) as made:
        answer = Answer(lambda told: pytest.fail("answered"))
        made.volume.read(0, 10, answer)  # type: ignore[arg-type]
        (_, _, then), made.waiting = made.waiting[0], []
        then(errno.EIO)
        assert answer.errors == [errno.EIO]


def test_an_unknown_way_to_allocate_is_refused() -> None:
    with disk([1]) as made:
        answer = Answer(lambda told: pytest.fail("answered"))
        made.volume.allocate(0, BLOCK, 8, answer)  # type: ignore[arg-type]
        assert answer.errors == [errno.EOPNOTSUPP]


def test_a_whole_disk_gets_its_name_and_the_note_goes() -> None:
    with disk([1, 0]) as made:
        made.volume.checkpoint()
        assert ledger.source(made.paths) == KEYS
        made.arrive(0, hold=False)
        made.volume.checkpoint()
        assert ledger.source(made.paths) is None
        assert made.paths.disk.read_bytes() == bytes(made.model)
        assert not made.paths.lazy_map.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"x" * 5000])
def test_a_damaged_note_is_noticed(tmp_path: Path, damage: bytes) -> None:
    paths = VMPaths(tmp_path)
    ledger.create(paths, KEYS, BLOCK, 1)
    paths.lazy_map.write_bytes(damage)
    with pytest.raises(Corrupt):
        Ledger(paths, 1)
    paths.lazy_map.unlink()
    with pytest.raises(Corrupt):
        ledger.source(paths)


def test_a_note_of_another_disk_is_noticed(tmp_path: Path) -> None:
    paths = VMPaths(tmp_path)
    ledger.create(paths, KEYS, BLOCK, 1)
    with pytest.raises(Corrupt):
        Ledger(paths, 9)


def test_an_incomplete_disk_beside_a_whole_one_counts_for_nothing(tmp_path: Path) -> None:
    paths = VMPaths(tmp_path)
    ledger.create(paths, KEYS, BLOCK, 1)
    paths.disk.write_bytes(b"whole")
    assert ledger.source(paths) is None


@settings(deadline=None)
@given(SLOTS, st.sets(st.integers(0, FRAMES - 1)), st.sampled_from([1, 2, 4]), st.integers(0, 5), st.integers(1, 5))
def test_what_is_here_is_told_in_larger_and_smaller_units(
    slots: list[int], arrived: set[int], ratio: int, first: int, count: int
) -> None:
    with disk(slots) as made:
        for frame in arrived:
            made.arrive(frame, hold=False)
        blocks = [(not slot or (slot - 1) // FRAME_SLOTS in arrived, not slot) for slot in slots]
        small = BLOCK // ratio
        end = min((first + count) * small, len(slots) * BLOCK)
        if first * small < end:
            here, zero = made.volume.look(first * small, end, small)
            spots = range(first * small, end, small)
            assert list(zip(here.tolist(), zero.tolist(), strict=True)) == [blocks[at // BLOCK] for at in spots]
        large = BLOCK * ratio
        begin, end = first * large, min((first + count) * large, len(slots) * BLOCK)
        if begin < end:
            here, _ = made.volume.look(begin, end, large)
            spots = range(begin // BLOCK, -(-end // BLOCK), ratio)
            assert here.tolist() == [all(known for known, _ in blocks[at : at + ratio]) for at in spots]
