"""What a door is told about a VM in each state, and how long a guest's port may refuse."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast

import pytest

from hatchvm.base.errors import HTTP_STATUS, HatchError
from hatchvm.control.gate import HouseGate
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.ports.node import Node
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.world import World

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
ROUTE: Final = Route(
    id="rt-1", vm_id="vm-1", subdomain="app", target_port=80, auto_wake=True, created_at=NOW, updated_at=NOW
)
#: state -> what `ready` says with auto-wake, and without it
READY: Final[dict[State, tuple[bool | str, bool | str]]] = {
    State.STARTING: (False, False),
    State.RUNNING: (True, True),
    State.SUSPENDING: (False, False),
    State.SNAPSHOTTED: (False, "vm is snapshotted and auto-wake is disabled"),
    State.RESTORING: (False, False),
    State.STOPPING: ('vm is in state "stopping", not proxying',) * 2,
    State.STOPPED: ('vm is in state "stopped", not proxying',) * 2,
    State.DELETING: ('vm is in state "stopping", not proxying',) * 2,
    State.ERROR: ('vm is in state "error", not proxying',) * 2,
}


def own(world: World, state: State, **fields: Any) -> None:
    known: dict[str, Any] = {"guest_ip": "10.0.2.15", "created_at": NOW, "updated_at": NOW, "node_id": "n"}
    known |= {"id": "vm-1", "spec": VMSpec(image_id="img-1"), "state": state}
    world.ctx.own(VM(**(known | fields)))


def refusal(error: HatchError) -> tuple[str, int]:
    return str(error), HTTP_STATUS[error.kind]


def ready(world: World, *, auto_wake: bool) -> bool | tuple[str, int]:
    try:
        return world.gate.ready(replace(ROUTE, auto_wake=auto_wake))
    except HatchError as error:
        return refusal(error)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A house that was never opened: what is tested here reads memory only."""
    return World(tmp_path)


@pytest.mark.parametrize("state", State)
def test_whether_a_request_may_pass_must_wait_or_is_refused(world: World, state: State) -> None:
    own(world, state)
    told = tuple(ready(world, auto_wake=auto_wake) for auto_wake in (True, False))
    assert told == tuple((said, 503) if isinstance(said, str) else said for said in READY[state])


@pytest.mark.parametrize("state", State)
def test_a_vm_without_network_is_never_reached_and_never_woken(world: World, state: State) -> None:
    own(world, state, guest_ip=None)
    assert ready(world, auto_wake=True) == ready(world, auto_wake=False) == ("vm has no guest IP", 502)


async def test_a_vm_that_is_gone(world: World) -> None:
    assert ready(world, auto_wake=True) == ("vm not found", 502)
    for asked in (world.gate.need("vm-1", reason="http", timeout_s=1), world.gate.dial("vm-1", 80, timeout_s=1)):
        with pytest.raises(HatchError) as error:
            await asked
        assert refusal(error.value) == ("vm not found", 502)
    world.gate.hold("vm-1").release()


def test_a_hold_is_the_vms(world: World) -> None:
    own(world, State.RUNNING)
    activity = world.ctx.owners.get("vm-1").activity
    hold = world.gate.hold("vm-1")
    assert (activity.holds, activity.arrivals) == (1, 1)
    hold.release()
    assert activity.holds == 0


def test_a_vm_is_found_by_its_id_its_name_or_a_subdomain(world: World) -> None:
    own(world, State.SNAPSHOTTED, spec=VMSpec(image_id="img-1", name="web"))
    own(world, State.RUNNING, id="vm-2", spec=VMSpec(image_id="img-1", name="app"))
    own(world, State.RUNNING, id="vm-3", spec=VMSpec(image_id="img-1"))
    world.ctx.routes.put(ROUTE)
    world.ctx.routes.put(replace(ROUTE, id="rt-2", subdomain="shop"))
    found = [world.gate.find(name) for name in ("vm-1", "web", "shop", "app", "vm-3", "", "None", "nobody")]
    assert found == ["vm-1", "vm-1", "vm-1", "vm-2", "vm-3", None, None, None], "a name goes before a subdomain"


class Patience:
    """A node that answers no call but says how long it was given, in seconds from now."""

    def __init__(self) -> None:
        self.given = (0.0, 0.0)

    async def dial(self, vm_id: str, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        now = asyncio.get_running_loop().time()
        self.given = (patient_until - now, deadline - now)
        return socket.socket()


@pytest.mark.parametrize(
    ("age_s", "timeout_s", "refusals_s", "silence_s"),
    [
        (0, 90, 60, 60),  # a fresh guest may refuse for a minute
        (0, 30, 30, 30),  # but no longer than the client waits
        (45, 30, 15, 15),
        (58, 30, 2, 5),  # silence is given five seconds at least
        (60, 30, 0, 5),  # a guest that has been up for long means its refusal
        (86400, 30, 0, 5),
        (86400, 2, 0, 2),
    ],
)
async def test_how_long_a_guests_port_may_refuse_and_be_silent(
    tmp_path: Path, age_s: float, timeout_s: float, refusals_s: float, silence_s: float
) -> None:
    clock, node = SteeredClock(), Patience()
    world = World(tmp_path, clock=clock)
    own(world, State.RUNNING)
    clock.advance(age_s)
    gate = HouseGate(replace(world.ctx, node=cast("Node", node)))
    (await gate.dial("vm-1", 80, timeout_s=timeout_s)).close()
    assert node.given == pytest.approx((refusals_s, silence_s), abs=0.9)
