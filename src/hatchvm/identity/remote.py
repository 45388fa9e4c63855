"""Asking an outside verifier: POST `{"key": …}`, answered 200 with `{"valid": true}` or `{"valid": false}`.

Answers, good and bad, are remembered for a short while under the digest of the key, which itself is not kept. Whatever
is not such an answer counts as none: the request is refused as `unavailable`, and the next one asks again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

import httpx2

from hatchvm.base.clock import Clock
from hatchvm.base.errors import Invalid, Unavailable
from hatchvm.domain.key import digest_of

#: A flood of wrong keys must not fill the memory.
MAX_REMEMBERED: Final = 1024


class RemoteVerifier:
    """Implements `ports.identity.Verifier`."""

    def __init__(self, url: str, *, timeout_s: float, ttl_s: float, clock: Clock) -> None:
        """`timeout_s`: for one whole answer. `ttl_s`: how long it is believed. Raises Invalid for a bad URL."""
        self._url = _checked(url)
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._clock = clock
        self._answers: OrderedDict[str, tuple[bool, float]] = OrderedDict()
        # The environment's proxies and .netrc are not for keys.
        self._client = httpx2.AsyncClient(timeout=timeout_s, trust_env=False)

    async def verify(self, secret: str) -> bool:
        digest = digest_of(secret)
        valid, until = self._answers.get(digest, (False, 0.0))
        if self._clock.monotonic() < until:
            return valid
        valid = await self._ask(secret)
        self._remember(digest, valid)
        return valid

    async def close(self) -> None:
        """Close the connections to the verifier."""
        await self._client.aclose()

    def _remember(self, digest: str, valid: bool) -> None:
        self._answers[digest] = (valid, self._clock.monotonic() + self._ttl_s)
        self._answers.move_to_end(digest)
        if len(self._answers) > MAX_REMEMBERED:
            self._answers.popitem(last=False)

    async def _ask(self, secret: str) -> bool:
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.post(self._url, json={"key": secret})
        except (httpx2.HTTPError, TimeoutError) as error:
            raise _no_answer(type(error).__name__) from error
        return _read(answer)


def _checked(url: str) -> httpx2.URL:
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise Invalid("the key verifier's URL is malformed") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Invalid("the key verifier's URL must be http://… or https://…")
    return parsed


def _read(answer: httpx2.Response) -> bool:
    if answer.status_code != 200:
        raise _no_answer(f"status {answer.status_code}")
    try:
        content = answer.json()
    except ValueError as error:
        raise _no_answer("not JSON") from error
    valid = content.get("valid") if isinstance(content, dict) else None
    if not isinstance(valid, bool):
        raise _no_answer('no boolean "valid"')
    return valid


def _no_answer(detail: str) -> Unavailable:
    return Unavailable("the key verifier did not answer", detail=detail)
