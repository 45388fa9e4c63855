"""`/images`: what VMs boot from."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, ImageAnswer, image_answer
from hatchvm.api.bodies import BuiltinImage, ImageCreate
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import ImageRef

router = APIRouter(prefix="/images", tags=["Images"], route_class=KeyRoute)


@router.post("", status_code=201)
async def create_image(context: Ctx, body: ImageCreate) -> ImageAnswer:
    """Register a kernel, and optionally an initrd and a root disk, that lie on this host."""
    given = body.given()
    image = await context.house.images.create(
        name=given.get("name"),
        kernel_path=body.kernel_path,
        initrd_path=given.get("initrd_path"),
        rootfs_path=given.get("rootfs_path"),
        boot_args=given.get("boot_args"),
    )
    return image_answer(image)


@router.post("/builtin", status_code=201)
async def add_builtin_image(context: Ctx, body: BuiltinImage) -> ImageAnswer:
    """Register a built-in image that `hatchvm image build` has put into the daemon's cache."""
    return image_answer(await context.house.images.add_builtin(body.name))


@router.get("")
async def list_images(context: Ctx) -> list[ImageAnswer]:
    """Every image, newest first."""
    return [image_answer(image) for image in await context.house.images.list()]


@router.get("/{id_or_name}")
async def get_image(context: Ctx, id_or_name: ImageRef) -> ImageAnswer:
    """One image."""
    return image_answer(await context.house.images.get(id_or_name))


@router.delete("/{id_or_name}")
async def delete_image(context: Ctx, id_or_name: ImageRef) -> Deleted:
    """Delete an image that no VM uses."""
    await context.house.images.delete(id_or_name)
    return Deleted()
