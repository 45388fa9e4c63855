"""The phases of a relay's conversation."""

from __future__ import annotations

from enum import Enum, auto


class Phase(Enum):
    """Where the conversation is."""

    IDLE = auto()  # between requests
    HEAD = auto()  # part of a request's head is here
    WAITING = auto()  # for a connection to the guest
    WAKING = auto()  # likewise, and the VM sleeps
    ANSWER = auto()  # the request is on its way, the answer's head is not complete
    STREAM = auto()  # the answer's body flows
    SPLICE = auto()  # another protocol's bytes flow both ways
    LINGER = auto()  # answered; what still comes is forgotten
    CLOSED = auto()
