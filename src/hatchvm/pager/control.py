"""The pager's control socket: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any, Final

from hatchvm.base.errors import HatchError, Internal
from hatchvm.pager.session import Session
from hatchvm.pager.whole import WholeSession
from hatchvm.pager.work import answer

_MAX_LINE: Final = 4096
END: Final = "end"


def serve(listener: socket.socket, session: Session | WholeSession) -> None:
    """Answer until the session has ended; a request that takes long holds up no other."""
    threading.Thread(target=_accept, args=(listener, session), name="control", daemon=True).start()


def _accept(listener: socket.socket, session: Session | WholeSession) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_converse, args=(connection, session), name="control", daemon=True).start()


def _converse(connection: socket.socket, session: Session | WholeSession) -> None:
    with connection, connection.makefile("rb") as lines, contextlib.suppress(OSError):
        while line := lines.readline(_MAX_LINE):
            request = _request(line)
            try:
                connection.sendall(answer(_do(session, request)))
            finally:
                if request == END:
                    session.ended.set()


def _request(line: bytes) -> str:
    try:
        return str(json.loads(line)["do"])
    except (ValueError, KeyError, TypeError):
        return ""


def _do(session: Session | WholeSession, request: str) -> dict[str, Any] | HatchError:
    verbs = {
        "status": session.status,
        "asked": session.asked,
        "flush": session.flush,
        "finish": session.finish,
        END: session.end,
    }
    if request not in verbs:
        return Internal("the pager does not know this request")
    try:
        return verbs[request]()
    except HatchError as error:
        return error
