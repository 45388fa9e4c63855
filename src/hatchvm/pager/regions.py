"""How a VMM has mapped its guest's memory, as it says in the message that comes with its userfaultfd.

A JSON array of `{"base_host_virt_addr", "size", "offset", "page_size"}`, all in bytes; `offset` is the place in the
memory file, where regions follow each other without the holes between their addresses. Source: Firecracker's snapshot
documentation. Whoever says it may have been taken over by its guest: nothing in it is believed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from hatchvm.base.errors import Invalid

PAGE: Final = 4096
HUGE_PAGE: Final = 2 * 1024 * 1024
#: A guest has two regions, and a few more with memory that was plugged in later.
_MAX_REGIONS: Final = 64
#: Addresses of user space on every architecture.
_MAX_ADDRESS: Final = 1 << 56


@dataclass(frozen=True, slots=True)
class Region:
    """`size` bytes from `offset` of the memory file are mapped at `address`."""

    offset: int
    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Layout:
    """All regions, by offset; they do not overlap, neither in the file nor in the process."""

    page_bytes: int
    regions: tuple[Region, ...]

    def offset(self, address: int) -> int | None:
        """The place in the file; None for an address in no region."""
        for region in self.regions:
            if region.address <= address < region.address + region.size:
                return region.offset + address - region.address
        return None

    def mapped(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """The parts of [start, end) of the file that are mapped: (start, end, address)."""
        for region in self.regions:
            first, last = max(start, region.offset), min(end, region.offset + region.size)
            if first < last:
                yield first, last, region.address + first - region.offset


def parse(message: bytes, size: int) -> Layout:
    """The layout of a memory of `size` bytes. Raises Invalid."""
    try:
        entries = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise _refused("it is not JSON") from error
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_REGIONS:
        raise _refused("it is not a list of a few regions")
    regions = sorted((_region(entry) for entry in entries), key=lambda region: region.offset)
    page_bytes = _number(entries[0], "page_size")
    if page_bytes not in (PAGE, HUGE_PAGE) or any(_number(entry, "page_size") != page_bytes for entry in entries):
        raise _refused("its pages have another size than 4 KiB or 2 MiB")
    for region in regions:
        if not region.size or any(value % page_bytes for value in (region.offset, region.address, region.size)):
            raise _refused("a region has no whole pages")
        if region.offset + region.size > size or region.address + region.size > _MAX_ADDRESS:
            raise _refused("a region lies outside of the memory")
    if _overlap([(region.offset, region.size) for region in regions]):
        raise _refused("regions overlap in the file")
    if _overlap(sorted((region.address, region.size) for region in regions)):
        raise _refused("regions overlap")
    return Layout(page_bytes, tuple(regions))


def _overlap(spans: Sequence[tuple[int, int]]) -> bool:
    return any(start + size > following for (start, size), (following, _) in pairwise(spans))


def _region(entry: Any) -> Region:
    return Region(_number(entry, "offset"), _number(entry, "base_host_virt_addr"), _number(entry, "size"))


def _number(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    if type(value) is not int or value < 0:
        raise _refused(f"{name} is missing or no number")
    return value


def _refused(why: str) -> Invalid:
    return Invalid("the VMM's message about the guest's memory is not understood", detail=why)
