"""QEMU as an operating-system process: see `base.process`."""

from __future__ import annotations

from collections.abc import Sequence

from hatchvm.base import process
from hatchvm.base.errors import Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import Marks, Process


def marks(paths: VMPaths) -> Marks:
    return Marks(record=paths.process, socket=paths.qmp, log=paths.vmm_log, program=b"qemu")


def spawn(argv: Sequence[str], paths: VMPaths, *, pass_fds: Sequence[int]) -> Process:
    """Start the VMM and write down who it is. Raises Unsupported if the program is not there."""
    try:
        return process.spawn(argv, marks(paths), pass_fds=pass_fds)
    except FileNotFoundError as error:
        raise Unsupported(f"{argv[0]} is not installed: apt-get install qemu-system-x86") from error


def find(paths: VMPaths) -> Process | None:
    """The live VMM that some earlier daemon started in this folder, or None."""
    return process.find(marks(paths))
