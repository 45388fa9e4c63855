"""What the stand-ins of a test were asked, and what went wrong: JSON lines, one file for all of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Record:
    """Lines are appended whole, by several processes. `path` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def add(self, **line: Any) -> None:
        if self._path is None:
            return
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            os.write(fd, json.dumps({"pid": os.getpid(), **line}).encode() + b"\n")
        finally:
            os.close(fd)


def requests(path: Path) -> list[dict[str, Any]]:
    """In order: `pid`, `method`, `path`, `body` (parsed; text if it is not JSON), `phase`, `violations`, `status`."""
    return [line for line in _lines(path) if "method" in line]


def violations(path: Path) -> list[str]:
    """What a driver did that it must not do: a request that breaks the rules, files that do not fit one another."""
    found = []
    for line in _lines(path):
        found += [f"{line['method']} {line['path']}: {each}" for each in line.get("violations", ())]
        found += [line["violation"]] if "violation" in line else []
    return found


def agent_commands(path: Path) -> list[str]:
    """What guests' agents were asked to do, in order."""
    return [line["agent"] for line in _lines(path) if "agent" in line]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
