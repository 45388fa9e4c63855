"""A wake from an S3 server when this host has nothing of the VM left, as its memory grows; and downloading it first."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from bench import vms
from bench.report import Row, machine, median, publish
from hatchvm.base.clock import SystemClock
from hatchvm.cli.child import ChildDaemon
from hatchvm.objects.s3.store import S3Store
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.testing.s3 import ceph
from hatchvm.testing.s3.places import BUCKET, place
from hatchvm.testing.s3.server import S3Server

#: Guest memory, and how much of it is filled with what cannot be compressed, in MiB.
_SIZES: Final = {256: 96, 2048: 1536}
_GROWTH_GOAL: Final = 1.5


def run(folder: Path, *, rounds: int) -> None:
    if lacking := ceph.missing():
        raise SystemExit(f"the part `restore` needs {', '.join(lacking)}: run scripts/test-servers as root")
    with ceph.running(folder / "ceph") as server:
        server.make_bucket(BUCKET)
        settings = {
            "HATCH_S3_ENDPOINT": server.endpoint,
            "HATCH_S3_BUCKET": BUCKET,
            "HATCH_S3_ACCESS_KEY": server.access_key,
            "HATCH_S3_SECRET_KEY": server.secret_key,
        }
        daemon = ChildDaemon(folder / "data", settings)
        daemon.start()
        try:
            rows = _restores(daemon, server, folder, rounds)
        finally:
            daemon.end()
    publish("restore", f"Hatch: waking from an S3 server ({machine()})", rows)


def _restores(daemon: ChildDaemon, server: S3Server, folder: Path, rounds: int) -> list[Row]:
    names = {size: f"restore-{size}" for size in _SIZES}
    ids = {size: vms.create(daemon, names[size], size, filled, noise=True) for size, filled in _SIZES.items()}
    lazy: dict[int, list[float]] = {size: [] for size in _SIZES}
    local: dict[int, list[float]] = {size: [] for size in _SIZES}
    whole: dict[int, list[float]] = {size: [] for size in _SIZES}
    for size in _SIZES:
        vms.await_page(daemon, names[size])
        vms.sleep(daemon, ids[size])
    for number in range(rounds + 1):  # the first warms caches, and records what a wake needs
        for size in _SIZES if number % 2 else reversed(_SIZES):
            local[size].append(vms.first_byte_s(daemon, names[size]))
            vms.sleep(daemon, ids[size])
            whole[size].append(_download_s(daemon, server, ids[size], folder) + local[size][-1])
            vms.forget(daemon, ids[size])
            lazy[size].append(vms.first_byte_s(daemon, names[size]))
            vms.sleep(daemon, ids[size])
    rows = []
    for size, filled in _SIZES.items():
        rows += [
            Row(f"{size} MiB, {filled} filled: wake from S3, p50", median(lazy[size][1:]), "s"),
            Row(f"{size} MiB: download everything, then start, p50", median(whole[size][1:]), "s"),
            Row(f"{size} MiB: wake from this host's copy, p50", median(local[size][1:]), "s"),
            Row(
                f"{size} MiB: from S3 against downloading first",
                median(lazy[size][1:]) / median(whole[size][1:]),
                "ratio",
            ),
        ]
    growth = median(lazy[max(_SIZES)][1:]) / median(lazy[min(_SIZES)][1:])
    return [*rows, Row(f"wake from S3 at {max(_SIZES)} MiB against {min(_SIZES)} MiB", growth, "ratio", _GROWTH_GOAL)]


def _download_s(daemon: ChildDaemon, server: S3Server, vm_id: str, folder: Path) -> float:
    """Seconds to fetch all of the VM's newest snapshot."""
    with daemon.client() as client:
        keys = SnapshotKeys(vm_id, client.list_snapshots(vm_id)[0]["id"])

    async def fetch() -> float:
        engine = SnapshotEngine(S3Store(place(server)), folder / "packs", SystemClock())
        began = time.perf_counter()
        manifest, _ = await engine.open(keys)
        await engine.fetch(manifest, folder / "download")
        return time.perf_counter() - began

    return asyncio.run(fetch())
