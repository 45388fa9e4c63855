"""An executable that tests name as HATCH_FIRECRACKER_BIN, and faults on demand."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

import hatchvm

RECORD: Final = "record"
_FAULTS: Final = "faults"
#: What a stand-in finds in its environment.
VERSION_SET, RECORD_SET, FAULTS_SET = "HATCH_STANDIN_VERSION", "HATCH_STANDIN_RECORD", "HATCH_STANDIN_FAULTS"


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with a call, in every process: not its first `after` times, and then `times` times.

    `refuse`: answered with `status`, nothing is done. `die`: killed before anything is done. `die after`: killed when
    it is done, before the answer. `hang`: never answered, nothing is done. `full`: a snapshot finds the disk full
    midway through the memory.
    """

    do: Literal["refuse", "die", "die after", "hang", "full"]
    status: int = 400
    after: int = 0
    times: int = 1_000_000


def binary(folder: Path, version: str = "1.16.1", faults: Mapping[str, Fault] | None = None) -> Path:
    """An executable `firecracker` in that folder, which plays this version.

    What it is asked is recorded in `folder / RECORD` (see `record`). Faults are by call, as `api.name` calls it:
    `PUT /snapshot/create`, `PATCH /vm Paused`, `PUT /actions InstanceStart`, `PUT /drives/{drive_id}`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    put_faults(folder, faults or {})
    settings = {
        "PYTHONPATH": str(Path(hatchvm.__file__).parents[1]),
        VERSION_SET: version,
        RECORD_SET: str((folder / RECORD).absolute()),
        FAULTS_SET: str((folder / _FAULTS).absolute()),
    }
    lines = [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]
    # The working directory is a VM's folder, not one of modules (-P); nothing but the standard library is needed (-S).
    lines += [f'exec {shlex.quote(sys.executable)} -P -S -m hatchvm.testing.firecracker "$@"', ""]
    script = folder / "firecracker"
    script.write_text("\n".join(["#!/bin/sh", *lines]))
    script.chmod(0o755)
    return script


def put_faults(folder: Path, faults: Mapping[str, Fault]) -> None:
    """From the next request on, in processes that run as well. They count calls from their start."""
    new = folder / f"{_FAULTS}.new"
    new.write_text(json.dumps({call: asdict(fault) for call, fault in faults.items()}))
    new.rename(folder / _FAULTS)


def fault(path: Path | None, call: str, earlier: int) -> Fault | None:
    """The one that this call meets, after that many earlier ones."""
    if path is None or not path.exists():
        return None
    found = json.loads(path.read_text()).get(call)
    met = Fault(**found) if found else None
    return met if met and met.after <= earlier < met.after + met.times else None
