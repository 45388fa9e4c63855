"""What the built-in image `tiny` is made of: a Debian kernel, busybox, dropbear, and the scripts in `guest/`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

from hatchvm.domain.image import Boot
from hatchvm.images import content, debian, ext4, initrd, kernel, libraries
from hatchvm.images.tools import run
from hatchvm.images.tree import Tree

#: With `panic=-1` a crashed guest resets at once, and a VMM that does not reboot ends. The kernel's tests of its own
#: ciphers take 0.4 s of emulation.
BOOT_ARGS: Final = "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests"
DISK_MIB: Final = 256
INODES: Final = 16384

_KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
_PROGRAM_PACKAGES: Final = ("busybox-static", "dropbear-bin", "openssh-sftp-server", "lz4")
#: path in the packages -> path in the guest
_PROGRAMS: Final = {
    "usr/sbin/dropbear": "usr/sbin/dropbear",
    "usr/bin/dropbearkey": "usr/bin/dropbearkey",
    "usr/bin/dbclient": "usr/bin/dbclient",
    "usr/lib/openssh/sftp-server": "usr/lib/sftp-server",  # where dropbear looks for it
}
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
#: script of ours -> path in the guest, mode
_GUEST: Final = {
    "inittab": ("etc/inittab", 0o644),
    "rc": ("etc/rc", 0o755),
    "rc.shutdown": ("etc/rc.shutdown", 0o755),
    "udhcpc.script": ("etc/udhcpc.script", 0o755),
    "power-button": ("etc/acpi/PWRF/00000080", 0o755),
    "yaml.awk": ("usr/lib/cloud-init/yaml.awk", 0o644),
    "configure": ("usr/lib/cloud-init/configure", 0o755),
    "run": ("usr/lib/cloud-init/run", 0o755),
}
_ETC: Final = {
    "hostname": "tiny\n",
    "hosts": "127.0.0.1 localhost\n",
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "shells": "/bin/sh\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "profile": "export PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin\nexport PS1='\\u@\\h:\\w\\$ '\n",
    "resolv.conf": "",
}


def key() -> str:
    """A digest of everything of ours that shapes the image, this code included: equal keys may share a build."""
    package = resources.files("hatchvm.images")
    return content.of_sources(package, package / "guest")


def boot(folder: Path, boot_args: str) -> Boot:
    """The files of a built-in image in `folder`."""
    return Boot(
        kernel=folder / "kernel",
        initrd=folder / "initrd",
        rootfs=folder / "rootfs.img",
        rootfs_format="raw",
        boot_args=boot_args,
    )


def build(target: Path, scratch: Path, progress: Callable[[str], None]) -> Boot:
    """Write kernel, initrd and root disk into `target`, using the empty folder `scratch`. Takes some seconds.

    Needs apt and e2fsprogs, but neither root nor a compiler. Raises Unavailable or Unsupported.
    """
    progress("fetching Debian packages")
    packages = debian.unpack(scratch, _PROGRAM_PACKAGES, meta_package=_KERNEL_PACKAGE)
    progress("writing kernel, initrd and root disk")
    (bzimage,) = (packages / "boot").glob("vmlinuz-*")
    lz4 = libraries.runnable(packages, packages / "usr/bin/lz4", scratch / "lz4")
    kernel.unpack(bzimage, target / "kernel", lz4)
    (modules,) = (packages / "lib/modules").iterdir()
    initrd.write(target / "initrd", busybox=_busybox(packages).read_bytes(), modules=modules)
    staging = scratch / "rootfs"
    staging.mkdir()
    ext4.make(target / "rootfs.img", _rootfs(packages), size_mib=DISK_MIB, inodes=INODES, scratch=staging)
    return boot(target, BOOT_ARGS)


def _rootfs(packages: Path) -> Tree:
    tree = Tree()
    for folder, mode in (("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777), ("run", 0o755)):
        tree.folder(folder, mode)
    for folder in ("root", "etc/dropbear", "root/.ssh"):
        tree.folder(folder, 0o700)
    for folder in ("mnt", "var/log", "var/run", "var/lib/cloud", "usr/local/bin", "var/www"):
        tree.folder(folder)
    for name, text in _ETC.items():
        tree.file(f"etc/{name}", text.encode())
    tree.file("etc/shadow", b"root:*:1:0:99999:7:::\n", 0o600)
    for name, (path, mode) in _GUEST.items():
        tree.file(path, _guest_file(name), mode)
    _add_busybox(tree, _busybox(packages))
    for source, path in _PROGRAMS.items():
        tree.program(path, (packages / source).read_bytes())
    for name, library in libraries.needed(packages, [packages / source for source in _PROGRAMS]).items():
        tree.program(f"{_LIBRARIES}/{name}", library)
    tree.link(f"lib64/{libraries.LOADER}", f"/{_LIBRARIES}/{libraries.LOADER}")
    tree.link("lib", "usr/lib")
    return tree


def _add_busybox(tree: Tree, busybox: Path) -> None:
    """Busybox under every name it knows, where Debian has them: `/bin` and `/sbin` are `/usr/bin` and `/usr/sbin`."""
    tree.program("usr/bin/busybox", busybox.read_bytes())
    for applet in run(str(busybox), "--list-full").split():
        folder, _, name = applet.removeprefix("usr/").rpartition("/")
        if folder and name != "busybox":
            tree.link(f"usr/{folder}/{name}", "/usr/bin/busybox")
    tree.link("bin", "usr/bin")
    tree.link("sbin", "usr/sbin")


def _busybox(packages: Path) -> Path:
    return next(path for path in (packages / "bin/busybox", packages / "usr/bin/busybox") if path.is_file())


def _guest_file(name: str) -> bytes:
    return resources.files("hatchvm.images").joinpath("guest", name).read_bytes()
