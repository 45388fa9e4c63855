"""What tests know of a running S3 server, and what starting one takes, whichever it is."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from botocore.config import Config
from botocore.session import Session

#: Both are of no use to anybody: the servers listen on loopback only and end with the tests.
ACCESS_KEY: Final = "HATCHTESTKEY"
SECRET_KEY: Final = "hatch-test-secret-key"

_START_S: Final = 60.0
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server that answers at `endpoint` (http, path style). Its objects vanish with it."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)

    def client(self) -> Any:
        """A client as tests want it: what goes wrong is not tried again."""
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
        )
        return Session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=config,
        )

    def make_bucket(self, name: str) -> None:
        """`name`: 3 to 63 of `[a-z0-9-]`."""
        self.client().create_bucket(Bucket=name)


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def daemon(argv: Sequence[str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that ends with the block, at once: nothing it stores is worth a clean end.

    It also ends when this process is killed, so that no test run leaves one behind.
    """
    command = ["setpriv", "--pdeathsig", "KILL", *argv]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.kill()


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once `process` accepts connections. Raises RuntimeError with the end of its log if it does not."""
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(_LOOK_S)
    raise RuntimeError(f"{process.args!r} does not listen: {log.read_text(errors='replace')[-2000:]}")
