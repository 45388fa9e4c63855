"""Every path under the data directory, in one place.

    <data dir>/
      hatch.db            SQLite (WAL)
      api-key             the first key, mode 0600, for the CLI
      ssh/                the house's own SSH keys
      objects/            the object store, if it is a directory
      packs/              what this host remembers of packs in the object store
      images/<digest>/    registered images, content-addressed, never changed
      vms/<vm id>/        one VM (see `VMPaths`)

A Unix socket's path may have at most 107 bytes (`sun_path`) and a data directory may lie deeper: a VMM runs inside its
own folder and binds a relative name; who connects goes through `/proc/self/fd`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def cache_dir() -> Path:
    """Where built images are kept unless `HATCH_CACHE_DIR` says otherwise: shared by all data directories of a user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatchvm"


@dataclass(frozen=True, slots=True)
class VMPaths:
    """The files of one VM. The memory file and the device state are a pair: see `saved`."""

    root: Path

    @property
    def memory(self) -> Path:
        """The guest's RAM, whole once it was saved. QEMU maps it shared, so there the file *is* the memory."""
        return self.root / "memory"

    @property
    def state(self) -> Path:
        """Device and CPU state written by the last suspend."""
        return self.root / "state"

    @property
    def saved(self) -> Path:
        """The marker that makes (memory, state, disk) a suspended VM; removed before the guest runs on."""
        return self.root / "saved.json"

    @property
    def waking(self) -> Path:
        """The marker while a wake is under way: the pair is intact until it is gone, unless the host lost power."""
        return self.root / "waking.json"

    @property
    def disk(self) -> Path:
        """The writable root disk. Its format is the driver's: see `made_by`."""
        return self.root / "disk"

    @property
    def made_by(self) -> Path:
        """The name of the driver whose format the disk has: no file tells it reliably, because a guest writes it."""
        return self.root / "made-by"

    @property
    def seed(self) -> Path:
        """The cloud-init NoCloud seed."""
        return self.root / "seed.iso"

    @property
    def console(self) -> Path:
        """What the guest printed on its serial console."""
        return self.root / "console.log"

    @property
    def vmm_log(self) -> Path:
        """stdout and stderr of the VMM."""
        return self.root / "vmm.log"

    @property
    def box(self) -> Path:
        """What a Firecracker sees of the host: the root of its jail, or its working directory."""
        return self.root / "box"

    @property
    def jail(self) -> Path:
        """Where jailers make their roots; `box` leads to the one in use."""
        return self.root / "jail"

    @property
    def uid(self) -> Path:
        """The number of the user that the VM's process is in a jail, the VM's own for life."""
        return self.root / "uid"

    @property
    def changes(self) -> Path:
        """What a guest wrote since it was restored from `memory`: a sparse file, joined with it by a capture."""
        return self.root / "memory.changes"

    @property
    def changed(self) -> Path:
        """Which pages of `memory` may differ from those of a stored snapshot: see `node.changed`."""
        return self.root / "changed"

    @property
    def new_state(self) -> Path:
        """What a Firecracker writes its state to; `state` is a copy of it once it is known to be whole."""
        return self.root / "state.new"

    @property
    def metrics(self) -> Path:
        """What a Firecracker counts, a line of JSON a minute."""
        return self.root / "metrics"

    @property
    def faults(self) -> Path:
        """Where a pager awaits a VMM that faults its memory in."""
        return self.root / "faults.sock"

    @property
    def qmp(self) -> Path:
        """QEMU's control socket."""
        return self.root / "qmp.sock"

    @property
    def agent(self) -> Path:
        """The socket that leads to the guest's agent."""
        return self.root / "agent.sock"

    @property
    def process(self) -> Path:
        """pid, start time and boot id of the VMM: what `adopt` trusts."""
        return self.root / "vmm.json"

    @property
    def incoming(self) -> Path:
        """A snapshot being fetched from the object store, renamed into place when verified."""
        return self.root / "incoming"

    @property
    def lazy(self) -> Path:
        """Where a pager serves `memory` and `disk` while parts of them are still in the object store."""
        return self.root / "lazy"

    @property
    def partial(self) -> Path:
        """The disk while parts of it are still in the object store; renamed to `disk` when it is whole."""
        return self.root / "disk.partial"

    @property
    def lazy_map(self) -> Path:
        """Which blocks of `partial` are here."""
        return self.root / "lazy.map"

    @property
    def pager(self) -> Path:
        """pid, start time and boot id of the pager."""
        return self.root / "pager.json"

    @property
    def pager_socket(self) -> Path:
        """The pager's control socket."""
        return self.root / "pager.sock"

    @property
    def pager_log(self) -> Path:
        """What the pager wrote to stderr."""
        return self.root / "pager.log"

    @property
    def order(self) -> Path:
        """Blocks of the memory in the order in which the last wake touched them: uint32, little-endian."""
        return self.root / "order"


@dataclass(frozen=True, slots=True)
class DataPaths:
    """The data directory."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "hatch.db"

    @property
    def api_key(self) -> Path:
        return self.root / "api-key"

    @property
    def ssh(self) -> Path:
        """The house's own SSH keys, and what its owner's `hatchvm ssh` remembers."""
        return self.root / "ssh"

    @property
    def house_key(self) -> Path:
        """The private key that every VM made here lets in; its public half lies beside it as `.pub`."""
        return self.ssh / "id_ed25519"

    @property
    def front_key(self) -> Path:
        """The private host key of the SSH port that leads to every VM."""
        return self.ssh / "host_ed25519"

    @property
    def known_hosts(self) -> Path:
        """Host keys of VMs, as `hatchvm ssh` has seen them."""
        return self.ssh / "known_hosts"

    @property
    def lock(self) -> Path:
        """Held by the daemon that owns this directory."""
        return self.root / "lock"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def packs(self) -> Path:
        return self.root / "packs"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def vms(self) -> Path:
        return self.root / "vms"

    def vm(self, vm_id: str) -> VMPaths:
        return VMPaths(self.vms / vm_id)
