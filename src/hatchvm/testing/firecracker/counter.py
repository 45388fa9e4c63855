"""A guest of a few dozen bytes, for a real Firecracker on a host whose KVM runs no stock kernel.

It counts in its memory for as long as it runs, and writes the count to pages beside. What it has counted can be read
from the memory file once it was saved. It needs no device, and speaks to one only: the keyboard controller, which
resets the machine when the count is high enough.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

#: Where the guest keeps its count, as 8 bytes, little-endian; the pages that it writes follow, each with the count as
#: it was when the page was written last.
COUNT_AT: Final = 0x200000
PAGES_AT: Final = 0x300000
PAGES: Final = 256

_LOADED_AT: Final = 0x1000000
_PAGE: Final = 4096
_HEADER: Final = "<16sHHIQQQIHHHHHH"
_SEGMENT: Final = "<IIQQQQQQ"
_X86_64: Final = 62


def write(target: Path, *, resets_at: int = 0x7FFFFFFF) -> Path:
    """An ELF file that Firecracker boots: it is entered in long mode, with low memory mapped as it lies.

    `resets_at`: at which count the guest resets its machine, which ends Firecracker.
    """
    code = _code(resets_at)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header = struct.pack(_HEADER, ident, 2, _X86_64, 1, _LOADED_AT, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack(_SEGMENT, 1, 7, _PAGE, _LOADED_AT, _LOADED_AT, len(code), len(code), _PAGE)
    target.write_bytes((header + segment).ljust(_PAGE, b"\0") + code)
    return target


def counted(memory: Path) -> int:
    """What it had counted when it was saved."""
    with memory.open("rb") as file:
        return int.from_bytes(os.pread(file.fileno(), 8, COUNT_AT), "little")


def sound(memory: Path) -> bool:
    """True if every page holds the last count that belongs there: no page is older than the count, none is lost."""
    count = counted(memory)
    with memory.open("rb") as file:
        raw = os.pread(file.fileno(), PAGES * _PAGE, PAGES_AT)
    found = [int.from_bytes(raw[number * _PAGE : number * _PAGE + 8], "little") for number in range(PAGES)]
    # The guest may have been stopped between counting and writing.
    return all(found[n % PAGES] == n for n in range(max(1, count - PAGES + 1), count)) and max(found) in (
        count,
        count - 1,
    )


def _code(resets_at: int) -> bytes:
    return b"".join(
        [
            bytes.fromhex("bb") + struct.pack("<I", COUNT_AT),  # mov ebx, COUNT_AT
            bytes.fromhex("48 ff 03"),  # again: inc qword [rbx]
            bytes.fromhex("48 8b 0b"),  # mov rcx, [rbx]
            bytes.fromhex("0f b6 c1"),  # movzx eax, cl
            bytes.fromhex("c1 e0 0c"),  # shl eax, 12
            bytes.fromhex("48 89 88") + struct.pack("<I", PAGES_AT),  # mov [rax + PAGES_AT], rcx
            bytes.fromhex("81 f9") + struct.pack("<I", resets_at),  # cmp ecx, resets_at
            bytes.fromhex("72 e5"),  # jb again
            bytes.fromhex("b0 fe e6 64"),  # mov al, 0xfe; out 0x64, al
            bytes.fromhex("f4 eb fd"),  # hlt; jmp hlt
        ]
    )
