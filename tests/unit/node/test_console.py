"""What the host keeps of a guest's console is bounded."""

from __future__ import annotations

from pathlib import Path

from hatchvm.base.paths import VMPaths
from hatchvm.node.console import MAX_BYTES, trim


def test_logs_that_grew_too_large_start_anew_under_their_writer(tmp_path: Path) -> None:
    paths = VMPaths(tmp_path)
    paths.vmm_log.write_bytes(b"x" * MAX_BYTES)
    with paths.console.open("ab", buffering=0) as writer:
        writer.truncate(MAX_BYTES + 1)
        trim(paths)
        writer.write(b"on")
    assert paths.console.read_bytes() == b"on"
    assert paths.vmm_log.stat().st_size == MAX_BYTES


def test_a_vm_that_has_no_logs(tmp_path: Path) -> None:
    trim(VMPaths(tmp_path))
    assert not [*tmp_path.iterdir()]
