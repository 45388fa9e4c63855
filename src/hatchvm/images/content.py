"""The identity of an image: one digest over its files and its boot arguments; and that of what it is built from."""

from __future__ import annotations

from importlib.resources.abc import Traversable

from blake3 import blake3

from hatchvm.domain.image import Boot


def digest(boot: Boot) -> str:
    """BLAKE3, 64 hex digits. The same content has the same digest on every host."""
    whole = blake3()
    for role, path in (("kernel", boot.kernel), ("initrd", boot.initrd), ("rootfs", boot.rootfs)):
        part = blake3().update_mmap(path).hexdigest() if path else "none"
        whole.update(f"{role} {part}\n".encode())
    whole.update(f"{boot.rootfs_format} {boot.boot_args}".encode())
    return whole.hexdigest()


def size_bytes(boot: Boot) -> int:
    """Bytes of all files, as a reader sees them (holes included)."""
    return sum(path.stat().st_size for path in (boot.kernel, boot.initrd, boot.rootfs) if path)


def of_sources(*sources: Traversable) -> str:
    """BLAKE3, 64 hex digits, over the names and contents of files, and of those that lie right in a folder."""
    whole = blake3()
    for number, source in enumerate(sources):
        files = [source] if source.is_file() else [inner for inner in source.iterdir() if inner.is_file()]
        for file in sorted(files, key=lambda one: one.name):
            whole.update(f"{number} {file.name}\0".encode() + blake3(file.read_bytes()).digest())
    return whole.hexdigest()
