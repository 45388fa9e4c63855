"""Processes that outlive the daemon, and are never mistaken for another.

Each runs in its own session with a VM's folder as its working directory. A file there names it by pid, start time and
boot id; a process whose start time differs is a stranger that got the same pid. If the daemon died before the file was
written, the working directory still tells whose it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from hatchvm.base.files import write_atomic

_TAIL_BYTES: Final = 2000


def boot_id() -> str:
    """Differs after every boot of the host: what was only in the page cache before it may be lost."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat: start time in clock ticks since boot. None if there is no such live process."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What a process leaves in its folder: a `record` of who it is, a `socket` while it may live, its stderr in `log`.

    `program`: a part of its command line. `inside`: its working directory is the folder; else the command line alone
    tells whose it is.
    """

    record: Path
    socket: Path
    log: Path
    program: bytes
    inside: bool = True


@dataclass(slots=True)
class Process:
    """One live process, ours or adopted. `child` is None for an adopted one: its exit status is unknowable."""

    pid: int
    marks: Marks
    child: subprocess.Popen[bytes] | None = None

    async def wait(self) -> int | None:
        """Return when it has ended: its exit code (negative: the signal), or None for an adopted one."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self._reap()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        return self._reap()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone already is success."""
        if self.child is not None:
            self.child.send_signal(number)
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def note(self) -> None:
        """Write down who it is. If that fails it is ended: nobody could find it again."""
        record = {"pid": self.pid, "start_ticks": start_ticks(self.pid), "boot_id": boot_id()}
        try:
            write_atomic(self.marks.record, json.dumps(record).encode(), durable=False)
        except BaseException:
            self.signal(signal.SIGKILL)
            self._reap()
            raise

    def forget(self) -> None:
        """Remove what names the process, after its end."""
        self.marks.record.unlink(missing_ok=True)
        self.marks.socket.unlink(missing_ok=True)

    def log_tail(self) -> str:
        """The end of what it wrote to stderr, one line."""
        try:
            text = self.marks.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        except FileNotFoundError:
            return ""
        return " | ".join(line.strip() for line in text.splitlines() if line.strip())

    def _reap(self) -> int | None:
        return self.child.wait() if self.child is not None else None


def spawn(
    argv: Sequence[str],
    marks: Marks,
    *,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    stdout: Path | None = None,
) -> Process:
    """Start a process and write down who it is. `cwd`: its folder if None. `stdout`: appended to; the log if None.

    Raises OSError.
    """
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(_appending(marks.log, os.O_TRUNC))
        child = subprocess.Popen(
            argv,
            cwd=cwd or marks.record.parent,
            stdin=subprocess.DEVNULL,
            stdout=opened.enter_context(_appending(stdout)) if stdout else log,
            stderr=log,
            start_new_session=True,
            pass_fds=pass_fds,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        )
    process = Process(child.pid, marks, child)
    process.note()
    return process


def _appending(path: Path, flags: int = 0) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | flags, 0o600), "wb", 0)


def find(marks: Marks) -> Process | None:
    """The live process that some earlier daemon started in this folder, or None."""
    pid = recorded(marks.record)
    if pid is not None:
        return Process(pid, marks)
    return _find_by_folder(marks) if marks.socket.exists() else None


def recorded(record: Path) -> int | None:
    """The pid of the process that this file names, if it lives."""
    try:
        named = json.loads(record.read_bytes())
        pid = int(named["pid"])
        if named["boot_id"] == boot_id() and start_ticks(pid) == named["start_ticks"] is not None:
            return pid
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def _find_by_folder(marks: Marks) -> Process | None:
    root = os.path.realpath(marks.record.parent)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if marks.inside and (entry / "cwd").readlink() != Path(root):
                continue
            if marks.program not in (entry / "cmdline").read_bytes():
                continue
        except OSError:  # ended meanwhile, or not ours to look at
            continue
        if start_ticks(int(entry.name)) is not None:
            return Process(int(entry.name), marks)
    return None
