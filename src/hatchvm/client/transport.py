"""Calls over HTTP: JSON out, JSON in, every failure one of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import quote

import httpx2

from hatchvm.base.errors import Invalid, Unavailable
from hatchvm.client.errors import ApiError

#: A snapshot call returns when the upload is committed, which takes as long as it takes.
_CALL: Final = httpx2.Timeout(10.0, read=1800.0)
#: Reading all of an object store takes hours if it is large.
_PATIENT: Final = httpx2.Timeout(10.0, read=None)
#: The daemon sends a comment every 15 s into a quiet stream.
_STREAM: Final = httpx2.Timeout(10.0, read=60.0)


class Transport:
    """One daemon. `url`: e.g. `http://127.0.0.1:8080`. `key`: None for the calls that need none."""

    def __init__(self, url: str, key: str | None) -> None:
        """Raises Invalid for a URL or key that cannot be used."""
        if key is not None and not (key.isascii() and key.isprintable()):
            raise Invalid("the API key holds characters that no key has")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._url = url
        try:
            # Not through the environment's proxies, nor with the .netrc's passwords: the key goes to `url` alone.
            # Reading the certificate authorities takes 40 ms: plain HTTP does without.
            verify = not url.startswith("http://")
            self._http = httpx2.Client(base_url=url, headers=headers, timeout=_CALL, trust_env=False, verify=verify)
        except httpx2.InvalidURL:
            raise Invalid(f"{url!r} is not a URL") from None

    def call(self, method: str, *path: str, body: Mapping[str, Any] | None = None, patient: bool = False) -> Any:
        """The JSON that the daemon answers. Raises ApiError, or Unavailable if there is no daemon.

        `patient`: wait for the answer as long as the connection lives.
        """
        with self._translated():
            answer = self._http.request(method, _join(path), json=body, timeout=_PATIENT if patient else _CALL)
        return _read(answer)

    @contextmanager
    def lines(self, *path: str, params: Mapping[str, str]) -> Iterator[Iterator[str]]:
        """The lines of an endless answer, as they come. Raises as `call` does, while they are read too."""
        with (
            self._translated(),
            self._http.stream("GET", _join(path), params=params, timeout=_STREAM) as answer,
        ):
            if not answer.is_success:
                answer.read()
                _read(answer)
            yield answer.iter_lines()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
            raise Invalid(f"{self._url!r} is not an http:// or https:// URL") from None
        except httpx2.ConnectError:
            raise Unavailable(f"nothing answers at {self._url}; is `hatchvm serve` running?") from None
        except httpx2.TransportError as error:
            raise Unavailable(f"the connection to {self._url} broke: {type(error).__name__}") from None


def _join(path: tuple[str, ...]) -> str:
    return "/" + "/".join(quote(part, safe="") for part in path)


def _read(answer: httpx2.Response) -> Any:
    try:
        content = answer.json()
    except ValueError:
        content = None
    if answer.is_success and content is not None:
        return content
    if isinstance(content, dict) and isinstance(content.get("error"), str):
        raise ApiError(answer.status_code, content["error"], retry_after_s=_retry_after_s(answer), answer=content)
    raise ApiError(answer.status_code, f"{answer.url.host} does not answer like a Hatch daemon")


def _retry_after_s(answer: httpx2.Response) -> float | None:
    value = answer.headers.get("retry-after", "")
    return float(value) if value.isdecimal() else None


def data_of(lines: Iterator[str]) -> Iterator[Any]:
    """The JSON of each server-sent event. Ours have one `data` line each."""
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
