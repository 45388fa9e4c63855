"""What the daemon and a proxy worker say to each other: pure, no socket.

A message is one JSON array, `[tag, field, ...]`, in one packet of at most `MAX_BYTES`. The daemon's messages are
`Order`, the worker's are `Report`. Whatever is not exactly one of them is refused with Invalid.

A conversation: the daemon sends `Settings`, the table (`VMs`, `Routes`), then `Serve`; the worker listens and answers
`Serving`. From then on the daemon sends every change of a VM or route; the worker asks, and every question (`Need`,
`Dial`) is answered by `Done` or `Failed` with its number, in any order. Either side may close the socket at any time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from hatchvm.base import errors
from hatchvm.base.errors import HatchError, Internal, Invalid, Kind
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.ports.feed import Sight

#: Far below the buffer of a Unix socket, which a packet must fit.
MAX_BYTES: Final = 64 * 1024
#: Rows of a table in one message, so that it fits.
BATCH: Final = 100

_ID = Annotated[str, Meta(min_length=1, max_length=64)]
_Text = Annotated[str, Meta(max_length=300)]
_Path = Annotated[str, Meta(min_length=1, max_length=4096)]
_Number = Annotated[int, Meta(ge=0, le=2**53)]
_Port = Annotated[int, Meta(ge=0, le=65535)]
_Seconds = Annotated[float, Meta(ge=0, le=1e6)]
_When = Annotated[datetime, Meta(tz=True)]

_KINDS: Final = {
    kind.kind: kind
    for kind in (
        errors.Invalid,
        errors.NotFound,
        errors.Conflict,
        errors.Unsupported,
        errors.Exhausted,
        errors.Unavailable,
        errors.Upstream,
        errors.UpstreamTimeout,
        errors.Corrupt,
    )
}


class _Message(Struct, array_like=True, forbid_unknown_fields=True):
    """A message is its fields, in order."""


# -- daemon -> worker


class TLS(_Message):
    """The TLS port. `pairs`: files of certificates and their keys, which the worker reads itself."""

    host: _Text
    port: _Port
    pairs: Annotated[list[tuple[_Path, _Path]], Meta(min_length=1)]


class Settings(_Message, tag="settings"):
    """The first message: all a worker needs of the configuration. Seconds; `base_domains` are lower case.

    `fresh_slots`: this worker's share of `Limits.fresh_slots`. `access_log`: see `Ledger`.
    """

    host: _Text
    port: _Port
    base_domains: list[_Text]
    wake_timeout_s: _Seconds
    stream_idle_timeout_s: _Seconds
    fresh_slots: Annotated[int, Meta(ge=1)]
    access_log: Annotated[float, Meta(ge=0, le=1)]
    tls: TLS | None
    log_level: Literal["debug", "info", "warning", "error"]
    log_format: Literal["json", "console"]


class VMRow(_Message):
    """See `ports.feed.Sight`."""

    vm_id: _ID
    name: _Text | None
    state: State | None
    addressed: bool

    @classmethod
    def of(cls, sight: Sight) -> VMRow:
        return cls(sight.vm_id, sight.name, sight.state, sight.addressed)

    def sight(self) -> Sight:
        return Sight(self.vm_id, self.name, self.state, self.addressed)


class VMs(_Message, tag="vms"):
    """These VMs are so now."""

    rows: Annotated[list[VMRow], Meta(max_length=BATCH)]


class RouteRow(_Message):
    """See `domain.route.Route`, of which a door needs not all."""

    id: _ID
    vm_id: _ID
    subdomain: _Text
    target_port: _Port
    auto_wake: bool
    created_at: _When
    updated_at: _When
    domain: _Text | None = None
    domain_verified_at: _When | None = None

    @classmethod
    def of(cls, route: Route) -> RouteRow:
        return cls(*(getattr(route, name) for name in cls.__struct_fields__))

    def route(self) -> Route:
        return Route(**msgspec.structs.asdict(self))


class Routes(_Message, tag="routes"):
    """These routes are there; one with a known id replaces it."""

    rows: Annotated[list[RouteRow], Meta(max_length=BATCH)]


class Gone(_Message, tag="gone"):
    """This route is there no longer."""

    row: RouteRow


class Serve(_Message, tag="serve"):
    """The table is complete: listen."""


class Done(_Message, tag="done"):
    """The answer to question `number`. To a `Dial` the connected socket comes with it (SCM_RIGHTS)."""

    number: _Number


class Failed(_Message, tag="failed"):
    """The other answer: what to tell the client."""

    number: _Number
    kind: Kind
    sentence: Annotated[str, Meta(max_length=2000)]
    retry_after_s: _Seconds | None

    @classmethod
    def of(cls, number: int, error: HatchError) -> Failed:
        return cls(number, error.kind, error.message[:2000], error.retry_after_s)

    def error(self) -> HatchError:
        return _KINDS.get(self.kind, Internal)(self.sentence, retry_after_s=self.retry_after_s)


class Drain(_Message, tag="drain"):
    """Listen no more, finish the exchanges under way, end."""


# -- worker -> daemon


class Serving(_Message, tag="serving"):
    """It listens."""


class Unable(_Message, tag="unable"):
    """It cannot listen: the system's error number and words. It ends."""

    number: _Number
    sentence: _Text


class Come(_Message, tag="come"):
    """A client came for a VM: lease it to this worker, and take back a suspend under way. May be repeated."""

    vm_id: _ID
    peer: _Text


class Left(_Message, tag="left"):
    """The lease on a VM is given back. `at`: when its last byte was moved."""

    vm_id: _ID
    at: _When


class Used(_Message, tag="used"):
    """When the last bytes of leased VMs were moved. Sent every second, if only to say that the worker lives."""

    vms: Annotated[dict[_ID, _When], Meta(max_length=BATCH)]


class Need(_Message, tag="need"):
    """See `ports.gate.Gate.need`."""

    number: _Number
    vm_id: _ID
    reason: _Text
    timeout_s: _Seconds
    by: _Text


class Dial(_Message, tag="dial"):
    """See `ports.gate.Gate.dial`."""

    number: _Number
    vm_id: _ID
    port: _Port
    timeout_s: _Seconds


class Cancel(_Message, tag="cancel"):
    """Nobody waits for the answer to this question any more."""

    number: _Number


class Counts(_Message, tag="counts"):
    """What was served since the last one: subdomain of a route -> (requests, errors, bytes in, bytes out)."""

    routes: Annotated[dict[_ID, tuple[_Number, _Number, _Number, _Number]], Meta(max_length=BATCH)]


Order: TypeAlias = Settings | VMs | Routes | Gone | Serve | Done | Failed | Drain
Report: TypeAlias = Serving | Unable | Come | Left | Used | Need | Dial | Cancel | Counts

_REFUSED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.json.Encoder()
_orders: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)
_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def encode(message: Order | Report) -> bytes:
    return _encoder.encode(message)


def order(packet: bytes) -> Order:
    """Raises Invalid."""
    try:
        return _orders.decode(packet)
    except _REFUSED as error:
        raise Invalid("not a message of the daemon", detail=str(error)) from error


def report(packet: bytes) -> Report:
    """Raises Invalid."""
    try:
        return _reports.decode(packet)
    except _REFUSED as error:
        raise Invalid("not a message of a worker", detail=str(error)) from error
