"""Kernel modules: which files a set of modules needs, in the order in which they can be inserted.

Read from the modules themselves (`depends=` in `.modinfo`): packages do not carry `modules.dep`.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unsupported

_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")
_SUFFIX: Final = re.compile(r"\.ko(\.xz)?$")


class Modules:
    """The modules of one kernel, found under `lib/modules/<release>`."""

    def __init__(self, folder: Path) -> None:
        self._files = {_name(file.name): file for file in folder.rglob("*.ko*")}
        self._builtin = {_name(Path(line).name) for line in (folder / "modules.builtin").read_text().splitlines()}

    def load_order(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """Module name -> uncompressed content, dependencies first; modules built into the kernel are left out.

        Raises Unsupported for a module that this kernel does not have.
        """
        order: dict[str, bytes] = {}
        for name in wanted:
            self._add(name, order)
        return order

    def _add(self, name: str, order: dict[str, bytes]) -> None:
        if name in order or name in self._builtin:
            return
        if name not in self._files:
            raise Unsupported(f"the kernel package has no module {name}")
        content = self._files[name].read_bytes()
        if self._files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = _DEPENDS.search(content)
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            self._add(_name(other), order)
        order[name] = content


def _name(file: str) -> str:
    return _SUFFIX.sub("", file).replace("-", "_")
