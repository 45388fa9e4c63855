"""`/ssh-keys`: who may log in to VMs through the daemon's own SSH port."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, SSHKeyAnswer, ssh_key_answer
from hatchvm.api.bodies import SSHKeyCreate
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import SSHKeyId

router = APIRouter(prefix="/ssh-keys", tags=["SSH keys"], route_class=KeyRoute)


@router.post("", status_code=201)
async def create_ssh_key(context: Ctx, body: SSHKeyCreate) -> SSHKeyAnswer:
    """Let whoever holds this key log in to every VM."""
    return ssh_key_answer(await context.house.ssh_keys.create(body.name, body.public_key))


@router.get("")
async def list_ssh_keys(context: Ctx) -> list[SSHKeyAnswer]:
    """Every key, newest first."""
    return [ssh_key_answer(key) for key in await context.house.ssh_keys.list()]


@router.delete("/{ssh_key_id}")
async def delete_ssh_key(context: Ctx, ssh_key_id: SSHKeyId) -> Deleted:
    """Refuse new logins with this key from now on. Sessions that are open stay open."""
    await context.house.ssh_keys.delete(ssh_key_id)
    return Deleted()
