"""How long the proxy waits for what, and how much it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Little servers listen with a backlog of five to ten.
FRESH_SLOTS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds without progress, unless said otherwise."""

    wake_timeout_s: float  # a request's wait for its VM, and then for the guest's port
    stream_idle_timeout_s: float  # a silent stream holds its VM no longer than this
    answer_timeout_s: float = 300.0  # no byte either way before the answer began
    head_timeout_s: float = 15.0  # from a head's first byte to its last
    keep_alive_timeout_s: float = 75.0  # a client between two requests
    linger_timeout_s: float = 2.0  # a client that was answered and still sends
    pool_timeout_s: float = 30.0  # an unused connection to a guest
    close_timeout_s: float = 3.0  # exchanges under way when the daemon goes down
    fresh_slots: int = FRESH_SLOTS  # new connections to one port that have not answered a byte yet
    fresh_slot_silence_s: float = 1.0  # without an answer to anybody, after which they no longer keep others waiting
    fresh_slot_timeout_s: float = 10.0  # after which one of them no longer does, whatever happens to others
    pooled_per_port: int = 256
    #: A request that must not be repeated only gets a pooled connection the guest is sure not to be closing right now:
    #: common servers close after 2 to 75 seconds without a request.
    trusted_idle_s: float = 1.0
