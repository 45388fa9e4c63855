"""What went through the proxy: counted for each route, and on request written down, one line an exchange."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

from hatchvm.domain.route import Route
from hatchvm.edge.http.proto.request import Request
from hatchvm.telemetry import logs

_log: Final = structlog.get_logger()
_SERVER_ERROR: Final = 500
#: W3C Trace Context, section 3.2: version, trace id, parent id, flags. Passed on to the guest as it came.
_TRACE: Final = re.compile(rb"\r\ntraceparent: *[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}", re.IGNORECASE)


class Count:
    """One route's traffic since the daemon started. Bytes are those of heads and bodies."""

    __slots__ = ("bytes_in", "bytes_out", "errors", "requests", "route")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.requests = 0
        self.errors = 0  # answered with a status from 500 up
        self.bytes_in = 0  # to the guest
        self.bytes_out = 0  # to the client


def _always(route: Route) -> bool:
    return True


class Ledger:
    """`log_share`: of the exchanges, how many are logged, 0.0 to 1.0; if any are, server errors always are.

    `exists`: whether a route is there still. One that is not is not counted, though its last exchanges end after it.
    """

    def __init__(self, log_share: float = 0.0, *, exists: Callable[[Route], bool] = _always) -> None:
        self.log_share = log_share
        self._exists = exists
        self._counts: dict[str, Count] = {}

    @property
    def counts(self) -> Mapping[str, Count]:
        """By the route's id."""
        return self._counts

    def count(self, route: Route, status: int, bytes_in: int, bytes_out: int) -> None:
        count = self._counts.get(route.id)
        if count is None:
            if not self._exists(route):
                return
            count = self._counts[route.id] = Count(route)
        count.requests += 1
        count.bytes_in += bytes_in
        count.bytes_out += bytes_out
        if status >= _SERVER_ERROR:
            count.errors += 1

    def add(self, route: Route, requests: int, errors: int, bytes_in: int, bytes_out: int) -> None:
        """What another process counted."""
        count = self._counts.setdefault(route.id, Count(route))
        count.requests += requests
        count.errors += errors
        count.bytes_in += bytes_in
        count.bytes_out += bytes_out

    def take(self) -> list[Count]:
        """What was counted since the last time, for another ledger to `add`."""
        counts, self._counts = self._counts, {}
        return list(counts.values())

    def saw_route(self, route: Route, there: bool) -> None:
        """A route changed, or (not `there`) is gone and forgotten."""
        if not there:
            self._counts.pop(route.id, None)
        elif count := self._counts.get(route.id):
            count.route = route

    def write(self, request: Request, status: int, **fields: Any) -> None:
        """Log an exchange, if it is chosen. The query is left out: people put secrets there."""
        if status < _SERVER_ERROR and random.random() >= self.log_share:  # a sample, not a secret
            return
        trace = _TRACE.search(request.head)
        if trace:
            fields["trace_id"] = trace[1].decode()
        _log.info(
            logs.REQUEST,
            method=request.method.decode(),
            host=request.host.decode(),
            path=request.target.partition(b"?")[0].decode(),
            status=status,
            **fields,
        )
