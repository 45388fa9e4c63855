"""`hatchvm image import`: from a file or folder of a stranger to the files of an image."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Exhausted, Internal, Invalid
from hatchvm.base.files import allocated_bytes
from hatchvm.base.units import MIB
from hatchvm.domain.image import Boot
from hatchvm.images import cpio
from hatchvm.images.faults import translated
from hatchvm.images.importing import archive, cloud, disk, oci
from hatchvm.images.importing.archive import Spool
from hatchvm.images.importing.container import INIT, Command, Injection, command_of, own_init
from hatchvm.images.importing.rootfs import Rootfs
from hatchvm.images.importing.sources import Source, open_file, recognise
from hatchvm.images.importing.streams import CHUNK, Allowance, Unpacked
from hatchvm.images.recipe import BOOT_ARGS
from hatchvm.images.tools import run
from hatchvm.images.tree import Tree

#: Unless the caller says otherwise.
MAX_BYTES: Final = 32 * 1024 * MIB
#: What an import leaves of the disk, whatever it unpacks.
_SPARE_BYTES: Final = 512 * MIB

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Importer:
    """Imports into one folder.

    `work`: an empty folder for the results and everything temporary. `tiny`: builds or finds the built-in image, whose
    kernel, initrd and programs images without a kernel get. `max_bytes`: what the source may unpack to.
    """

    work: Path
    tiny: Callable[[], Boot]
    progress: Progress
    max_bytes: int = MAX_BYTES

    def run(self, path: Path, boot_args: str | None = None) -> Boot:
        """The image in `path`: an OCI layout, a `docker save` archive, a root file system's tar archive, or a disk.

        `boot_args`: instead of what suits the source. Raises Invalid with a sentence about the source, Unsupported if
        this host lacks a program, Exhausted if there is not enough room.
        """
        with translated(f"importing {path}"):
            source = recognise(path)
            self.progress(f"{path} is {_KINDS[source.kind]}")
            try:
                boot = self._disk(source) if source.kind == "disk" else self._tree(source)
            except Invalid as error:
                raise Invalid(f"{path} cannot be imported: {error.message}", detail=error.detail) from error
            boot = replace(boot, rootfs=self._compact(), rootfs_format="qcow2")
        return boot if boot_args is None else replace(boot, boot_args=boot_args)

    def _disk(self, source: Source) -> Boot:
        if 2 * allocated_bytes(source.path) > self._free_bytes():
            raise Exhausted("there is not enough room in the cache directory for the disk")
        cloud.take_disk(source.path, self._raw, self.max_bytes)
        return cloud.extract(self._raw, self.progress)

    def _tree(self, source: Source) -> Boot:
        rootfs, spool = Rootfs(), Spool(self._folder("spool"), self._allowance())
        if source.kind == "container":
            command, layers = self._unpack_container(source, rootfs, spool)
        else:
            with open_file(source.path) as file:
                archive.apply(rootfs, Unpacked(file, self._allowance()), spool, layer=0, whiteouts=False)
            command, layers = None, 1
        tiny = self.tiny()
        initrd = self._bootable(rootfs, spool, command, layers, tiny)
        self.progress("writing the root disk")
        disk.make(self._raw, rootfs, self._folder("scratch"))
        return replace(tiny, initrd=initrd, boot_args=BOOT_ARGS)

    @property
    def _raw(self) -> Path:
        return self.work / "disk.raw"

    def _compact(self) -> Path:
        """The disk without its holes: gigabytes of them would be read whenever the image is copied or digested."""
        self.progress("compacting the root disk")
        target = self.work / "disk.qcow2"
        run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", str(self._raw), str(target))
        self._raw.unlink()
        return target

    def _unpack_container(self, source: Source, rootfs: Rootfs, spool: Spool) -> tuple[Command | None, int]:
        """Its command, and how many layers it has."""
        path = self._unpacked(source) if source.packed else source.path
        with oci.opened(path) as files:
            container = oci.read(files)
            for number in oci.unpack(files, container, rootfs, spool, self._allowance()):
                self.progress(f"layer {number + 1} of {len(container.layers)}")
        return command_of(container.config), len(container.layers)

    def _bootable(self, rootfs: Rootfs, spool: Spool, command: Command | None, layer: int, tiny: Boot) -> Path:
        """The initrd that starts what is in the tree, or what the tree is given here."""
        if tiny.initrd is None or tiny.rootfs is None:
            raise Internal("the built-in image lacks a file")
        if own_init(rootfs, command):
            self.progress("it starts its own init")
            init = command.argv[0] if command else "/sbin/init"
        else:
            self.progress(
                "it has no init: it gets one, with SSH and cloud-init" + (", that runs its command" * bool(command))
            )
            scratch = self._folder("tools")
            Injection(rootfs, spool, layer=layer, tiny_disk=tiny.rootfs, scratch=scratch).add(command)
            init = INIT
        return self._initrd(tiny.initrd, init)

    def _initrd(self, tiny: Path, init: str) -> Path:
        """The built-in image's initrd with another last command. A later archive's file replaces an earlier one's."""
        tree = Tree()
        script = resources.files("hatchvm.images").joinpath("guest", "initrd.sh").read_text()
        tree.program("init", script.replace("/sbin/init", shlex.quote(init)).encode())
        target = self.work / "initrd"
        target.write_bytes(tiny.read_bytes() + cpio.archive(tree))
        return target

    def _unpacked(self, source: Source) -> Path:
        self.progress("decompressing")
        path = self.work / "archive"
        with open_file(source.path) as packed, path.open("xb") as file:
            reader = Unpacked(packed, self._allowance())
            while data := reader.read(CHUNK):
                file.write(data)
        return path

    def _allowance(self) -> Allowance:
        """Everything is written three times: as files, as a disk, as a disk without holes."""
        return Allowance(self.max_bytes, self._free_bytes() // 3)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.work).free - _SPARE_BYTES

    def _folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir()
        return folder


_KINDS: Final = {
    "container": "a container image",
    "rootfs": "a root file system",
    "disk": "a disk",
}
