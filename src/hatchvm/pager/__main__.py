"""A process that serves one VM's memory and disk while they are being fetched, or whole memory by page faults.

Started by the node, never by hand.
It reads its work from stdin, says one line on stdout when it serves (or why not), and then only talks on its socket. It
outlives the daemon, as the VMM does that runs on its files.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import traceback
from typing import Final

from hatchvm.base import sockets
from hatchvm.base.errors import HatchError, Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.pager import control
from hatchvm.pager.session import Session
from hatchvm.pager.whole import WholeSession
from hatchvm.pager.work import WholeWork, Work, answer, receive

_PR_SET_IO_FLUSHER: Final = 57
#: A thread that decompresses must not keep one that answers the guest waiting for the interpreter.
_SWITCH_S: Final = 0.0005


def main() -> None:
    work = receive(sys.stdin.buffer)
    if work is None:
        return
    threading.excepthook = _die
    sys.setswitchinterval(_SWITCH_S)
    # The kernel must not wait for us to free memory that it can only free through us.
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    try:
        session = _begin(work)
    except HatchError as error:
        sys.stdout.buffer.write(answer(error))
        sys.exit(1)
    sys.stdout.buffer.write(answer({"serves": os.getpid()}))
    sys.stdout.flush()
    _let_go(0, os.O_RDONLY)
    _let_go(1, os.O_WRONLY)
    session.ended.wait()
    os._exit(0)  # threads that wait for the store are not waited for


def _begin(work: Work | WholeWork) -> Session | WholeSession:
    paths = VMPaths(work.folder)
    try:
        os.chdir(paths.root)
        log = os.open(paths.pager_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(log, 2)
        listener = sockets.listen(paths.pager_socket, backlog=8)
        session = WholeSession(paths) if isinstance(work, WholeWork) else Session(work)
    except OSError as error:
        raise Unavailable(f"the VM's files cannot be used: {error.strerror}", detail=repr(error)) from error
    control.serve(listener, session)
    return session


def _let_go(fd: int, mode: int) -> None:
    null = os.open(os.devnull, mode)
    os.dup2(null, fd)
    os.close(null)


def _die(args: threading.ExceptHookArgs) -> None:
    """A thread that failed leaves a guest waiting for ever: a VM that is lost is better."""
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
