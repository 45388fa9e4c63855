"""What the proxy counted for each route, for Prometheus. Routes without traffic since the start have no figures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from hatchvm.edge.http.ledger import Ledger

_FIGURES: Final = (
    ("hatch_route_requests", "Requests, by route", "requests"),
    ("hatch_route_errors", "Of those, answered with a status from 500 up", "errors"),
    ("hatch_route_received_bytes", "Bytes of heads and bodies sent on to guests", "bytes_in"),
    ("hatch_route_sent_bytes", "Bytes of heads and bodies sent to clients", "bytes_out"),
)


class RouteCounters(Collector):
    """Reads a ledger whenever it is asked."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterator[CounterMetricFamily]:
        return self._families()

    def collect(self) -> Iterator[CounterMetricFamily]:
        counts = list(self._ledger.counts.values())
        for family, (_, _, figure) in zip(self._families(), _FIGURES, strict=True):
            for count in counts:
                family.add_metric([count.route.id, count.route.subdomain], getattr(count, figure))
            yield family

    @staticmethod
    def _families() -> Iterator[CounterMetricFamily]:
        for name, text, _ in _FIGURES:
            yield CounterMetricFamily(name, text, labels=["route", "subdomain"])
