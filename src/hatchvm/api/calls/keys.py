"""`/keys`: who may call."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, KeyAnswer, NewKeyAnswer, key_answer
from hatchvm.api.bodies import KeyCreate
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import KeyId

router = APIRouter(prefix="/keys", tags=["Keys"], route_class=KeyRoute)


@router.post("", status_code=201)
async def create_key(context: Ctx, body: KeyCreate) -> NewKeyAnswer:
    """Make a key. Its secret is in this answer and nowhere else."""
    key, secret = await context.house.keys.create(body.name)
    return NewKeyAnswer(**key_answer(key).model_dump(), key=secret)


@router.get("")
async def list_keys(context: Ctx) -> list[KeyAnswer]:
    """Every key, newest first, without secrets."""
    return [key_answer(key) for key in await context.house.keys.list()]


@router.delete("/{key_id}")
async def delete_key(context: Ctx, key_id: KeyId) -> Deleted:
    """Revoke a key."""
    await context.house.keys.delete(key_id)
    return Deleted()
