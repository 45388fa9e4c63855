"""The initrd of the built-in images: busybox, the modules without which no root disk is seen, and `guest/initrd.sh`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

from hatchvm.images import cpio
from hatchvm.images.modules import Modules
from hatchvm.images.tree import Tree

_ROOT_MODULES: Final = (
    *("virtio_ring", "virtio", "virtio_mmio", "failover", "net_failover", "virtio_net", "virtio_blk", "ext4"),
    *("virtio_balloon", "virtio_rng", "button", "evdev"),
)
_SEED_MODULES: Final = ("cdrom", "isofs")


def write(target: Path, *, busybox: bytes, modules: Path) -> None:
    """Write the initrd `target`. `busybox` is statically linked; `modules` is a kernel's folder of modules."""
    tree = Tree()
    for folder in ("dev", "proc", "root"):
        tree.folder(folder)
    tree.device("dev/console", 0o600, 5, 1)
    tree.program("bin/busybox", busybox)
    for applet in ("mount", "insmod", "switch_root", "poweroff", "reboot"):
        tree.link(f"bin/{applet}", "busybox")
    tree.program("init", resources.files("hatchvm.images").joinpath("guest", "initrd.sh").read_bytes())
    order = Modules(modules).load_order((*_ROOT_MODULES, *_SEED_MODULES))
    for number, (name, content) in enumerate(order.items()):
        tree.file(f"modules{'-seed' if name in _SEED_MODULES else ''}/{number:02}-{name}.ko", content)
    target.write_bytes(cpio.archive(tree))
