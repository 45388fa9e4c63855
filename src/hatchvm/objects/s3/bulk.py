"""Reading objects: presigned URLs and urllib3, at a fifth less CPU than botocore's reads (`python -m bench.s3`).

A body goes from the socket into the bytes that are returned, once: as cheap as a buffer that is used again. Some
servers answer a range with status 200, with the range or with the whole object: `Content-Range` tells which, and of a
whole object only what was asked is kept.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from botocore.httpsession import get_cert_path
from botocore.session import Session

from hatchvm.base.units import MIB
from hatchvm.objects.s3.control import CONNECT_S, CONNECTIONS, READ_S
from hatchvm.objects.s3.faults import Refusal

_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9._-]{1,64})</Code>")
_MAX_ERROR: Final = 16 * 1024
_SKIP: Final = MIB // 4


class Reads:
    """A pool of connections. May be used from any thread."""

    def __init__(self, url: str, session: Session) -> None:
        """`url`: any URL of the server that will be asked."""
        where = urlsplit(url)
        proxy = None if proxy_bypass(where.hostname or "") else getproxies().get(where.scheme)
        timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
        # The same proxy and the same authorities as botocore uses for everything else.
        authorities = session.get_config_variable("ca_bundle") or get_cert_path(True)
        self._http: urllib3.PoolManager = (
            urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, timeout=timeout, ca_certs=authorities)
            if proxy
            else urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout, ca_certs=authorities)
        )

    def read(self, url: str, start: int, length: int | None) -> bytes:
        """The object behind `url`, or at most `length` (> 0) bytes of it from `start`.

        Raises Refusal, or what urllib3 raises; never returns less than there is.
        """
        whole = start == 0 and length is None
        last = "" if length is None else start + length - 1
        response = self._http.request(
            "GET",
            url,
            headers={} if whole else {"Range": f"bytes={start}-{last}"},
            preload_content=False,
            decode_content=False,
            retries=False,
            redirect=False,
        )
        try:
            if response.status in (200, 206):
                return _cut_out(response, start, length)
            text = response.read(_MAX_ERROR)
        finally:
            response.close()  # breaks the connection only if something is left in it
        if response.status == 416:
            return b""
        code = _CODE.search(text)
        raise Refusal(response.status, code[1].decode() if code else "")


def _cut_out(response: urllib3.BaseHTTPResponse, start: int, length: int | None) -> bytes:
    part = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    first = int(part[1]) if part else 0
    there = response.headers.get("Content-Length", "")
    if first > start or not there.isdigit() or (response.status == 206 and not part):
        raise Refusal(response.status, "AnotherRange")
    total = int(part[3]) if part and part[3] != "*" else first + int(there)
    wanted = max(0, total - start if length is None else min(length, total - start))
    skip = start - first
    while skip > 0:
        skipped = len(response.read(min(skip, _SKIP)))
        if not skipped:
            break
        skip -= skipped
    data = response.read(wanted)
    if len(data) != wanted:
        raise urllib3.exceptions.IncompleteRead(len(data), wanted - len(data))
    return data
