"""What this host remembers of packs: their tails, and which packs an upload stored that was not committed.

A memory only: every file is checked when read, and without it the tails are read from the store and an upload that was
cut off begins anew. Two kinds of files:

    <pack id>.tail                 as in the pack
    <vm id>.unfinished             a line of JSON for every pack of an upload that has not been committed yet
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Corrupt, Unsupported
from hatchvm.base.files import write_atomic
from hatchvm.snapshots.local import local_errors
from hatchvm.snapshots.manifest import Pack
from hatchvm.snapshots.pack import Tail, parse_tail
from hatchvm.snapshots.seal import Ring

_TAIL: Final = ".tail"
_UNFINISHED: Final = ".unfinished"


class Tails:
    """The folder `root`, which is made when first written to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, pack: Pack, ring: Ring) -> Tail | None:
        """None if it is not here, or not sound."""
        try:
            return parse_tail((self._root / f"{pack.id}{_TAIL}").read_bytes(), pack, ring)[0]
        except (OSError, Corrupt, Unsupported):
            return None

    def put(self, pack: Pack, stored: bytes) -> None:
        """Never fails, nor does `begun`: on a full disk nothing is remembered, and stored all the same."""
        with contextlib.suppress(OSError):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._root / f"{pack.id}{_TAIL}", stored, durable=False)

    def begun(self, vm_id: str, pack: Pack, at_s: float) -> None:
        """Note that an upload of this VM's has stored a pack, at that moment (seconds since the epoch)."""
        line = json.dumps([pack.id, pack.size, pack.key_id.hex(), at_s])
        with contextlib.suppress(OSError), self._unfinished(vm_id).open("a") as file:
            file.write(line + "\n")

    def unfinished(self, vm_id: str, since_s: float) -> list[Pack]:
        """The packs that uploads of this VM stored after that moment and did not commit."""
        try:
            lines = self._unfinished(vm_id).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        packs = []
        for line in lines:
            try:
                pack_id, size, key_id, at_s = json.loads(line)
                if at_s > since_s:
                    packs.append(Pack(str(pack_id), int(size), bytes.fromhex(key_id)))
            except (ValueError, TypeError):  # the daemon was killed while it wrote
                continue
        return packs

    def finished(self, vm_id: str) -> None:
        """Forget the packs of uploads of this VM. Never fails: remembered for too long, they are looked at in vain."""
        with contextlib.suppress(OSError):
            self._unfinished(vm_id).unlink(missing_ok=True)

    def keep_only(self, pack_ids: Collection[str]) -> None:
        """Forget the tails of all other packs."""
        with local_errors(self._root):
            for path in self._root.glob(f"*{_TAIL}"):
                if path.name.removesuffix(_TAIL) not in pack_ids:
                    path.unlink(missing_ok=True)

    def forget_uploads(self) -> None:
        """Every VM's upload begins anew."""
        with local_errors(self._root):
            for path in self._root.glob(f"*{_UNFINISHED}"):
                path.unlink(missing_ok=True)

    def _unfinished(self, vm_id: str) -> Path:
        return self._root / f"{vm_id}{_UNFINISHED}"
