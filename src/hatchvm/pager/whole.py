"""One VM being served whose memory is whole on this host, by page faults: its VMM takes no file.

Nothing is fetched, nothing is mounted, and the memory's file is only read. The node may ask for the same as of any
other pager.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from hatchvm.base import sockets
from hatchvm.base.paths import VMPaths
from hatchvm.pager.front import Front
from hatchvm.pager.memory import Whole
from hatchvm.pager.work import describe


class WholeSession:
    """Serves from its making until the process ends. Raises OSError if it cannot begin."""

    def __init__(self, paths: VMPaths) -> None:
        memory = Whole(paths.memory)
        self._front = Front(sockets.listen(paths.faults, backlog=1), memory, np.zeros(0, np.int64))
        #: Set when `end` was answered.
        self.ended = threading.Event()
        self._front.begin()

    def status(self) -> dict[str, Any]:
        """That nothing is missing, and why a VMM was ended, if one was."""
        wrong = self._front.failed
        return {"missing": {}, "wrong": describe(wrong) if wrong else None}

    def finish(self) -> dict[str, Any]:
        return self.status()

    def asked(self) -> dict[str, Any]:
        """See `session.Session.asked`."""
        return {"asked": self._front.asked()}

    def flush(self) -> dict[str, Any]:
        return {}

    def end(self) -> dict[str, Any]:
        """The process ends when this is answered."""
        return {}
