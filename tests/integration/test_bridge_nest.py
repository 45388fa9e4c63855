"""TAPs that a VMM opens by name: plugged in from a namespace of its own, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Internal, Unavailable
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.ports.network import Seat
from hatchvm.ports.vmm import Nest
from hatchvm.testing.net.nestling import UID, canary, hatched
from hatchvm.testing.net.wires import Lab, ip

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.xdist_group("bridge"),
]
PORT: Final = 9


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    try:
        await lab.network.open()
        yield lab
    finally:
        lab.unplug()
        await lab.network.remove()


@pytest.fixture
def seat(lab: Lab) -> Seat:
    return lab.seat(2)


@pytest.fixture
async def nest(lab: Lab, seat: Seat) -> AsyncIterator[Nest]:
    nest = await lab.network.nest(seat)
    await nest.lay(UID)
    yield nest
    await nest.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def echoed(lab: Lab, seat: Seat) -> bytes:
    """What comes back from the guest."""
    with lab.host.udp() as host:
        host.sendto(b"are you there?", (seat.guest_ip, PORT))
        return host.recv(100)


async def test_a_guest_is_reached_through_a_tap_that_its_vmm_opened_by_name(lab: Lab, seat: Seat, nest: Nest) -> None:
    with hatched(nest, seat) as vmm:
        assert seat.tap_name not in lab.links()
        await nest.plug(vmm.pid)
        await nest.close()
        port = ip("-n", lab.id, "-d", "link", "show", "dev", str(seat.tap_name))
        for expected in ("master fcbr0", "isolated on", "locked on", "persist off", f"user {UID} ", "vnet_hdr on"):
            assert expected in port
        assert echoed(lab, seat) == b"are you there?"
        with lab.network.namespace.inside():
            assert Path(f"/proc/sys/net/ipv6/conf/{seat.tap_name}/disable_ipv6").read_text() == "1\n"
    assert seat.tap_name not in lab.links()


def test_the_hosts_own_namespace_has_no_name_to_go_to() -> None:
    with Namespace(None).held() as fd:
        assert os.fstat(fd).st_ino == Path("/proc/thread-self/ns/net").stat().st_ino


async def test_nothing_but_the_tap_is_in_the_nest(lab: Lab, seat: Seat, nest: Nest) -> None:
    with nest.inside():
        links = ip("-o", "link")
    assert {line.split(": ")[1] for line in links.splitlines()} == {"lo", seat.tap_name}


async def test_plugging_in_may_be_repeated(lab: Lab, seat: Seat, nest: Nest) -> None:
    with hatched(nest, seat) as vmm:
        await nest.plug(vmm.pid)
        await nest.plug(vmm.pid)
        assert echoed(lab, seat) == b"are you there?"


async def test_another_user_cannot_open_it(seat: Seat, nest: Nest) -> None:
    with pytest.raises(AssertionError), hatched(nest, seat, uid=UID + 1):
        pass


async def test_a_vmm_that_has_not_opened_it(lab: Lab, seat: Seat, nest: Nest) -> None:
    with nest.inside():
        canary(lab.id)
    with hatched(nest, seat, opens=False) as vmm:
        with pytest.raises(Unavailable, match="the VMM has not opened the VM's network card"):
            await nest.plug(vmm.pid)
        await nest.close()
        assert "canary" in lab.links()
    await until(lambda: "canary" not in lab.links())


async def test_a_vmm_that_has_ended(seat: Seat, nest: Nest) -> None:
    with hatched(nest, seat) as vmm:
        vmm.kill()
        vmm.wait()
        with pytest.raises(Unavailable, match="the VM's network card could not be made"):
            await nest.plug(vmm.pid)


async def test_a_nest_that_is_closed_leaves_nothing(lab: Lab, seat: Seat, nest: Nest) -> None:
    with nest.inside():
        canary(lab.id)
    await nest.close()
    await nest.close()
    await until(lambda: "canary" not in lab.links())
    with pytest.raises(Internal), nest.inside():
        pass


async def test_a_nest_is_laid_anew(lab: Lab, seat: Seat, nest: Nest) -> None:
    with nest.inside():
        canary(lab.id)
    await nest.lay(UID)
    await until(lambda: "canary" not in lab.links())
    with hatched(nest, seat) as vmm:
        await nest.plug(vmm.pid)


async def test_it_waits_for_the_former_vmm_to_end(lab: Lab, seat: Seat, nest: Nest) -> None:
    former = await lab.network.attach(seat)
    assert former is not None
    with hatched(nest, seat) as vmm:
        plugging = tasks.spawn(nest.plug(vmm.pid), name="plug")
        done, _ = await asyncio.wait([plugging], timeout=0.1)
        assert not done
        os.close(former)
        await plugging
        assert echoed(lab, seat) == b"are you there?"


async def test_a_former_vmm_that_does_not_end_is_named(
    lab: Lab, seat: Seat, nest: Nest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatchvm.net.bridge.bridge._HELD_S", 0.0)
    former = await lab.network.attach(seat)
    assert former is not None
    with hatched(nest, seat) as vmm, pytest.raises(Unavailable, match="still held by its former VMM"):
        await nest.plug(vmm.pid)
    os.close(former)
    assert seat.tap_name not in lab.links()


async def test_a_lay_that_is_cancelled_leaves_nothing_once_closed(lab: Lab, seat: Seat) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    nest = await lab.network.nest(seat)
    for yields in range(4):
        laying = tasks.spawn(nest.lay(UID), name="lay")
        for _ in range(yields):
            await asyncio.sleep(0)
        laying.cancel()
        await asyncio.wait([laying])
        await nest.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("step", ["lay_tap", "make_mortal", "send_off", "plug"])
async def test_a_daemon_that_is_killed_leaves_nothing_but_the_vmm(lab: Lab, seat: Seat, step: str) -> None:
    argv = [sys.executable, "-m", "hatchvm.testing.net.nestling", lab.id, step]
    daemon = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    said, _ = await daemon.communicate()
    assert daemon.returncode == -signal.SIGKILL and bool(said) == (step != "lay_tap")
    if said:
        assert "canary" in lab.links()
        assert (seat.tap_name in lab.links()) == (step in ("send_off", "plug"))
        os.kill(int(said), signal.SIGKILL)
    await until(lambda: lab.links().isdisjoint({"canary", str(seat.tap_name)}))
