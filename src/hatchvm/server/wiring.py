"""The one place that knows every concrete class: from a configuration to a house."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Conflict, Unsupported
from hatchvm.base.paths import DataPaths
from hatchvm.base.process import boot_id
from hatchvm.base.units import MIB
from hatchvm.control.context import Context, Settings
from hatchvm.control.events import Bus
from hatchvm.control.feed import HouseFeed
from hatchvm.control.gate import HouseGate
from hatchvm.control.house import ControlPlane
from hatchvm.control.idle import SSHSessions
from hatchvm.control.images import ImageCases
from hatchvm.control.keys import KeyCases
from hatchvm.control.owner import Owners
from hatchvm.control.table import RouteTable
from hatchvm.control.vms import power
from hatchvm.domain.activity import Tracked
from hatchvm.domain.image import DEFAULT, TINY
from hatchvm.domain.vm import VM
from hatchvm.identity.anyof import AnyOf
from hatchvm.identity.keys import StoredKeys
from hatchvm.identity.remote import RemoteVerifier
from hatchvm.images.recipe import BOOT_ARGS
from hatchvm.net.bridge.settings import Bridge
from hatchvm.net.resolver import DNSResolver
from hatchvm.net.sessions import established
from hatchvm.net.user import UserNetwork
from hatchvm.node.agent import LocalNode
from hatchvm.node.lazy import Pagers
from hatchvm.objects.directory import DirectoryStore
from hatchvm.pager.mount import probe
from hatchvm.ports.identity import Verifier
from hatchvm.ports.objects import ObjectStore
from hatchvm.ports.vmm import Driver
from hatchvm.server.config import Config, blaming
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.seal import Ring
from hatchvm.store.store import SqlStore
from hatchvm.vmm.qemu.reach import is_free

if TYPE_CHECKING:
    from hatchvm.net.bridge.bridge import BridgeNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A house and what its daemon runs. `lock` is held as long as the daemon lives.

    `caution`: what the object store cannot promise, as a sentence, once it was checked.
    """

    ctx: Context
    house: ControlPlane
    gate: HouseGate
    feed: HouseFeed
    verifier: Verifier
    bridge: BridgeNetwork | None
    store: SqlStore
    paths: DataPaths
    lock: IO[str]
    caution: Callable[[], str | None]


def build(config: Config, driver: Driver) -> Built:
    """Make every part around `driver` (see `server.vmm`). Raises HatchError.

    Nothing is opened or started yet but the data directory's lock."""
    paths = DataPaths(config.data_dir.resolve())
    clock = SystemClock()
    objects, caution = _objects(config, paths)
    ring = _ring(config)
    grace = timedelta(seconds=config.snapshot_grace)
    engine = None if objects is None else SnapshotEngine(objects, paths.packs, clock, ring=ring, grace=grace)
    pagers = Pagers(lazy=config.lazy_restore == "auto" and probe() is None, ring=ring)
    bridge = bridge_of(config)
    node = LocalNode(
        config.node_id, paths, driver, engine, pagers, private=UserNetwork(), bridge=bridge, boot_id=boot_id()
    )
    with blaming("DATABASE_URL"):
        store = SqlStore(config.database_url or f"sqlite:///{paths.database}")
    ctx = Context(
        store=store,
        node=node,
        clock=clock,
        bus=Bus(clock),
        owners=Owners(),
        routes=RouteTable(),
        settings=_settings(config),
        resolver=DNSResolver(config.dns_server),
        port_is_free=is_free,
    )
    node.on_exit(lambda vm_id, exit_: power.ended(ctx, vm_id, exit_))
    stored = StoredKeys(store)
    images = ImageCases(ctx, paths.images, config.cache_dir, BOOT_ARGS)
    return Built(
        ctx=ctx,
        house=ControlPlane(ctx, images, KeyCases(ctx, stored.forget), _passers_by(config, bridge)),
        gate=HouseGate(ctx),
        feed=HouseFeed(ctx),
        verifier=_verifier(config, stored, clock),
        bridge=bridge,
        store=store,
        paths=paths,
        caution=caution,
        lock=_take(paths),  # last: whatever fails before holds nothing
    )


