"""Answers that the proxy gives itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from http import HTTPStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request was not forwarded, in one sentence for its client."""

    status: int
    sentence: str
    retry_after_s: float | None = None

    def answer(self, date: str = "", *, close: bool, bodiless: bool = False) -> bytes:
        """The whole answer. `bodiless`: it answers a HEAD. `close`: say that the connection ends with it."""
        body = json.dumps({"error": self.sentence}).encode() + b"\n"
        lines = [
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}",
            *([f"Date: {date}"] if date else ()),
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if self.retry_after_s is not None:
            lines.append(f"Retry-After: {math.ceil(self.retry_after_s)}")
        if close:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if bodiless else body)
