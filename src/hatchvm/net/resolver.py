"""DNS questions, answered by the host's name servers or by one that the configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hatchvm.base.errors import Unavailable

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

_TIMEOUT_S: Final = 10.0


class DNSResolver:
    """Implements `ports.resolver.Resolver`."""

    def __init__(self, server: tuple[str, int] | None = None, *, timeout_s: float = _TIMEOUT_S) -> None:
        """`server`: IP address and port; None: those of the host's configuration, read at each question.

        `timeout_s`: for one whole answer, repeated questions included.
        """
        self._server = server
        self._timeout_s = timeout_s

    async def txt(self, name: str) -> Sequence[str]:
        # In a thread: dnspython takes up to a second to import, and requests are being proxied meanwhile.
        resolver, dns_error, no_such_record = await asyncio.to_thread(self._load)
        try:
            answer = await resolver.resolve(name, "TXT", search=False, lifetime=self._timeout_s)
        except no_such_record:
            return ()
        except (dns_error, OSError) as error:
            raise _no_answer(error) from error
        return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]

    def _load(self) -> tuple[Resolver, type[Exception], tuple[type[Exception], ...]]:
        import dns.asyncresolver
        import dns.exception
        import dns.resolver

        try:
            resolver = dns.asyncresolver.Resolver(configure=self._server is None)
        except dns.exception.DNSException as error:
            raise _no_answer(error) from error
        if self._server is not None:
            resolver.nameservers, resolver.port = [self._server[0]], self._server[1]
        return resolver, dns.exception.DNSException, (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer)


def _no_answer(error: Exception) -> Unavailable:
    return Unavailable("the name server did not answer; try again later", detail=f"{type(error).__name__}: {error}")
