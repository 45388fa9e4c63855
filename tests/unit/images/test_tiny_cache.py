"""Finding, building and publishing `tiny`: everything but what is in it, which a recipe of a few bytes stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.base.ids import is_id
from hatchvm.domain.image import Boot, Image
from hatchvm.images import recipe
from hatchvm.images.tiny import build_tiny


class Recipe:
    """Stands for `recipe`: counts builds, can be changed and made to fail."""

    def __init__(self) -> None:
        self.builds = 0
        self.text = "one"
        self.fails = False

    def key(self) -> str:
        return f"key-{self.text}"

    def build(self, target: Path, scratch: Path, progress: Callable[[str], None]) -> Boot:
        self.builds += 1
        progress(f"building {self.text}")
        for name in ("kernel", "initrd", "rootfs.img"):
            (target / name).write_text(f"{name} {self.text}")
            if self.fails:
                raise Unavailable("apt failed")
        return recipe.boot(target, "quiet")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    stand_in = Recipe()
    monkeypatch.setattr(recipe, "key", stand_in.key)
    monkeypatch.setattr(recipe, "build", stand_in.build)
    return stand_in


async def tiny(cache: Path) -> Image:
    return await build_tiny(cache, lambda step: None)


async def test_the_first_call_builds_and_the_second_finds(tmp_path: Path, stand_in: Recipe) -> None:
    steps: list[str] = []
    image = await build_tiny(tmp_path / "cache", steps.append)
    assert steps == ["building one"]
    assert is_id(image.id, "img") and image.id[4:] == image.digest[:12]
    assert (image.name, image.builtin, image.boot.boot_args) == ("tiny", True, "quiet")
    assert image.boot.kernel == tmp_path / "cache" / f"tiny-{image.digest}" / "kernel"
    assert image.size_bytes == len("kernel one" + "initrd one" + "rootfs.img one")
    assert await build_tiny(tmp_path / "cache", steps.append) == image
    assert stand_in.builds == 1


async def test_a_new_recipe_leaves_the_old_image_alone(tmp_path: Path, stand_in: Recipe) -> None:
    old = await tiny(tmp_path)
    stand_in.text = "two"
    new = await tiny(tmp_path)
    assert new.digest != old.digest
    assert old.boot.kernel.read_text() == "kernel one"
    stand_in.text = "one"
    assert await tiny(tmp_path) == old
    assert stand_in.builds == 2


async def test_two_recipes_with_one_result_share_it(
    tmp_path: Path, stand_in: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await tiny(tmp_path)
    monkeypatch.setattr(recipe, "key", lambda: "another key")
    assert await tiny(tmp_path) == first
    assert stand_in.builds == 2


async def test_many_callers_share_one_build(tmp_path: Path, stand_in: Recipe) -> None:
    images = await asyncio.gather(*(tiny(tmp_path) for _ in range(5)))
    assert stand_in.builds == 1
    assert all(image == images[0] for image in images)


async def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path, stand_in: Recipe) -> None:
    stand_in.fails = True
    with pytest.raises(Unavailable, match="apt failed"):
        await tiny(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".tiny.lock"]
    stand_in.fails = False
    assert (await tiny(tmp_path)).boot.kernel.is_file()


async def test_what_a_killed_builder_left_is_removed(tmp_path: Path, stand_in: Recipe) -> None:
    (tmp_path / ".tiny-build.killed" / "result").mkdir(parents=True)
    (tmp_path / ".tiny-build.killed" / "result" / "kernel").write_text("half")
    image = await tiny(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {f"tiny-{image.digest}", "tiny.key-one", ".tiny.lock"}


@pytest.mark.parametrize("name", ["kernel", "initrd", "rootfs.img", "image.json"])
async def test_a_damaged_image_is_built_again(tmp_path: Path, stand_in: Recipe, name: str) -> None:
    image = await tiny(tmp_path)
    (image.boot.kernel.parent / name).unlink()
    assert (await tiny(tmp_path)).digest == image.digest
    assert (image.boot.kernel.parent / name).is_file()
    assert stand_in.builds == 2


async def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, stand_in: Recipe) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="building the image tiny"):
        await tiny(tmp_path / "file" / "cache")


def test_the_key_follows_the_sources() -> None:
    assert recipe.key() == recipe.key()
    assert len(recipe.key()) == 64
