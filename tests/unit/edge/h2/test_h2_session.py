"""The library's connection with our limits, fed by hand; and a connection on a transport that only remembers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from h2.events import Event, RequestReceived
from h2.exceptions import DenialOfServiceError, ProtocolError
from hyperframe.frame import GoAwayFrame, PingFrame
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.edge.http.connection import Accepted
from hatchvm.edge.http.h2.budget import Budget
from hatchvm.edge.http.h2.connection import H2Connection
from hatchvm.edge.http.h2.session import Session
from hatchvm.edge.http.limits import Limits
from hatchvm.testing.stage import ManualClock

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PING = PingFrame(0, b"12345678").serialize()


def test_budgets() -> None:
    budget = Budget(capacity=2, per_s=1)
    assert [budget.spend(1) for _ in range(3)] == [True, True, False]
    budget.tick(10)
    budget.tick(11)
    assert not budget.spend(1)
    budget.tick(100)
    assert [budget.spend(1) for _ in range(3)] == [True, True, False]
    budget.earn(1.5)
    assert not budget.spend(1)


def test_frames_are_handled_one_by_one() -> None:
    """What one frame starts is known before the next one can end it, and is not lost if the next one is an error."""
    seen: list[Event] = []
    session = Session(seen.append, client_side=False)
    peer = Session(lambda _: None, client_side=True)
    peer.send_headers(1, [(":method", "GET")], end_stream=True)
    with pytest.raises(ProtocolError):
        session.receive(peer.data_to_send() + b"\0\0\0\x09\0\0\0\0\x01", 0)
    assert any(isinstance(event, RequestReceived) for event in seen)


def test_time_refills_the_budget_of_a_chatty_client() -> None:
    session = Session(lambda _: None, client_side=False)
    session.receive(PREFACE, 0)
    for second in range(30):
        session.receive(PING * 90, second)
    with pytest.raises(DenialOfServiceError):
        session.receive(PING * 1200, 30)


def test_streams_under_way_survive_a_goaway() -> None:
    session = Session(lambda _: None, client_side=True)
    session.send_headers(1, [(":method", "GET")], end_stream=False)
    session.receive(GoAwayFrame(0, last_stream_id=1).serialize() + PING, 0)
    session.send_data(1, b"more", end_stream=True)


@given(st.lists(st.binary(max_size=60), max_size=10), st.booleans())
def test_garbage_is_a_protocol_error_at_worst(pieces: list[bytes], framed: bool) -> None:
    session = Session(lambda _: None, client_side=False)
    session.receive(PREFACE, 0)
    try:
        for piece in pieces:
            head = len(piece[9:]).to_bytes(3) if framed else b""
            session.receive(head + piece[3:] if framed else piece, 0)
    except ProtocolError:
        return


class Remembers:
    """A transport whose peer reads nothing."""

    def __init__(self) -> None:
        self.written = 0
        self.reading = True
        self.closing = False

    def get_extra_info(self, name: str) -> Any:
        return self

    def setsockopt(self, *option: int) -> None:
        return

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def get_write_buffer_size(self) -> int:
        return self.written

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class House:
    """As much of a house as a connection without requests looks at."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.limits = Limits(wake_timeout_s=1, stream_idle_timeout_s=1)
        self.connections: list[Accepted] = []

    def opened(self, connection: Accepted) -> None:
        self.connections.append(connection)

    def closed(self, connection: Accepted) -> None:
        self.connections.remove(connection)


def test_replies_that_nobody_reads_stop_the_reading() -> None:
    """PINGs at a pace that no budget minds."""
    house, transport = House(), Remembers()
    connection = H2Connection(cast(Any, house))
    connection.connection_made(cast(asyncio.Transport, transport))
    connection.data_received(PREFACE)
    while transport.reading:
        house.clock.advance(10)
        connection.data_received(PING * 500)
    assert 256 * 1024 < transport.written < 300 * 1024
    assert not transport.closing


def test_reading_goes_on_when_replies_are_read() -> None:
    house, transport = House(), Remembers()
    connection = H2Connection(cast(Any, house))
    transport.written = 300 * 1024
    connection.connection_made(cast(asyncio.Transport, transport))
    seen = [transport.reading]
    connection.resume_writing()
    assert [*seen, transport.reading] == [False, True]
    connection.connection_lost(None)
    assert not house.connections
