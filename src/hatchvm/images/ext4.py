"""Root disks: a sparse ext4 file made without root.

`mke2fs -d` would take over the builder's uid and the order in which its file system lists names. `debugfs` writes
root-owned inodes in the order it is told: with fixed UUIDs and times, the same tree gives the same bytes on every host.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Final

from hatchvm.base.errors import Internal
from hatchvm.images.tools import run
from hatchvm.images.tree import Entry

BLOCK: Final = 4096
INODE_BYTES: Final = 256
_UUID: Final = "68617463-6876-6d00-0000-00000000000"
#: The same tree gives the same bytes.
_FIXED: Final = {"E2FSPROGS_FAKE_TIME": "1", "MKE2FS_CONFIG": "/dev/null"}
_FEATURES: Final = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,extra_isize,"
    "metadata_csum"
)


def make(disk: Path, entries: Iterable[Entry], *, size_mib: int, inodes: int, scratch: Path) -> None:
    """Write the entries to the new file `disk`. `scratch` is an empty folder for temporary files.

    The journal is kept (a VMM may be killed), as small as it can be; no inode table is left for the guest to zero.
    """
    blank(disk, size_mib=size_mib, inodes=inodes, journal_mib=4)
    script = scratch / "debugfs.commands"
    script.write_text("\n".join(_commands(entries, scratch)) + "\n")
    fill(disk, script)


def blank(disk: Path, *, size_mib: int, inodes: int, journal_mib: int, more_features: str = "") -> None:
    """Make the new file `disk` an empty ext4, the same bytes on every host. `more_features`: like `,dir_nlink`."""
    run(
        *("mke2fs", "-q", "-F", "-L", "root", "-b", str(BLOCK), "-m", "0", "-I", str(INODE_BYTES), "-N", str(inodes)),
        *("-J", f"size={journal_mib}", "-O", _FEATURES + more_features, "-U", f"{_UUID}1"),
        *("-E", f"hash_seed={_UUID}2,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"),
        *(str(disk), f"{size_mib}M"),
        env=_FIXED,
    )


def fill(disk: Path, script: Path) -> None:
    """Carry out a script of debugfs' commands on an ext4. Raises Internal with its complaints."""
    complaints = script.with_name("complaints")
    # What it says on stdout repeats every command: megabytes.
    with complaints.open("wb") as file:
        run("debugfs", "-w", "-f", str(script), str(disk), env=_FIXED, complaints=file)
    # It ends with 0 whatever happens; after its version it is silent when all is well.
    said = complaints.read_text("utf-8", errors="replace")
    wrong = [line for line in said.splitlines() if not line.startswith("debugfs 1.")]
    if wrong:
        raise Internal("writing the root disk failed", detail="\n".join(wrong)[-2000:])


def _commands(entries: Iterable[Entry], scratch: Path) -> Iterator[str]:
    # `write` and `symlink` take names in the current folder only.
    for folder, members in groupby(entries, key=lambda entry: PurePosixPath(entry.path).parent):
        yield f"cd /{folder}"
        for entry in members:
            yield from _create(entry, scratch)


def _create(entry: Entry, scratch: Path) -> Iterator[str]:
    name = PurePosixPath(entry.path).name
    if entry.kind == stat.S_IFDIR:
        yield f"mkdir {name}"
        yield f"set_inode_field {name} mode 0{entry.mode:o}"
    elif entry.kind == stat.S_IFLNK:
        yield f"symlink {name} {entry.data.decode()}"
    else:
        source = scratch / entry.path.replace("/", ":")
        source.write_bytes(entry.data)
        source.chmod(stat.S_IMODE(entry.mode))
        yield f'write "{source}" {name}'
