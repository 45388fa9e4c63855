"""What the daemon and its workers say: every message comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import HatchError, Internal, Invalid, Kind, Unavailable
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.edge.http.workers import wire
from hatchvm.ports.feed import Sight

ids = st.text(min_size=1, max_size=64)
texts = st.text(max_size=300)
numbers = st.integers(0, 2**53)
ports = st.integers(0, 65535)
seconds = st.floats(0, 1e6)
moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
vms = st.builds(wire.VMRow, ids, st.none() | texts, st.none() | st.sampled_from(State), st.booleans())
maybe = st.none() | texts, st.none() | moments
routes = st.builds(wire.RouteRow, ids, ids, texts, ports, st.booleans(), moments, moments, *maybe)
orders = st.one_of(
    st.builds(
        wire.Settings,
        texts,
        ports,
        st.lists(texts),
        seconds,
        seconds,
        st.integers(1, 8),
        st.floats(0, 1),
        st.none() | st.builds(wire.TLS, texts, ports, st.lists(st.tuples(ids, ids), min_size=1)),
        st.sampled_from(["debug", "error"]),
        st.sampled_from(["json", "console"]),
    ),
    st.builds(wire.VMs, st.lists(vms, max_size=5)),
    st.builds(wire.Routes, st.lists(routes, max_size=5)),
    st.builds(wire.Gone, routes),
    st.builds(wire.Serve),
    st.builds(wire.Done, numbers),
    st.builds(wire.Failed, numbers, st.sampled_from(Kind), texts, st.none() | seconds),
    st.builds(wire.Drain),
)
reports = st.one_of(
    st.builds(wire.Serving),
    st.builds(wire.Unable, numbers, texts),
    st.builds(wire.Come, ids, texts),
    st.builds(wire.Left, ids, moments),
    st.builds(wire.Used, st.dictionaries(ids, moments, max_size=5)),
    st.builds(wire.Need, numbers, ids, texts, seconds, texts),
    st.builds(wire.Dial, numbers, ids, ports, seconds),
    st.builds(wire.Cancel, numbers),
    st.builds(wire.Counts, st.dictionaries(ids, st.tuples(numbers, numbers, numbers, numbers), max_size=5)),
)
words = st.text(max_size=10)
json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@given(orders)
def test_orders_come_back(order: wire.Order) -> None:
    assert wire.order(wire.encode(order)) == order


@given(reports)
def test_reports_come_back(report: wire.Report) -> None:
    assert wire.report(wire.encode(report)) == report


def test_every_message_is_among_the_examples() -> None:
    assert len(orders.branches) == len(get_args(wire.Order))
    assert len(reports.branches) == len(get_args(wire.Report))


@given(st.binary() | st.lists(json).map(lambda value: repr(value).encode()))
def test_bytes_that_are_no_message_are_refused(packet: bytes) -> None:
    for read in (wire.order, wire.report):
        with pytest.raises(Invalid):
            read(packet)


@given(reports, st.data())
def test_a_damaged_report_is_refused_or_read_as_another(report: wire.Report, data: st.DataObject) -> None:
    whole = bytearray(wire.encode(report))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        wire.report(bytes(whole))
    except Invalid:
        return


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"[]",
        b'["need"]',
        b'["need",1,"vm-1","http",1.0,"x","more"]',
        b'["need",-1,"vm-1","http",1.0,"x"]',
        b'["need",1,"","http",1.0,"x"]',
        b'["need",1,"vm-1","http",-1.0,"x"]',
        b'["need",1,"vm-1","http",NaN,"x"]',
        b'["dial",1,"vm-1",65536,1.0]',
        b'["dial",true,"vm-1",80,1.0]',
        b'["left","vm-1","2026-01-01T00:00:00"]',
        b'["used",{"vm-1":1.0}]',
        b'["come","%s",""]' % (b"x" * 65),
        b'["counts",{"rt-1":[1,2,3]}]',
        b'["serve"]',
        b"[" * 60000,
    ],
)
def test_hostile_reports_are_refused(packet: bytes) -> None:
    with pytest.raises(Invalid):
        wire.report(packet)


def test_a_full_batch_fits_a_packet() -> None:
    now = datetime.now(UTC)  # noqa: TID251
    route = wire.RouteRow("r" * 36, "v" * 36, "s" * 63, 65535, True, now, now, "d" * 253, now)
    vm = wire.VMRow("v" * 36, "n" * 63, State.SNAPSHOTTED, True)
    used = wire.Used({f"{number:036}": now for number in range(wire.BATCH)})
    rows: list[Any] = [wire.Routes([route] * wire.BATCH), wire.VMs([vm] * wire.BATCH), used]
    assert all(len(wire.encode(message)) <= wire.MAX_BYTES for message in rows)


@given(routes)
def test_a_route_is_carried_whole(row: wire.RouteRow) -> None:
    route = row.route()
    assert isinstance(route, Route)
    assert wire.RouteRow.of(route) == row


@given(vms)
def test_a_vm_is_carried_whole(row: wire.VMRow) -> None:
    sight = row.sight()
    assert isinstance(sight, Sight)
    assert wire.VMRow.of(sight) == row


def kinds() -> list[type[HatchError]]:
    return [kind for kind in HatchError.__subclasses__() if kind.kind not in (Kind.UNAUTHENTICATED, Kind.FORBIDDEN)]


@pytest.mark.parametrize("kind", kinds())
def test_errors_are_raised_again_as_they_were(kind: type[HatchError]) -> None:
    error = wire.Failed.of(1, kind("a sentence", detail="a secret", retry_after_s=3)).error()
    assert type(error) is kind
    assert (str(error), error.detail, error.retry_after_s) == ("a sentence", "", 3)


def test_an_endless_sentence_is_cut() -> None:
    failed = wire.Failed.of(1, Unavailable("x" * 100_000))
    assert wire.order(wire.encode(failed)) == failed


def test_an_error_that_no_gate_raises_is_internal() -> None:
    assert type(wire.Failed(1, Kind.FORBIDDEN, "no", None).error()) is Internal
