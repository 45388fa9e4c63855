"""What every store promises (`ports/store.py`), whatever it stands on. A new store joins with one line in `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.errors import Conflict, HatchError, Invalid, NotFound, StaleGeneration, Unavailable
from hatchvm.base.tasks import spawn
from hatchvm.domain.image import Boot, Image, Template
from hatchvm.domain.key import ApiKey, digest_of
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.ssh_key import SSHKey
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.ports.store import Store, Tx
from hatchvm.store.store import SqlStore

#: name -> makes a store that keeps its data under a folder; the same folder is the same data.
STORES: Final[dict[str, Callable[[Path], Store]]] = {
    "sqlite": lambda folder: SqlStore(f"sqlite:///{folder}/hatch.db"),
}
NOW: Final = datetime(2026, 3, 6, 14, 30, 0, 123456, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)


@pytest.fixture(params=STORES)
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    return lambda: STORES[request.param](tmp_path)


@pytest.fixture
async def store(make_store: Callable[[], Store]) -> AsyncIterator[Store]:
    store = make_store()
    await store.open()
    yield store
    await store.close()


def a_vm(vm_id: str = "vm-000000000001", *, image_id: str = "img-1", name: str | None = None, **fields: Any) -> VM:
    row: dict[str, Any] = {"state": State.RUNNING, "node_id": "node-1", "created_at": NOW, "updated_at": NOW}
    return VM(id=vm_id, spec=VMSpec(image_id=image_id, name=name), **(row | fields))


def a_route(route_id: str = "rt-1", **fields: Any) -> Route:
    row: dict[str, Any] = {"vm_id": "vm-000000000001", "subdomain": f"sub-{route_id}", "target_port": 80}
    row |= {"auto_wake": True, "created_at": NOW, "updated_at": NOW}
    return Route(id=route_id, **(row | fields))


def a_snapshot(snapshot_id: str = "snap-1", **fields: Any) -> Snapshot:
    row: dict[str, Any] = {"vm_id": "vm-000000000001", "status": SnapshotStatus.PENDING, "state_key": "a/state"}
    row |= {"memory_key": "a/memory", "disk_key": "a/disk", "vm_config": "{}", "created_at": NOW}
    return Snapshot(id=snapshot_id, **(row | fields))


def an_image(image_id: str = "img-1", **fields: Any) -> Image:
    boot = Boot(kernel=Path("/i/kernel"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="quiet")
    row: dict[str, Any] = {"name": None, "boot": boot, "digest": "d1", "size_bytes": 1, "created_at": NOW}
    return Image(id=image_id, **(row | fields))


def a_template(template_id: str = "tpl-1", **fields: Any) -> Template:
    row: dict[str, Any] = {"name": template_id, "created_at": NOW}
    return Template(id=template_id, **(row | fields))


def a_key(key_id: str = "key-1", **fields: Any) -> ApiKey:
    row: dict[str, Any] = {"name": "laptop", "digest": digest_of(key_id), "created_at": NOW}
    return ApiKey(id=key_id, **(row | fields))


def a_lease(lease_id: str = "hold-1", **fields: Any) -> Lease:
    row: dict[str, Any] = {"vm_id": "vm-000000000001", "reason": "", "created_at": NOW, "expires_at": NOW + SECOND}
    return Lease(id=lease_id, **(row | fields))


def an_ssh_key(key_id: str = "ssh-1", **fields: Any) -> SSHKey:
    row: dict[str, Any] = {"name": "laptop", "public_key": "ssh-ed25519 AAAA", "fingerprint": f"SHA256:{key_id}"}
    return SSHKey(id=key_id, **({**row, "created_at": NOW} | fields))


#: table -> makes a row with the given id; belongings are OWNER's
MAKERS: Final[dict[str, Callable[..., Any]]] = {
    "vms": a_vm,
    "routes": a_route,
    "snapshots": a_snapshot,
    "images": an_image,
    "templates": a_template,
    "keys": a_key,
    "leases": a_lease,
    "ssh_keys": an_ssh_key,
}
#: What belongs to a VM and goes with it.
BELONGINGS: Final = ("routes", "snapshots", "leases")
NOUNS: Final = dict(
    zip(MAKERS, ("vm", "route", "snapshot", "image", "template", "key", "hold", "ssh key"), strict=True)
)
OWNER: Final = a_vm()

every_table = pytest.mark.parametrize("table", MAKERS)


async def put(store: Store, **rows: Any) -> None:
    """Insert one row into each named table, in one unit of work."""
    async with store.begin() as tx:
        for table, row in rows.items():
            await getattr(tx, table).insert(row)


async def refused(store: Store, work: Callable[[Tx], Awaitable[object]]) -> HatchError:
    """The error with which a unit of work ends."""
    with pytest.raises(HatchError) as caught:
        async with store.begin() as tx:
            await work(tx)
    return caught.value


FULL_VM: Final = VM(
    id="vm-full",
    spec=VMSpec(
        image_id="img-9",
        template_id="tpl-9",
        name="web",
        vcpu_count=4,
        mem_mib=2048,
        boot_args="console=ttyS0",
        enable_network=False,
        user_data="#cloud-config\npassword: ünicode",
        idle_timeout="1h30m",
        metadata={"team": "blue", "leer": ""},
    ),
    state=State.SUSPENDING,
    node_id="node-7",
    created_at=NOW,
    updated_at=NOW + SECOND,
    state_reason="because",
    last_active_at=NOW + 2 * SECOND,
    started_at=NOW + 3 * SECOND,
    guest_ip="10.0.0.2",
    guest_mac="02:00:00:00:00:01",
    tap_name="tap0",
    ssh_port=16000,
    wake_failures=3,
    generation=2**40,
)
FULL_BOOT: Final = Boot(
    kernel=Path("/i/kernel"), initrd=Path("/i/initrd"), rootfs=Path("/i/root"), rootfs_format="qcow2", boot_args=""
)


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("vms", FULL_VM),
        ("vms", a_vm("vm-bare")),
        ("routes", a_route(auto_wake=False, target_port=65535, updated_at=NOW + SECOND)),
        ("routes", a_route(domain="app.example.com", domain_token="t0k3n")),
        ("routes", a_route(domain="app.example.com", domain_token="t0k3n", domain_verified_at=NOW)),
        ("routes", a_route(domain="a.io", domain_checked_at=NOW, domain_missing_since=NOW - SECOND, domain_misses=2)),
        ("snapshots", a_snapshot()),
        (
            "snapshots",
            a_snapshot(
                status=SnapshotStatus.COMMITTED, size_bytes=2**40, stored_bytes=2**33, parent_id="snap-0", error="full"
            ),
        ),
        ("images", an_image()),
        ("images", an_image(name="debian", boot=FULL_BOOT, size_bytes=2**40, builtin=True)),
        ("templates", a_template()),
        ("templates", a_template(defaults={"vcpu_count": 2, "enable_network": False, "metadata": {"a": "b"}})),
        ("keys", a_key()),
        ("leases", a_lease()),
        ("leases", a_lease(reason="nightly ünicode", expires_at=NOW + 30 * 86400 * SECOND)),
        ("ssh_keys", an_ssh_key(name="phone", public_key="ssh-rsa " + "A" * 700)),
    ],
)
async def test_a_row_comes_back_as_it_was_written(store: Store, table: str, row: Any) -> None:
    if table in BELONGINGS:
        await put(store, vms=OWNER)
    await put(store, **{table: row})
    async with store.begin() as tx:
        assert await getattr(tx, table).get(row.id) == row
        assert await getattr(tx, table).list() == [row]


async def test_read_only_mappings_can_be_written(store: Store) -> None:
    spec = VMSpec(image_id="img-1", metadata={"team": "blue"})
    await put(store, vms=replace(a_vm(), spec=spec))
    async with store.begin() as tx:
        kept = (await tx.vms.get(OWNER.id)).spec.metadata
        await tx.templates.insert(a_template(defaults={"metadata": kept}))
        assert (await tx.templates.get("tpl-1")).defaults == {"metadata": {"team": "blue"}}


async def test_times_come_back_aware_in_utc_with_microseconds(store: Store) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-7)))
    await put(store, vms=a_vm(created_at=elsewhere, last_active_at=elsewhere))
    async with store.begin() as tx:
        written = await tx.vms.update(await tx.vms.get(OWNER.id))
        for vm in (written, await tx.vms.get(OWNER.id)):
            for moment in (vm.created_at, vm.last_active_at):
                assert moment == NOW
                assert moment is not None
                assert moment.utcoffset() == timedelta(0)


@every_table
async def test_an_unknown_id_is_not_found(store: Store, table: str) -> None:
    error = await refused(store, lambda tx: getattr(tx, table).get("nope"))
    assert isinstance(error, NotFound)
    assert error.message == f"{NOUNS[table]} not found"


@every_table
async def test_a_table_without_rows_lists_none(store: Store, table: str) -> None:
    async with store.begin() as tx:
        assert list(await getattr(tx, table).list()) == []


@every_table
async def test_delete_removes_one_row_and_may_be_repeated(store: Store, table: str) -> None:
    if table != "vms":
        await put(store, vms=OWNER)
    kept, gone = MAKERS[table]("b"), MAKERS[table]("a")
    await put(store, **{table: kept})
    await put(store, **{table: gone})
    for _ in range(2):
        async with store.begin() as tx:
            await getattr(tx, table).delete("a")
    async with store.begin() as tx:
        assert await getattr(tx, table).list() == [kept]


@every_table
async def test_lists_are_newest_first_then_by_id(store: Store, table: str) -> None:
    if table in BELONGINGS:
        await put(store, vms=OWNER)
    make = MAKERS[table]
    for row in (make("b"), make("c", created_at=NOW + SECOND), make("a"), make("d", created_at=NOW - SECOND)):
        await put(store, **{table: row})
    async with store.begin() as tx:
        assert [row.id for row in await getattr(tx, table).list()] == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("table", "first", "second", "sentence"),
    [
        ("vms", a_vm("a", name="web"), a_vm("b", name="web"), 'vm name "web" is already in use'),
        ("vms", a_vm("a", ssh_port=16000), a_vm("b", ssh_port=16000), "ssh port 16000 is already in use"),
        ("routes", a_route("a", subdomain="x"), a_route("b", subdomain="x"), 'subdomain "x" is already in use'),
        ("images", an_image("a", name="tiny"), an_image("b", name="tiny"), 'image name "tiny" is already in use'),
        ("templates", a_template("a", name="t"), a_template("b", name="t"), 'template name "t" is already in use'),
        ("keys", a_key("a", digest="same"), a_key("b", digest="same"), "this key is already in use"),
        (
            "ssh_keys",
            an_ssh_key("a", fingerprint="SHA256:x"),
            an_ssh_key("b", fingerprint="SHA256:x"),
            "this SSH key is already in use",
        ),
        ("vms", a_vm("a"), a_vm("a"), "id a is already in use"),
        ("vms", a_vm("a", name="{0.x}"), a_vm("b", name="{0.x}"), 'vm name "{0.x}" is already in use'),
    ],
)
async def test_what_is_unique_cannot_be_used_twice(
    store: Store, table: str, first: Any, second: Any, sentence: str
) -> None:
    await put(store, vms=OWNER)
    await put(store, **{table: first})
    error = await refused(store, lambda tx: getattr(tx, table).insert(second))
    assert isinstance(error, Conflict)
    assert error.message == sentence
    async with store.begin() as tx:
        assert await getattr(tx, table).get(first.id) == first


async def test_an_update_may_not_take_a_used_name_either(store: Store) -> None:
    await put(store, vms=a_vm(name="web"), routes=a_route("a", subdomain="x"))
    await put(store, vms=a_vm("b"), routes=a_route("b", subdomain="y"))
    error = await refused(store, lambda tx: tx.vms.update(a_vm("b", name="web")))
    assert (type(error), error.message) == (Conflict, 'vm name "web" is already in use')
    error = await refused(store, lambda tx: tx.routes.update(a_route("b", subdomain="x")))
    assert (type(error), error.message) == (Conflict, 'subdomain "x" is already in use')
    await put(store, images=an_image("a", name="tiny"))
    await put(store, images=an_image("b"))
    error = await refused(store, lambda tx: tx.images.update(an_image("b", name="tiny")))
    assert (type(error), error.message) == (Conflict, 'image name "tiny" is already in use')


async def test_many_may_claim_a_domain_and_one_has_it(store: Store) -> None:
    claims = [a_route(row_id, domain="app.example.com", domain_token=row_id) for row_id in ("a", "b", "c")]
    await put(store, vms=OWNER)
    for claim in claims:
        await put(store, routes=claim)
    first, second, third = (replace(claim, domain_verified_at=NOW) for claim in claims)
    async with store.begin() as tx:
        await tx.routes.update(first)
    for row in (second, third):
        error = await refused(store, lambda tx, row=row: tx.routes.update(row))  # type: ignore[misc]
        assert (type(error), error.message) == (Conflict, 'domain "app.example.com" is already in use')
    async with store.begin() as tx:
        await tx.routes.update(a_route("a"))
        await tx.routes.update(second)
    async with store.begin() as tx:
        await tx.routes.delete("b")
        await tx.routes.update(third)
        assert {row.id: row.domain_verified_at for row in await tx.routes.list()} == {"a": None, "c": NOW}


async def test_any_number_of_rows_may_have_no_name_and_no_port(store: Store) -> None:
    for row_id in ("a", "b"):
        await put(store, vms=a_vm(row_id), images=an_image(row_id))


async def test_a_unit_of_work_that_raises_leaves_nothing(store: Store) -> None:
    await put(store, vms=a_vm("old"))
    with pytest.raises(ZeroDivisionError):
        async with store.begin() as tx:
            await tx.vms.insert(OWNER)
            await tx.routes.insert(a_route())
            await tx.vms.delete("old")
            raise ZeroDivisionError
    async with store.begin() as tx:
        assert [vm.id for vm in await tx.vms.list()] == ["old"]
        assert list(await tx.routes.list()) == []


async def test_a_unit_of_work_sees_its_own_writes(store: Store) -> None:
    async with store.begin() as tx:
        await tx.vms.insert(OWNER)
        assert await tx.vms.get(OWNER.id) == OWNER


async def test_a_unit_of_work_that_is_cancelled_leaves_nothing_and_the_next_one_works(store: Store) -> None:
    inserted, never = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with store.begin() as tx:
            await tx.vms.insert(OWNER)
            inserted.set()
            await never.wait()

    task = spawn(work(), name="work")
    await inserted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await put(store, vms=OWNER)


async def test_cancelling_at_any_moment_leaves_a_whole_unit_of_work_or_none(store: Store) -> None:
    async def work() -> None:
        async with store.begin() as tx:
            await tx.vms.insert(OWNER)
            await tx.routes.insert(a_route())

    finished, turns = False, 0
    while not finished:
        task = spawn(work(), name="work")
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        finished = not task.cancelled()
        async with store.begin() as tx:
            assert len(await tx.vms.list()) == len(await tx.routes.list())
            await tx.vms.delete(OWNER.id)
        turns += 1 + turns // 4


async def test_an_update_returns_the_row_with_the_next_generation(store: Store) -> None:
    await put(store, vms=OWNER)
    changed = replace(OWNER, state=State.STOPPED, state_reason="asked to", updated_at=NOW + SECOND, wake_failures=2)
    async with store.begin() as tx:
        written = await tx.vms.update(changed)
    assert written == replace(changed, generation=1)
    async with store.begin() as tx:
        assert await tx.vms.get(OWNER.id) == written


async def test_an_update_with_an_old_generation_changes_nothing(store: Store) -> None:
    await put(store, vms=OWNER)
    async with store.begin() as tx:
        written = await tx.vms.update(OWNER)
    error = await refused(store, lambda tx: tx.vms.update(replace(OWNER, state=State.ERROR)))
    assert isinstance(error, StaleGeneration)
    async with store.begin() as tx:
        assert await tx.vms.get(OWNER.id) == written


async def test_of_racing_updates_with_one_generation_exactly_one_wins(store: Store) -> None:
    await put(store, vms=OWNER)

    async def claim(reason: str) -> VM:
        async with store.begin() as tx:
            return await tx.vms.update(replace(OWNER, state_reason=reason))

    outcomes = await asyncio.gather(*(claim(str(n)) for n in range(20)), return_exceptions=True)
    winners = [outcome for outcome in outcomes if isinstance(outcome, VM)]
    assert len(winners) == 1
    assert all(isinstance(outcome, VM | StaleGeneration) for outcome in outcomes)
    async with store.begin() as tx:
        assert await tx.vms.get(OWNER.id) == winners[0]


@pytest.mark.parametrize("table", ["vms", "routes", "snapshots", "leases", "images"])
async def test_an_update_of_a_missing_row_is_not_found(store: Store, table: str) -> None:
    error = await refused(store, lambda tx: getattr(tx, table).update(MAKERS[table]("nope")))
    assert isinstance(error, NotFound)
    assert error.message == f"{NOUNS[table]} not found"


async def test_belongings_are_updated_whole(store: Store) -> None:
    other_route, other_snapshot, other_lease = a_route("rt-2"), a_snapshot("snap-2"), a_lease("hold-2")
    await put(store, vms=OWNER, routes=other_route, snapshots=other_snapshot, leases=other_lease)
    await put(store, routes=a_route(), snapshots=a_snapshot(), leases=a_lease())
    route = a_route(target_port=8080, auto_wake=False, updated_at=NOW + SECOND)
    snapshot = a_snapshot(status=SnapshotStatus.COMMITTED, stored_bytes=5)
    lease = a_lease(reason="longer", expires_at=NOW + 9 * SECOND)
    async with store.begin() as tx:
        await tx.routes.update(route)
        await tx.snapshots.update(snapshot)
        await tx.leases.update(lease)
    async with store.begin() as tx:
        assert await tx.routes.list() == [other_route, route]
        assert await tx.snapshots.list() == [other_snapshot, snapshot]
        assert await tx.leases.list() == [other_lease, lease]


async def test_an_update_of_an_image_changes_its_name_only(store: Store) -> None:
    image, other = an_image("a", name="old"), an_image("b", name="kept")
    await put(store, images=image)
    await put(store, images=other)
    for name in ("new", None):
        async with store.begin() as tx:
            await tx.images.update(an_image("a", name=name, boot=FULL_BOOT, digest="d2", builtin=True))
        async with store.begin() as tx:
            assert await tx.images.list() == [other, replace(image, name=name)]


async def test_a_touch_records_newer_activity_and_takes_no_generation(store: Store) -> None:
    await put(store, vms=OWNER)
    for moment in (NOW, NOW + SECOND, NOW - SECOND):
        async with store.begin() as tx:
            await tx.vms.touch(OWNER.id, moment)
    async with store.begin() as tx:
        assert await tx.vms.get(OWNER.id) == replace(OWNER, last_active_at=NOW + SECOND)


async def test_a_touch_of_a_missing_vm_is_ignored(store: Store) -> None:
    async with store.begin() as tx:
        await tx.vms.touch("nope", NOW)


@pytest.mark.parametrize("known_to_writer", [None, NOW, NOW + 2 * SECOND])
async def test_an_update_takes_no_activity_back(store: Store, known_to_writer: datetime | None) -> None:
    await put(store, vms=OWNER)
    async with store.begin() as tx:
        await tx.vms.touch(OWNER.id, NOW + SECOND)
        written = await tx.vms.update(replace(OWNER, last_active_at=known_to_writer))
        newest = max(NOW + SECOND, known_to_writer or NOW)
        assert written == replace(OWNER, last_active_at=newest, generation=1)
        assert await tx.vms.get(OWNER.id) == written


async def test_deleting_a_vm_takes_its_belongings_along(store: Store) -> None:
    await put(store, vms=a_vm("b"), **{table: MAKERS[table](f"{table}-b", vm_id="b") for table in BELONGINGS})
    await put(store, vms=OWNER, **{table: MAKERS[table]() for table in BELONGINGS})
    async with store.begin() as tx:
        await tx.vms.delete(OWNER.id)
    async with store.begin() as tx:
        for table in BELONGINGS:
            assert [row.id for row in await getattr(tx, table).list()] == [f"{table}-b"]


@pytest.mark.parametrize("table", BELONGINGS)
async def test_nothing_can_belong_to_a_missing_vm(store: Store, table: str) -> None:
    error = await refused(store, lambda tx: getattr(tx, table).insert(MAKERS[table]("a")))
    assert (type(error), error.message) == (NotFound, "vm not found")


@pytest.mark.parametrize("table", BELONGINGS)
async def test_belongings_are_listed_by_vm_newest_first(store: Store, table: str) -> None:
    make = MAKERS[table]
    await put(store, vms=OWNER)
    await put(store, **{"vms": a_vm("b"), table: make("x", vm_id="b")})
    for row in (make("m"), make("z", created_at=NOW - SECOND), make("a", created_at=NOW + SECOND)):
        await put(store, **{table: row})
    async with store.begin() as tx:
        rows = getattr(tx, table)
        assert [row.id for row in await rows.list_for_vm(OWNER.id)] == ["a", "m", "z"]
        assert list(await rows.list_for_vm("nope")) == []


async def test_used_ssh_ports(store: Store) -> None:
    for vm in (a_vm("a", ssh_port=16000), a_vm("b", ssh_port=16002), a_vm("c")):
        await put(store, vms=vm)
    async with store.begin() as tx:
        assert await tx.vms.used_ssh_ports() == {16000, 16002}


async def test_guests_on_the_bridge_have_an_address_each_and_others_may_all_have_the_same(store: Store) -> None:
    address = {"guest_ip": "172.16.0.10", "guest_mac": "06:00:ac:10:00:0a"}
    await put(store, vms=a_vm("a", tap_name="a", state=State.SNAPSHOTTED, **address))
    for row_id in ("b", "c"):
        await put(store, vms=a_vm(row_id, **address))
    await put(store, vms=a_vm("d", tap_name="d", guest_ip="172.16.0.11", guest_mac="06:00:ac:10:00:0b"))
    async with store.begin() as tx:
        assert await tx.vms.used_addresses() == {"172.16.0.10", "172.16.0.11"}
    for other, sentence in (
        ({"guest_mac": "06:00:ac:10:00:0c"}, "guest_ip 172.16.0.10 is already in use"),
        ({"guest_ip": "172.16.0.12"}, "guest_mac 06:00:ac:10:00:0a is already in use"),
    ):
        taken = a_vm("e", tap_name="e", **(address | other))
        error = await refused(store, lambda tx, taken=taken: tx.vms.insert(taken))  # type: ignore[misc]
        assert (type(error), error.message) == (Conflict, sentence)


async def test_count_by_image(store: Store) -> None:
    for vm in (a_vm("a"), a_vm("b"), a_vm("c", image_id="img-2")):
        await put(store, vms=vm)
    async with store.begin() as tx:
        assert [await tx.vms.count_by_image(image) for image in ("img-1", "img-2", "img-3")] == [2, 1, 0]


@pytest.mark.parametrize("table", ["images", "templates"])
async def test_find_by_id_goes_before_find_by_name(store: Store, table: str) -> None:
    make = MAKERS[table]
    named, impostor = make("id-1", name="debian"), make("id-2", name="id-1")
    await put(store, **{table: named})
    await put(store, **{table: impostor})
    async with store.begin() as tx:
        rows = getattr(tx, table)
        assert await rows.find("debian") == named
        assert await rows.find("id-1") == named
        assert await rows.find("id-2") == impostor
    error = await refused(store, lambda tx: getattr(tx, table).find("nope"))
    assert (type(error), error.message) == (NotFound, f"{NOUNS[table]} not found")


async def test_a_key_is_found_by_its_digest(store: Store) -> None:
    await put(store, keys=a_key())
    async with store.begin() as tx:
        assert await tx.keys.find_digest(digest_of("key-1")) == a_key()
        assert await tx.keys.find_digest("nope") is None


async def test_an_ssh_key_is_found_by_its_fingerprint(store: Store) -> None:
    await put(store, ssh_keys=an_ssh_key())
    async with store.begin() as tx:
        assert await tx.ssh_keys.find_fingerprint("SHA256:ssh-1") == an_ssh_key()
        assert await tx.ssh_keys.find_fingerprint("SHA256:SSH-1") is None


async def test_fifty_units_of_work_at_once_lose_no_change(store: Store) -> None:
    await put(store, vms=OWNER)

    async def count_one_up() -> None:
        async with store.begin() as tx:
            vm = await tx.vms.get(OWNER.id)
            await tx.vms.update(replace(vm, wake_failures=vm.wake_failures + 1))

    await asyncio.gather(*(count_one_up() for _ in range(50)))
    async with store.begin() as tx:
        assert (await tx.vms.get(OWNER.id)).wake_failures == 50


@pytest.mark.parametrize("vm", [a_vm(name="\ud800"), a_vm(ssh_port=2**70)], ids=["surrogate", "huge"])
async def test_what_cannot_be_stored_is_invalid(store: Store, vm: VM) -> None:
    assert isinstance(await refused(store, lambda tx: tx.vms.insert(vm)), Invalid)


async def test_data_outlives_the_store(make_store: Callable[[], Store]) -> None:
    for attempt in range(2):
        store = make_store()
        await store.open()
        if attempt == 0:
            await put(store, vms=FULL_VM)
        async with store.begin() as tx:
            assert await tx.vms.list() == [FULL_VM]
        await store.close()


async def test_a_store_can_be_closed_twice_and_opened_again(store: Store) -> None:
    await put(store, vms=OWNER)
    await store.close()
    await store.close()
    assert isinstance(await refused(store, lambda tx: tx.vms.list()), Unavailable)
    await store.open()
    async with store.begin() as tx:
        assert await tx.vms.list() == [OWNER]
