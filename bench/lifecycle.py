"""Cold boot, pause window, wake: in one run, the things compared taking turns."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from bench import vms
from bench.bare import BareVM
from bench.report import Row, machine, median, percentile, publish
from hatchvm.base.paths import VMPaths
from hatchvm.cli.child import ChildDaemon
from hatchvm.cli.images import cache_dir
from hatchvm.domain.image import TINY
from hatchvm.images import builtin
from hatchvm.ports.vmm import LaunchPlan, NetPlan
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.reach import free_ports

#: Guest memory, and how much of it is filled, in MiB.
_SIZES: Final = {128: 32, 512: 256, 2048: 512}
_WAKE_MIB: Final = 256
_WAKE_GOAL: Final = 1.15
#: The pause of the largest guest against the smallest: what "does not grow with memory" may be on a noisy machine.
_PAUSE_GOAL: Final = 1.5


def run(folder: Path, *, wakes: int, pauses: int, boots: int) -> None:
    """`wakes`: pairs of wakes, Hatch and bare in turn; `pauses`: suspends of each memory size, in turn."""
    daemon = ChildDaemon(folder / "data", {})
    daemon.start()
    try:
        rows = [*_boots(daemon, boots), *_pauses(daemon, pauses), *_wakes(daemon, folder, wakes)]
    finally:
        daemon.end()
    publish("lifecycle", f"Hatch: boot, pause, wake ({machine()})", rows)


def _boots(daemon: ChildDaemon, rounds: int) -> list[Row]:
    taken = []
    for number in range(rounds):
        began = time.perf_counter()
        name = f"boot-{number}"
        vm_id = vms.create(daemon, name, _WAKE_MIB, 0)
        vms.first_byte_s(daemon, name)
        taken.append(time.perf_counter() - began)
        with daemon.client() as client:
            client.delete_vm(vm_id)
    return [Row("cold boot: create to first byte, p50", median(taken), "s")]


def _pauses(daemon: ChildDaemon, rounds: int) -> list[Row]:
    names = {size: f"pause-{size}" for size in _SIZES}
    ids = {size: vms.create(daemon, names[size], size, filled) for size, filled in _SIZES.items()}
    pauses: dict[int, list[float]] = {size: [] for size in _SIZES}
    for size in _SIZES:
        vms.await_page(daemon, names[size])
    for _ in range(rounds):
        for size in _SIZES:
            pauses[size].append(vms.sleep(daemon, ids[size]))
            vms.first_byte_s(daemon, names[size])
    with daemon.client() as client:
        for vm_id in ids.values():
            client.delete_vm(vm_id)
    rows = [Row(f"pause at {size} MiB, p50", median(taken) * 1000, "ms") for size, taken in pauses.items()]
    growth = median(pauses[max(_SIZES)]) / median(pauses[min(_SIZES)])
    return [*rows, Row(f"pause at {max(_SIZES)} MiB against {min(_SIZES)} MiB", growth, "ratio", _PAUSE_GOAL)]


def _wakes(daemon: ChildDaemon, folder: Path, rounds: int) -> list[Row]:
    vm_id = vms.create(daemon, "wake", _WAKE_MIB, 64)
    vms.await_page(daemon, "wake")
    vms.sleep(daemon, vm_id)
    bare = asyncio.run(_bare(daemon, vm_id, folder))
    hatch_s, bare_s = [], []
    try:
        for number in range(rounds + 1):
            for who in ("hatch", "bare") if number % 2 else ("bare", "hatch"):
                if who == "hatch":
                    hatch_s.append(vms.first_byte_s(daemon, "wake"))
                    vms.sleep(daemon, vm_id)
                else:
                    bare_s.append(bare.wake(vms.PAGE % b"wake"))
                    bare.sleep()
    finally:
        bare.remove()
    hatch_s, bare_s = hatch_s[1:], bare_s[1:]  # the first of each warms caches
    rows = []
    for share, label in ((0.5, "p50"), (0.99, "p99")):
        own, least = percentile(hatch_s, share), percentile(bare_s, share)
        rows += [Row(f"wake to first byte, {label}", own * 1000, "ms")]
        rows += [Row(f"bare QMP script, {label}", least * 1000, "ms")]
        rows += [Row(f"Hatch against bare, {label}", own / least, "ratio", _WAKE_GOAL if label == "p50" else None)]
    return rows


async def _bare(daemon: ChildDaemon, vm_id: str, folder: Path) -> BareVM:
    """A copy of the sleeping VM, with the launch plan that Hatch has for it."""
    image = await builtin.build(TINY, cache_dir(), lambda words: None)
    paths = BareVM.copy_of(daemon.paths.vm(vm_id), folder / "bare")
    with daemon.client() as client:
        vm = client.get_vm(vm_id)
    assert vm["guest_ip"] and vm["guest_mac"]
    forward = free_ports(1)[0]
    plan = LaunchPlan(
        vm_id=vm_id,
        paths=VMPaths(paths.root),
        boot=image.boot,
        boot_args=image.boot.boot_args,
        image_digest=image.digest,
        vcpu_count=1,
        mem_mib=_WAKE_MIB,
        net=NetPlan(guest_ip=vm["guest_ip"], guest_mac=vm["guest_mac"], forwards={8080: forward}),
        has_seed=True,
    )
    chosen = await Accelerator(
        "auto", memory=cache_dir() / "accel.json", binary=os.environ.get("HATCH_QEMU_BIN")
    ).machine(image.boot)
    return BareVM(plan, chosen, forward)
