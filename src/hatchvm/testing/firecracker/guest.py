"""A guest without a CPU: what it does is to write into memory and disk, and to remember what it wrote.

Page 0 of its memory is its record: `life` (of this boot), `ticks`, `requests` answered, and what its kernel's command
line told it. It moves on by a tick when it boots, when it is resumed, when it is paused and with each request: then it
writes a few pages all over its memory, so a missing one shows, and the first block of its disk. Resumed, it compares
all of that with its device state; a real guest would be silently corrupted where this one writes down a violation.

Words of a command line that mean something to it: `standin.ip=198.18.0.10/24` and `standin.gw=198.18.0.1` (without
them it asks by DHCP), `standin.agent=no` (it has no guest agent), `standin.pages=<pages written with each tick>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final

from hatchvm.testing.firecracker.memory import PAGE, Memory

_BLOCK: Final = 512
_PAGES: Final = 8
_WORDS: Final = ("ip", "gw", "agent", "pages")


class Guest:
    """`disk`: a descriptor of its first writable drive. `violated` is told what does not fit. `reports`: free pages."""

    def __init__(
        self, memory: Memory, disk: int | None, violated: Callable[[str], None], *, reports: bool = False
    ) -> None:
        self.memory = memory
        self.disk = disk
        self.record: dict[str, Any] = {}
        self._loaded: dict[str, Any] | None = None
        self._violated = violated
        self._reports = reports
        self._gave_back = False

    def boot(self, boot_args: str) -> None:
        told = dict(word.removeprefix("standin.").split("=", 1) for word in boot_args.split() if _is_told(word))
        self.record = {"life": secrets.token_hex(4), "ticks": 0, "requests": 0, "told": told}
        self.tick()

    def load(self, saved: dict[str, Any]) -> None:
        """`saved`: what `state` returned. Its memory is not touched before it is resumed."""
        self._loaded = saved
        self.record = saved["memory"]

    @property
    def told(self) -> dict[str, str]:
        told: dict[str, str] = self.record["told"]
        return told

    def remember(self, **told: str) -> None:
        """What it was told by others than its kernel's command line."""
        self.told.update(told)
        self.tick()

    def state(self) -> dict[str, Any]:
        """What its device state knows of memory and disk."""
        return {"memory": self.record, "disk": self._read_disk()}

    def resume(self) -> None:
        if self._loaded is not None:
            self._compare(self._loaded)
            self._loaded = None
        self.tick()

    def pause(self) -> None:
        self.tick()

    def request(self) -> int:
        """Answer one: how many there were in this life."""
        self.record["requests"] += 1
        self.tick()
        return int(self.record["requests"])

    def tick(self) -> None:
        self.record["ticks"] += 1
        for page in self._work(self.record["ticks"]):
            self.memory.write(page, self._content(page, self.record["ticks"]))
        if self._reports:
            self._give_back(self.memory.size // PAGE - 1)
        self.memory.write(0, json.dumps(self.record).encode())
        if self.disk is not None:
            content = json.dumps({"ticks": self._read_disk()["ticks"] + 1}).encode()
            os.pwrite(self.disk, content.ljust(_BLOCK, b"\0"), 0)

    def _give_back(self, page: int) -> None:
        """Use a page, and report it as free. It must not come back with what it held."""
        if self._gave_back and any(self.memory.read(page)):
            self._violated(f"page {page} came back with what it held when it was given back")
        self.memory.write(page, bytes([1]) * PAGE)
        self.memory.give_back(page)
        self._gave_back = True

    def _compare(self, saved: dict[str, Any]) -> None:
        memory, disk = _parsed(self.memory.read(0)), self._read_disk()
        if (memory, disk) != (saved["memory"], saved["disk"]):
            self._violated(f"resumed with state {saved}, memory {memory}, disk {disk}")
            return
        written = {page: tick for tick in range(1, self.record["ticks"] + 1) for page in self._work(tick)}
        wrong = [page for page, tick in written.items() if self.memory.read(page) != self._content(page, tick)]
        if wrong:
            self._violated(f"resumed with stale or damaged pages {sorted(wrong)[:20]}")

    def _work(self, tick: int) -> Iterator[int]:
        """Which pages it writes then: some next to one another, others far away."""
        many = min(int(self.told.get("pages", _PAGES)), self.memory.size // PAGE - 2)
        for number in range(many):
            seed = hashlib.blake2b(f"{self.record['life']} {tick} {number // 2}".encode(), digest_size=8).digest()
            yield 1 + (int.from_bytes(seed, "big") + number % 2) % (self.memory.size // PAGE - 2)

    def _content(self, page: int, tick: int) -> bytes:
        return hashlib.blake2b(f"{self.record['life']} {tick} {page}".encode()).digest() * (PAGE // 64)

    def _read_disk(self) -> dict[str, Any]:
        """Its own block, or that of a disk it has never seen."""
        found = None if self.disk is None else _parsed(os.pread(self.disk, _BLOCK, 0))
        return found if found and isinstance(found.get("ticks"), int) else {"ticks": 0}


def _is_told(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and key.removeprefix("standin.") in _WORDS and key.startswith("standin.")


def _parsed(block: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(block.rstrip(b"\0"))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
