"""Use cases over images and templates: see `ports.house`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from hatchvm.base import ids
from hatchvm.base.errors import Conflict, NotFound
from hatchvm.control.context import Context
from hatchvm.domain.image import ROOT_ARGS, Builtin, Image, Template
from hatchvm.images import builtin, registry


class ImageCases:
    """`folder`: where registered images are kept; `cache`: where built-in ones are. `default_boot_args` for images that
    bring none."""

    def __init__(self, ctx: Context, folder: Path, cache: Path, default_boot_args: str) -> None:
        self._ctx = ctx
        self._folder = folder
        self._cache = cache
        self._default_boot_args = default_boot_args

    async def create(
        self,
        *,
        name: str | None,
        kernel_path: str,
        initrd_path: str | None,
        rootfs_path: str | None,
        boot_args: str | None,
    ) -> Image:
        if name is not None:
            await self._refuse_used(name)
        boot, digest, size_bytes = await registry.register(
            self._folder,
            kernel=Path(kernel_path),
            initrd=Path(initrd_path) if initrd_path else None,
            rootfs=Path(rootfs_path) if rootfs_path else None,
            boot_args=self._boot_args(initrd_path) if boot_args is None else boot_args,
        )
        image = Image(
            id=ids.new(ids.IMAGE),
            name=name,
            boot=boot,
            digest=digest,
            size_bytes=size_bytes,
            created_at=self._ctx.clock.now(),
        )
        async with self._ctx.store.begin() as tx:
            await tx.images.insert(image)
        return image

    async def add_builtin(self, name: Builtin) -> Image:
        image = await asyncio.to_thread(builtin.find, name, self._cache)
        if image is None:
            raise NotFound(
                f'the image "{name}" is not in the cache of the daemon, {self._cache}; '
                f"run `hatchvm image build {name}` on its host, with the same HATCH_CACHE_DIR"
            )
        await self.publish(image)
        return image

    async def publish(self, image: Image) -> None:
        """Give a built-in image its name. VMs of the one that had it before keep that one under its id."""
        async with self._ctx.store.begin() as tx:
            known = {one.id: one for one in await tx.images.list()}
            for other in known.values():
                if other.name == image.name and other.id != image.id:
                    await tx.images.update(replace(other, name=None))
            if image.id in known:
                await tx.images.update(image)
            else:
                await tx.images.insert(image)

    async def list(self) -> Sequence[Image]:
        async with self._ctx.store.begin() as tx:
            return await tx.images.list()

    async def get(self, id_or_name: str) -> Image:
        async with self._ctx.store.begin() as tx:
            return await tx.images.find(id_or_name)

    async def delete(self, id_or_name: str) -> None:
        async with self._ctx.store.begin() as tx:
            image = await tx.images.find(id_or_name)
            if image.builtin:
                raise Conflict(f'image "{image.name}" is built in')
            if count := await tx.vms.count_by_image(image.id):
                raise Conflict(f"the image is in use by {count} VM{'s' if count > 1 else ''}; delete them first")
            await tx.images.delete(image.id)
            shared = any(other.digest == image.digest for other in await tx.images.list())
        if not shared:
            await registry.remove(self._folder, image.digest)

    def _boot_args(self, initrd_path: str | None) -> str:
        return self._default_boot_args if initrd_path else f"{self._default_boot_args} {ROOT_ARGS}"

    async def _refuse_used(self, name: str) -> None:
        """Before gigabytes are copied; the row's unique name decides in the end."""
        if any(image.name == name for image in await self.list()):
            raise Conflict(f'image name "{name}" is already in use')


class TemplateCases:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def create(self, name: str, defaults: Mapping[str, object]) -> Template:
        template = Template(
            id=ids.new(ids.TEMPLATE),
            name=name,
            defaults=MappingProxyType(dict(defaults)),
            created_at=self._ctx.clock.now(),
        )
        async with self._ctx.store.begin() as tx:
            if isinstance(image := defaults.get("image_id"), str):
                await tx.images.find(image)
            await tx.templates.insert(template)
        return template

    async def list(self) -> Sequence[Template]:
        async with self._ctx.store.begin() as tx:
            return await tx.templates.list()

    async def get(self, id_or_name: str) -> Template:
        async with self._ctx.store.begin() as tx:
            return await tx.templates.find(id_or_name)

    async def delete(self, id_or_name: str) -> None:
        async with self._ctx.store.begin() as tx:
            await tx.templates.delete((await tx.templates.find(id_or_name)).id)
