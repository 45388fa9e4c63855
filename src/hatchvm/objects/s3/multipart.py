"""Large objects in parts, several at a time: a part that fails is sent again, not the whole."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final

from hatchvm.base import tasks
from hatchvm.base.errors import HatchError, NotFound, Unavailable
from hatchvm.base.units import MIB
from hatchvm.objects.s3.control import Body, Control
from hatchvm.objects.s3.faults import WRITE
from hatchvm.objects.s3.requests import Requests

PART: Final = 8 * MIB
_STARTS: Final = 3


async def put_in_parts(control: Control, requests: Requests, name: str, data: bytes) -> None:
    """Store `data`. Whatever stops it, cancellation included: parts under way are let end, then all are removed."""
    for _ in range(_STARTS):
        # The upload is not there any more if its completion succeeded and the answer got lost; or somebody removed it.
        # Which of the two cannot be told, so it is done again.
        with contextlib.suppress(NotFound):
            return await _put_once(control, requests, name, data)
    raise Unavailable("the object store forgets uploads while they are under way", detail=name)


async def _put_once(control: Control, requests: Requests, name: str, data: bytes) -> None:
    upload = await requests.ask(WRITE, name, lambda: control.begin(name))
    abandoned = threading.Event()

    async def store(number: int, part: memoryview) -> str:
        def send() -> str:
            return control.part(name, upload, number, Body(part, abandoned))

        return await requests.ask(WRITE, name, send, abandoned=abandoned)

    view = memoryview(data)
    cuts = range(0, len(view), PART)
    parts = [
        tasks.spawn(store(number, view[cut : cut + PART]), name=f"part {number} of {name}")
        for number, cut in enumerate(cuts, 1)
    ]
    try:
        ended, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_EXCEPTION)
        for part in ended:
            part.result()
        tags = [part.result() for part in parts]
        await requests.ask(WRITE, name, lambda: control.complete(name, upload, tags))
    except BaseException:
        abandoned.set()
        await tasks.finish(_remove(control, requests, name, upload, parts), name=f"abort {name}")
        raise


async def _remove(control: Control, requests: Requests, name: str, upload: str, parts: list[asyncio.Task[str]]) -> None:
    """After the last part has ended: one that arrives after the removal would stay."""
    await asyncio.gather(*parts, return_exceptions=True)
    with contextlib.suppress(HatchError):  # what stopped the upload is what is told
        await requests.ask(WRITE, name, lambda: control.abort(name, upload))
