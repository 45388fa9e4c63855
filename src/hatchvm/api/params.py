"""Path parameters. An id of the wrong shape is an unknown id: 404, and nothing behind the API ever sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

from fastapi import Depends

from hatchvm.api.fields import is_label
from hatchvm.base import ids
from hatchvm.base.errors import NotFound

_WORD: Final = {
    ids.VM: "vm",
    ids.ROUTE: "route",
    ids.SNAPSHOT: "snapshot",
    ids.KEY: "key",
    ids.SSH_KEY: "ssh key",
    ids.LEASE: "hold",
}


def check_id(text: str, prefix: str) -> str:
    """`text` if it can be an id of that kind. Raises NotFound, e.g. `vm not found`."""
    if not ids.is_id(text, prefix):
        raise NotFound(f"{_WORD[prefix]} not found")
    return text


def check_reference(text: str, word: str) -> str:
    """`text` if it can be an id or a name. Raises NotFound, e.g. `image not found`."""
    if not is_label(text):
        raise NotFound(f"{word} not found")
    return text


# `async`, though nothing waits: FastAPI sends plain functions through a thread pool.


async def _vm_id(vm_id: str) -> str:
    return check_id(vm_id, ids.VM)


async def _route_id(route_id: str) -> str:
    return check_id(route_id, ids.ROUTE)


async def _snapshot_id(snapshot_id: str) -> str:
    return check_id(snapshot_id, ids.SNAPSHOT)


async def _key_id(key_id: str) -> str:
    return check_id(key_id, ids.KEY)


async def _ssh_key_id(ssh_key_id: str) -> str:
    return check_id(ssh_key_id, ids.SSH_KEY)


async def _hold_id(hold_id: str) -> str:
    return check_id(hold_id, ids.LEASE)


def _reference(word: str) -> Callable[[str], Awaitable[str]]:
    async def check(id_or_name: str) -> str:
        return check_reference(id_or_name, word)

    return check


VMId = Annotated[str, Depends(_vm_id)]
RouteId = Annotated[str, Depends(_route_id)]
SnapshotId = Annotated[str, Depends(_snapshot_id)]
KeyId = Annotated[str, Depends(_key_id)]
SSHKeyId = Annotated[str, Depends(_ssh_key_id)]
HoldId = Annotated[str, Depends(_hold_id)]
ImageRef = Annotated[str, Depends(_reference("image"))]
TemplateRef = Annotated[str, Depends(_reference("template"))]
