"""`firecracker`, played. Prints and exits like the real one; see the package's text."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Final, NoReturn

from hatchvm.testing.firecracker import snapshot
from hatchvm.testing.firecracker.binary import FAULTS_SET, RECORD_SET, VERSION_SET
from hatchvm.testing.firecracker.machine import Machine
from hatchvm.testing.firecracker.record import Record
from hatchvm.testing.firecracker.server import Server

_FAILED, _BAD_ARGUMENTS = 1, 153
_VALUES: Final = "config-file log-path level module metrics-path http-api-max-payload-size mmds-size-limit"
_FLAGS: Final = "no-api no-seccomp show-level show-log-origin boot-timer enable-pci"


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"Error: ParseArguments({message})", file=sys.stderr)
        sys.exit(_BAD_ARGUMENTS)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asked = _parsed()
    version = os.environ.get(VERSION_SET, "1.16.1")
    code = 0
    if asked.version:
        print(f"Firecracker v{version}\n")
    elif asked.snapshot_version:
        print(_told(snapshot.FORMATS[version]))
    elif asked.describe_snapshot:
        code = _describe(asked.describe_snapshot)
    elif asked.no_api:
        code = _boot(asked.config_file)
    else:
        code = asyncio.run(_serve(asked.api_sock, asked.id, version))
    _farewell(asked.id, code)
    return code


def _farewell(vm_id: str, code: int) -> None:
    how = "successfully" if code == 0 else "with error"
    print(f"[{vm_id}:main] Firecracker exiting {how}. exit_code={code}", flush=True)


def _parsed() -> argparse.Namespace:
    parser = _Arguments(prog="firecracker", allow_abbrev=False, add_help=False)
    parser.add_argument("--api-sock", default="/run/firecracker.socket")
    parser.add_argument("--id", default="anonymous-instance")
    parser.add_argument("--describe-snapshot")
    for name in _VALUES.split():
        parser.add_argument(f"--{name}")
    for name in ("version", "snapshot-version", *_FLAGS.split()):
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


def _describe(path: str) -> int:
    try:
        print(_told(snapshot.version(path)))
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return _FAILED
    return 0


def _boot(config_file: str) -> int:
    """A guest that nobody talks to: its kernel says who it is, finds nothing to do, and resets."""
    try:
        kernel = json.loads(Path(config_file).read_text())["boot-source"]["kernel_image_path"]
        Path(kernel).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"Error: BuildFromJson({error!r})", file=sys.stderr)
        return _FAILED
    print("Linux version 0 (a stand-in's)", flush=True)
    return 0


def _told(version: tuple[int, int, int]) -> str:
    return "v" + ".".join(map(str, version))


async def _serve(api_sock: str, vm_id: str, version: str) -> int:
    """Until the guest shuts down or a snapshot cannot be loaded. The socket stays behind."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(api_sock)
        listener.listen()  # who sees the socket may connect at once
    except OSError as error:
        print(f"Error: RunWithApi({error})", file=sys.stderr)
        return _FAILED
    record, faults = (os.environ.get(name) for name in (RECORD_SET, FAULTS_SET))
    kept = Record(Path(record) if record else None)
    machine = Machine(version, vm_id, kept)
    server = Server(machine, kept, Path(faults) if faults else None)
    await asyncio.start_unix_server(server.connected, sock=listener)
    print(f"[{vm_id}:main] Running Firecracker v{version}", flush=True)
    code = await machine.ended
    _farewell(vm_id, code)
    os._exit(code)  # whoever is connected sees the end of a process, not that of a conversation


if __name__ == "__main__":
    sys.exit(main())
