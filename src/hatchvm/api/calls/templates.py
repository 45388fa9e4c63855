"""`/templates`: named sets of defaults for new VMs."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, TemplateAnswer, template_answer
from hatchvm.api.bodies import TemplateCreate
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import TemplateRef, check_reference

router = APIRouter(prefix="/templates", tags=["Templates"], route_class=KeyRoute)


@router.post("", status_code=201)
async def create_template(context: Ctx, body: TemplateCreate) -> TemplateAnswer:
    """Name a set of defaults. Its `user_data` is kept but never shown again."""
    defaults = body.defaults.given()
    if "image_id" in defaults:
        check_reference(defaults["image_id"], "image")
    return template_answer(await context.house.templates.create(body.name, defaults))


@router.get("")
async def list_templates(context: Ctx) -> list[TemplateAnswer]:
    """Every template, newest first."""
    return [template_answer(template) for template in await context.house.templates.list()]


@router.get("/{id_or_name}")
async def get_template(context: Ctx, id_or_name: TemplateRef) -> TemplateAnswer:
    """One template."""
    return template_answer(await context.house.templates.get(id_or_name))


@router.delete("/{id_or_name}")
async def delete_template(context: Ctx, id_or_name: TemplateRef) -> Deleted:
    """Delete a template. VMs made from it are not touched."""
    await context.house.templates.delete(id_or_name)
    return Deleted()
