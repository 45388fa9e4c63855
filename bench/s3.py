"""`python -m bench.s3`: the S3 store against botocore's own calls, on Ceph over loopback, taking turns.

Throughput on a machine that also runs the server says little; CPU per gigabyte of the client is the figure to keep.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from bench.report import Row, machine, median, publish
from hatchvm.base.units import MIB
from hatchvm.objects.s3.store import S3Store
from hatchvm.testing.s3 import ceph
from hatchvm.testing.s3.places import BUCKET, place
from hatchvm.testing.s3.server import S3Server

_RANGE: Final = 8 * MIB
_GB: Final = 1e9


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.s3", description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--mib", type=int, default=256, help="bytes moved in one round")
    options.add_argument("--width", type=int, default=4, help="requests at once")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="hatchvm-bench-") as folder, ceph.running(Path(folder, "ceph")) as server:
        server.make_bucket(BUCKET)
        rows = asyncio.run(_compare(server, asked.rounds, asked.mib * MIB // _RANGE, asked.width))
    publish("s3", f"S3: 8 MiB at a time, {asked.width} at once ({machine()})", rows)


async def _compare(server: S3Server, rounds: int, count: int, width: int) -> list[Row]:
    store, client = S3Store(place(server)), server.client()
    data = [secrets.token_bytes(_RANGE) for _ in range(4)]
    await store.put("whole", b"".join(data))

    async def own_get(number: int) -> None:
        await store.get("whole", start=number % 4 * _RANGE, length=_RANGE)

    async def own_put(number: int) -> None:
        await store.put(f"put/{number}", data[number % 4])

    threads = ThreadPoolExecutor(width)
    calls: dict[str, Callable[[int], Any]] = {
        "get, store": own_get,
        "get, botocore": lambda number: _in(threads, _plain_get, client, number),
        "put, store": own_put,
        "put, botocore": lambda number: _in(threads, _plain_put, client, number, data[number % 4]),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls) if turn % 2 else list(calls)[::-1]:
            taken[name].append(await _round(calls[name], count, width))
    rows = []
    for name, samples in taken.items():
        wall_s, cpu_s = (median(column) for column in zip(*samples[1:], strict=True))  # the first warms
        rows.append(Row(f"{name}: throughput", count * _RANGE / wall_s / 1e6, "MB/s"))
        rows.append(Row(f"{name}: client's CPU", cpu_s / (count * _RANGE / _GB), "s/GB"))
    return rows


async def _round(call: Callable[[int], Any], count: int, width: int) -> tuple[float, float]:
    """Wall and CPU seconds of `count` calls, `width` at once."""
    numbers = iter(range(count))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(lane() for _ in range(width)))
    return time.perf_counter() - wall, time.process_time() - cpu


async def _in(threads: ThreadPoolExecutor, call: Callable[..., None], *arguments: Any) -> None:
    await asyncio.get_running_loop().run_in_executor(threads, call, *arguments)


def _plain_get(client: Any, number: int) -> None:
    first = number % 4 * _RANGE
    answer = client.get_object(Bucket=BUCKET, Key="whole", Range=f"bytes={first}-{first + _RANGE - 1}")
    assert len(answer["Body"].read()) == _RANGE


def _plain_put(client: Any, number: int, data: bytes) -> None:
    client.put_object(Bucket=BUCKET, Key=f"plain/{number}", Body=data)


if __name__ == "__main__":
    main()
