"""The text of `/events`, and how a subscription ends."""

from __future__ import annotations

import json

import anyio
import httpx2
import pytest

from hatchvm.api.calls.events import frames
from hatchvm.domain.lifecycle import State
from hatchvm.testing.house import START, FakeHouse

pytest_plugins = ["hatchvm.testing.api_fixtures"]


async def test_frames(house: FakeHouse) -> None:
    stream = frames(house.events.subscribe(None))
    assert await anext(stream) == ": listening\n\n"
    house.events.publish(vm_id="vm-1", state=State.RESTORING, at=START)
    frame = await anext(stream)
    head, data = frame.split("data: ")
    assert head == "id: 1\nevent: vm.state\n"
    assert data.endswith("\n\n")
    assert json.loads(data) == {
        "id": 1,
        "at": "2026-03-06T14:30:00Z",
        "type": "vm.state",
        "vm_id": "vm-1",
        "state": "snapshotted",
        "reason": "",
    }


async def test_nothing_is_missed_after_the_first_line(house: FakeHouse) -> None:
    stream = frames(house.events.subscribe("vm-1"))
    await anext(stream)
    for vm_id in ("vm-2", "vm-1", "vm-2", "vm-1"):
        house.events.publish(vm_id=vm_id, state=State.RUNNING, at=START)
    assert (await anext(stream)).startswith("id: 2\n")
    assert (await anext(stream)).startswith("id: 4\n")


async def test_a_quiet_stream_says_that_it_lives(house: FakeHouse) -> None:
    stream = frames(house.events.subscribe(None), keep_alive_s=0.001)
    assert await anext(stream) == ": listening\n\n"
    assert await anext(stream) == ": still here\n\n"
    house.events.publish(vm_id="vm-1", state=State.RUNNING, at=START)
    assert "data: " in await anext(stream)


async def test_a_closed_stream_ends_its_subscription(house: FakeHouse) -> None:
    stream = frames(house.events.subscribe(None))
    await anext(stream)
    await stream.aclose()
    assert house.events.queues == []


async def test_a_cancelled_stream_ends_its_subscription(house: FakeHouse) -> None:
    """As Starlette does it when a client hangs up: every further `await` in the stream is cancelled too."""

    async def listen() -> None:
        async for _ in frames(house.events.subscribe(None)):
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
    await house.events.ended.wait()
    assert house.events.queues == []


@pytest.mark.parametrize("vm", ["vm-000000000000", "nope"])
async def test_events_of_an_unknown_vm_are_404(client: httpx2.AsyncClient, vm: str) -> None:
    answer = await client.get("/events", params={"vm": vm})
    assert (answer.status_code, answer.json()) == (404, {"error": "vm not found"})
