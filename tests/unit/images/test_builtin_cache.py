"""Finding and building built-in images: everything but what is in them, which a recipe of a few bytes stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.base.ids import is_id
from hatchvm.domain.image import DEBIAN, TINY, Boot, Builtin, Image
from hatchvm.images import builtin, content, recipe


class Recipe:
    """Stands for that of `tiny`: counts builds, can be changed and made to fail."""

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
    monkeypatch.setitem(builtin.RECIPES, TINY, builtin.Recipe(stand_in.key, stand_in.build))
    return stand_in


async def tiny(cache: Path) -> Image:
    return await builtin.build(TINY, cache, lambda step: None)


async def test_the_first_call_builds_and_the_second_finds(tmp_path: Path, stand_in: Recipe) -> None:
    steps: list[str] = []
    image = await builtin.build(TINY, tmp_path / "cache", steps.append)
    assert steps == ["building one"]
    assert is_id(image.id, "img") and image.id[4:] == image.digest[:12]
    assert (image.name, image.builtin, image.boot.boot_args) == ("tiny", True, "quiet")
    assert image.boot.kernel == tmp_path / "cache" / f"tiny-{image.digest}" / "kernel"
    assert image.size_bytes == len("kernel one" + "initrd one" + "rootfs.img one")
    assert await builtin.build(TINY, tmp_path / "cache", steps.append) == image
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
    monkeypatch.setitem(builtin.RECIPES, TINY, builtin.Recipe(lambda: "another key", stand_in.build))
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


async def test_two_images_share_a_cache_and_no_more(
    tmp_path: Path, stand_in: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(builtin.RECIPES, DEBIAN, builtin.Recipe(stand_in.key, stand_in.build))
    assert builtin.find(DEBIAN, tmp_path) is None
    first = await tiny(tmp_path)
    assert builtin.find(DEBIAN, tmp_path) is None
    (tmp_path / ".tiny-build.running").mkdir()
    second = await builtin.build(DEBIAN, tmp_path, lambda step: None)
    assert (first.name, second.name) == ("tiny", "debian")
    assert first.boot.kernel != second.boot.kernel
    assert (tmp_path / ".tiny-build.running").exists()
    assert builtin.find(DEBIAN, tmp_path) == second


@pytest.mark.parametrize("name", sorted(builtin.RECIPES))
def test_the_key_follows_the_sources(name: Builtin) -> None:
    key = builtin.RECIPES[name].key
    assert key() == key()
    assert len(key()) == 64


def test_sources_are_told_apart_by_folder_name_and_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "below").mkdir(parents=True)
    (one / "file").write_text("text")
    seen = {content.of_sources(one, two), content.of_sources(two, one)}
    (one / "below" / "ignored").write_text("text")
    assert content.of_sources(one, two) in seen
    (one / "file").write_text("other text")
    seen.add(content.of_sources(one, two))
    (one / "file").rename(one / "name")
    seen.add(content.of_sources(one, two))
    seen.add(content.of_sources(one / "name", two))
    assert len(seen) == 4, "a file is the same as the folder in which it is alone"
