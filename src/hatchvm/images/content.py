"""The identity of an image: one digest over its files and its boot arguments."""

from __future__ import annotations

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