def _passers_by(config: Config, bridge: BridgeNetwork | None) -> SSHSessions:
    """SSH sessions past Hatch, by the connection tracking of the namespace in which guests are reached."""
    look = partial(established, table=config.conntrack_path, silence_s=config.stream_idle_timeout)
    if bridge is None:
        return look

    def look_inside(vm: VM) -> Sequence[Tracked]:
        with bridge.namespace.inside():
            return look(vm, own={str(config.bridge_cidr.ip)})

    return look_inside


def bridge_of(config: Config) -> BridgeNetwork | None:
    """The bridge that guests are plugged into, if the configuration wants one."""
    if config.network != "bridge":
        return None
    # Only here: pyroute2 takes half a second to import.
    from hatchvm.net.bridge.bridge import BridgeNetwork

    return BridgeNetwork(
        Bridge(name=config.bridge_name, cidr=config.bridge_cidr, netns=config.netns, allow=config.bridge_allow)
    )


def _take(paths: DataPaths) -> IO[str]:
    """Two daemons over one data directory would fight over every VM."""
    try:
        paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = paths.lock.open("w")
    except OSError as error:
        raise Unsupported(f"HATCH_DATA_DIR: {paths.root} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise Conflict(f"HATCH_DATA_DIR: another Hatch runs on {paths.root}") from error
    return lock


def _objects(config: Config, paths: DataPaths) -> tuple[ObjectStore | None, Callable[[], str | None]]:
    """The object store, if there is one, and what it cannot promise once it was checked."""
    if config.snapshot_store == "none":
        return None, lambda: None
    if config.s3_bucket is not None:
        return _s3(config, config.s3_bucket)
    folder = paths.objects if config.snapshot_store == "directory" else Path(config.snapshot_store).resolve()
    return DirectoryStore(folder), lambda: None


def _s3(config: Config, bucket: str) -> tuple[ObjectStore, Callable[[], str | None]]:
    # Only here: botocore takes most of a second to import.
    from hatchvm.objects.s3.control import Place
    from hatchvm.objects.s3.store import S3Store

    style, secret = config.s3_path_style, config.s3_secret_key
    place = Place(
        bucket=bucket,
        endpoint=config.s3_endpoint,
        region=config.s3_region,
        access_key=config.s3_access_key,
        secret_key=secret.get_secret_value() if secret else None,
        path_style=style == "true" or (style == "auto" and config.s3_endpoint is not None),
        prefix=config.s3_prefix,
    )
    store = S3Store(place)
    return store, store.caution


def _ring(config: Config) -> Ring:
    with blaming("HATCH_SNAPSHOT_KEY_FILE"):
        return Ring.load(config.snapshot_key_file) if config.snapshot_key_file else Ring()


def _settings(config: Config) -> Settings:
    return Settings(
        base_domains=config.base_domain,
        bridge=config.bridge_cidr if config.network == "bridge" else None,
        default_image=DEFAULT if config.default_kernel_path else TINY,
        default_vcpu=config.default_vcpu,
        default_mem_mib=config.default_mem_mib,
        default_boot_args=config.default_boot_args,
        ssh_ports=range(config.ssh_port_min, config.ssh_port_max + 1),
        idle_check_s=config.idle_check_interval,
        idle_timeout_s=config.idle_timeout,
        wake_timeout_s=config.wake_timeout,
        snapshots_configured=config.snapshot_store != "none",
        snapshot_store="none" if config.snapshot_store == "none" else "s3" if config.s3_bucket else "directory",
        snapshot_keep=config.snapshot_keep,
        snapshot_grace_s=config.snapshot_grace,
        domain_recheck_s=config.domain_recheck,
        host_mem_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MIB,
    )


def _verifier(config: Config, stored: StoredKeys, clock: SystemClock) -> Verifier:
    if config.auth_verify_url is None:
        return stored
    url = config.auth_verify_url.get_secret_value()
    with blaming("HATCH_AUTH_VERIFY_URL"):
        return AnyOf([stored, RemoteVerifier(url, timeout_s=5.0, ttl_s=30.0, clock=clock)])
