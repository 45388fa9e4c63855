"""What a data directory needs before it can serve: a key for its owner, and images to boot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hatchvm.base import ids
from hatchvm.base.errors import HatchError, NotFound
from hatchvm.base.files import write_atomic
from hatchvm.domain.image import DEBIAN, DEFAULT, ROOT_ARGS, TINY, Image
from hatchvm.domain.key import ApiKey, digest_of, new_secret
from hatchvm.images import builtin, registry
from hatchvm.images.recipe import BOOT_ARGS
from hatchvm.server.config import Config, blaming
from hatchvm.server.wiring import Built


async def ensure_key(built: Built, say: Callable[[str], None]) -> None:
    """Make the first key, if there is none: printed once, kept in `<data dir>/api-key` for the CLI.

    The file comes first: killed before the row, the next start makes another; after it, nobody is locked out.
    """
    if await built.house.keys.list():
        return
    secret = new_secret()
    write_atomic(built.paths.api_key, secret.encode() + b"\n", mode=0o600)
    now = built.ctx.clock.now()
    async with built.store.begin() as tx:
        await tx.keys.insert(ApiKey(id=ids.new(ids.KEY), name="first key", digest=digest_of(secret), created_at=now))
    say(f"Your API key, shown once: {secret}")
    say(f"The CLI finds it in {built.paths.api_key}")


async def ensure_images(built: Built, config: Config, say: Callable[[str], None]) -> None:
    """Have the default image in the store, and `debian` if it has been built.

    A host where `tiny` cannot be built still serves other images.
    """
    await registry.sweep(built.paths.images)
    with suppress(NotFound):
        await built.house.images.add_builtin(DEBIAN)
    if config.default_kernel_path:
        await _register_default(built, config, Path(config.default_kernel_path))
        return
    try:
        image = await builtin.build(TINY, config.cache_dir, say)
    except HatchError as error:
        say(f"The image {TINY} is not available: {error}")
        return
    await built.house.images.publish(image)


async def _register_default(built: Built, config: Config, kernel: Path) -> None:
    """Register the configured files; the same files again are the same image."""
    with blaming("HATCH_DEFAULT_KERNEL_PATH, HATCH_DEFAULT_ROOTFS_PATH"):
        boot, digest, size_bytes = await registry.register(
            built.paths.images,
            kernel=kernel,
            initrd=None,
            rootfs=Path(config.default_rootfs_path) if config.default_rootfs_path else None,
            boot_args=config.default_boot_args or f"{BOOT_ARGS} {ROOT_ARGS}",
        )
    image = Image(
        id=f"{ids.IMAGE}-{digest[:12]}",
        name=DEFAULT,
        boot=boot,
        digest=digest,
        size_bytes=size_bytes,
        created_at=built.ctx.clock.now(),
        builtin=True,
    )
    await built.house.images.publish(image)
