"""From a VM to a connection into it, for every door: woken if need be, then connected to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from hatchvm.base.errors import Unavailable

T = TypeVar("T")

#: How often a VM may fall asleep again between its wake and the connection.
_MAX_RELAPSES: Final = 2


async def reach(need: Callable[[], Awaitable[None]], connect: Callable[[], Awaitable[T]], *, awake: bool = False) -> T:
    """What `connect` returns, once `need` has woken the VM; `awake`: it runs, as far as is known.

    Raises what the two do. Unavailable from `connect` means that the VM stopped running meanwhile.
    """
    relapses = 0
    while True:
        if not awake:
            await need()
        try:
            return await connect()
        except Unavailable:
            if relapses == _MAX_RELAPSES:
                raise
            relapses += 1
            awake = False
