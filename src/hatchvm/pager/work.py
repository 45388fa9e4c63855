"""What the node tells a pager over its stdin, and the two lines of talk between them.

One line of JSON, then the manifest as it is stored, if there is one. It holds presigned URLs and keys: it is never an
argument, never in the environment, never on disk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hatchvm.base import errors
from hatchvm.base.errors import HatchError, Internal
from hatchvm.snapshots.layout import SnapshotKeys

_KINDS = {kind.kind: kind for kind in (errors.Corrupt, errors.Unavailable, errors.Unsupported, errors.Exhausted)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One VM to serve from the store.

    `where`: pack id -> URL or absolute path. `ring`: keys of the snapshots' encryption, as hex.
    `mounted`: serve memory and disk; else only complete the disk. `faults`: the memory by page faults, to whoever
    connects to `VMPaths.faults`; else as a file.
    """

    folder: Path
    source: SnapshotKeys
    where: Mapping[str, str]
    ring: tuple[str, ...]
    mounted: bool
    faults: bool
    manifest: bytes

    def send(self, pipe: BinaryIO) -> None:
        head = {
            "whole": False,
            "folder": str(self.folder),
            "source": asdict(self.source),
            "where": dict(self.where),
            "ring": self.ring,
            "mounted": self.mounted,
            "faults": self.faults,
            "manifest": len(self.manifest),
        }
        pipe.write(json.dumps(head).encode() + b"\n")
        pipe.write(self.manifest)
        pipe.flush()


@dataclass(frozen=True, slots=True)
class WholeWork:
    """One VM whose memory is whole on this host: it is served by page faults, and nothing else is."""

    folder: Path

    def send(self, pipe: BinaryIO) -> None:
        pipe.write(json.dumps({"whole": True, "folder": str(self.folder)}).encode() + b"\n")
        pipe.flush()


def receive(pipe: BinaryIO) -> Work | WholeWork | None:
    """None if whoever kept this process ended without needing it."""
    line = pipe.readline()
    if not line:
        return None
    head = json.loads(line)
    folder = Path(head["folder"])
    if head["whole"]:
        return WholeWork(folder)
    return Work(
        folder=folder,
        source=SnapshotKeys(**head["source"]),
        where=head["where"],
        ring=tuple(head["ring"]),
        mounted=head["mounted"],
        faults=head["faults"],
        manifest=pipe.read(head["manifest"]),
    )


def answer(outcome: dict[str, Any] | HatchError) -> bytes:
    """One line: what was asked for, or why not."""
    return json.dumps(describe(outcome) if isinstance(outcome, HatchError) else outcome).encode() + b"\n"


def describe(error: HatchError) -> dict[str, str]:
    """An error as JSON."""
    return {"error": error.message, "kind": error.kind, "detail": error.detail}


def described(content: dict[str, Any]) -> HatchError:
    """The error again."""
    return _KINDS.get(content["kind"], Internal)(content["error"], detail=content["detail"])


def outcome(line: bytes) -> dict[str, Any]:
    """What `answer` made a line of; raises what it was given."""
    content: dict[str, Any] = json.loads(line)
    if "error" in content:
        raise described(content)
    return content
