"""`/events`: every state change as it happens, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from hatchvm.api.answers import event_answer
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import check_id
from hatchvm.base import ids, tasks
from hatchvm.ports.house import Event

router = APIRouter(tags=["Events"], route_class=KeyRoute)

#: A comment this often tells proxies and clients that a quiet stream still lives.
KEEP_ALIVE_S: Final = 15.0

_STREAM: Final = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The stream"}}


@router.get("/events", response_class=Response, responses=_STREAM)  # type: ignore[arg-type]
async def stream_events(context: Ctx, vm: Annotated[str | None, Query(max_length=64)] = None) -> Response:
    """Every state change from now on, of every VM or of one. Ends when the client hangs up."""
    if vm is not None:
        await context.house.vms.get(check_id(vm, ids.VM))
    events = context.house.events.subscribe(vm)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames(events), media_type="text/event-stream", headers=headers)


async def frames(events: AsyncGenerator[Event, None], keep_alive_s: float = KEEP_ALIVE_S) -> AsyncGenerator[str, None]:
    """The stream's text: a frame per event, a comment per silent `keep_alive_s`. Closes `events`."""
    upcoming = tasks.spawn(_next(events), name="next event")
    try:
        # The subscription begins when the task first runs: only then may a client believe that it misses nothing.
        await asyncio.sleep(0)
        yield ": listening\n\n"
        while True:
            await asyncio.wait({upcoming}, timeout=keep_alive_s)
            if not upcoming.done():
                yield ": still here\n\n"
            elif (event := upcoming.result()) is None:
                return
            else:
                upcoming = tasks.spawn(_next(events), name="next event")
                yield f"id: {event.id}\nevent: {event.type}\ndata: {event_answer(event).model_dump_json()}\n\n"
    finally:
        await tasks.cancel_and_wait(upcoming)
        await events.aclose()


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
