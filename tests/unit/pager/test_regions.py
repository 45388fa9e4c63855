"""What a VMM says about its memory is understood exactly, or not at all."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.pager.regions import HUGE_PAGE, PAGE, parse

PAGES: Final = 64


@st.composite
def truths(draw: st.DrawFn) -> tuple[int, list[dict[str, int]]]:
    """Regions of consecutive pages of the file, with holes between their addresses."""
    page = draw(st.sampled_from([PAGE, HUGE_PAGE]))
    sizes = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    address, offset, entries = draw(st.integers(1, 100)), 0, []
    for size in sizes:
        entry = {"base_host_virt_addr": address * page, "size": size * page, "offset": offset * page, "page_size": page}
        entries.append(entry | {"page_size_kib": page})
        address, offset = address + size + draw(st.integers(0, 9)), offset + size
    return page, draw(st.permutations(entries))


@given(truths())
def test_every_mapped_page_is_found_and_no_other(truth: tuple[int, list[dict[str, int]]]) -> None:
    page, entries = truth
    layout = parse(json.dumps(entries).encode(), PAGES * page)
    assert layout.page_bytes == page
    expected = {
        entry["base_host_virt_addr"] + at: entry["offset"] + at
        for entry in entries
        for at in range(0, entry["size"], page)
    }
    for address in range(0, 300 * page, page):
        assert layout.offset(address) == expected.get(address)
    end = sum(entry["size"] for entry in entries)
    for start, stop in ((0, end), (page, end - page), (end // page // 2 * page, PAGES * page)):
        found = {
            address + at: first + at
            for first, last, address in layout.mapped(start, stop)
            for at in range(0, last - first, page)
        }
        assert found == {address: offset for address, offset in expected.items() if start <= offset < stop}


def region(**other: Any) -> dict[str, Any]:
    return {"base_host_virt_addr": 16 * PAGE, "size": 2 * PAGE, "offset": 0, "page_size": PAGE} | other


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"[1]",
        [region()] * 65,
        [region(offset=number * 2 * PAGE, base_host_virt_addr=number * 2 * PAGE) for number in range(65)],
        [region(size=0)],
        [region(size=True)],
        [region(size=-PAGE)],
        [region(size=1.5 * PAGE)],
        [region(size="4096")],
        [region(size=PAGE + 1)],
        [region(offset=1)],
        [region(base_host_virt_addr=16 * PAGE + 8)],
        [region(page_size=0)],
        [region(page_size=8192)],
        [region(page_size=HUGE_PAGE)],
        [region(), region(offset=2 * PAGE, base_host_virt_addr=99 * HUGE_PAGE, page_size=HUGE_PAGE)],
        [region(size=(PAGES + 1) * PAGE)],
        [region(offset=(PAGES - 1) * PAGE)],
        [region(base_host_virt_addr=1 << 63)],
        [region(), region(base_host_virt_addr=90 * PAGE, offset=PAGE)],
        [region(), region(base_host_virt_addr=17 * PAGE, offset=2 * PAGE)],
        [{"size": PAGE}],
    ],
)
def test_anything_else_is_refused(said: bytes | list[Any]) -> None:
    with pytest.raises(Invalid):
        parse(said if isinstance(said, bytes) else json.dumps(said).encode(), PAGES * PAGE)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(Invalid):
        parse(noise, PAGES * PAGE)
