"""What the store on SQLite does with the rest of the world: other processes, bad files, bad URLs, logs."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Conflict, Corrupt, HatchError, Invalid, Unavailable, Unsupported
from hatchvm.base.tasks import spawn
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.store.store import SqlStore

NOW: Final = datetime(2026, 3, 6, tzinfo=UTC)
SECRET: Final = "password-8c1f"
VM_ROW: Final = VM(
    id="vm-1",
    spec=VMSpec(image_id="img-1", name="web", user_data=SECRET),
    state=State.RUNNING,
    node_id="node-1",
    created_at=NOW,
    updated_at=NOW,
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "hatch.db"


@pytest.fixture
async def store(database: Path) -> AsyncIterator[SqlStore]:
    """One that does not wait: whatever is locked is locked for the whole test."""
    store = SqlStore(f"sqlite:///{database}", busy_timeout_s=0.05)
    await store.open()
    yield store
    await store.close()


async def test_the_file_is_in_wal_mode(store: SqlStore, database: Path) -> None:
    async with store.begin() as tx:
        await tx.vms.insert(VM_ROW)
    other = sqlite3.connect(database)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert other.execute("SELECT name FROM vms").fetchone() == ("web",)
    other.close()


async def test_a_file_that_another_process_writes_is_busy_and_then_is_not(store: SqlStore, database: Path) -> None:
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="the database is busy"):
        async with store.begin() as tx:
            await tx.vms.list()
    other.execute("ROLLBACK")
    other.close()
    async with store.begin() as tx:
        assert await tx.vms.list() == []


async def test_nobody_else_writes_between_a_read_and_a_write(store: SqlStore, database: Path) -> None:
    other = sqlite3.connect(database, isolation_level=None, timeout=0)
    async with store.begin() as tx:
        await tx.vms.list()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        await tx.vms.insert(VM_ROW)
    other.close()


async def test_a_unit_of_work_cancelled_twice_while_it_waits_is_undone_all_the_same(database: Path) -> None:
    store = SqlStore(f"sqlite:///{database}")
    await store.open()
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    async def work() -> None:
        async with store.begin() as tx:
            await tx.vms.insert(VM_ROW)

    task = spawn(work(), name="work")
    for _ in range(2):
        await asyncio.sleep(0)  # first it waits for its insert, then for the rollback behind it
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other.execute("ROLLBACK")
    other.close()
    async with store.begin() as tx:
        assert await tx.vms.list() == []
    await store.close()


async def test_a_unit_of_work_inside_another_is_refused_instead_of_hanging(store: SqlStore) -> None:
    async with store.begin() as outer:
        await outer.vms.insert(VM_ROW)
        with pytest.raises(Unavailable, match="the database is busy"):
            async with store.begin():
                pytest.fail("two units of work at once")
    async with store.begin() as tx:
        assert await tx.vms.list() == [VM_ROW]


async def test_two_daemons_on_one_file_lose_no_change(database: Path) -> None:
    stores = [SqlStore(f"sqlite:///{database}"), SqlStore(f"sqlite:///{database}")]
    for store in stores:  # SQLite does not wait for another's switch of a new file to WAL: it is busy at once
        await store.open()
    async with stores[0].begin() as tx:
        await tx.vms.insert(VM_ROW)

    async def count_ten_up(store: SqlStore) -> None:
        for _ in range(10):
            async with store.begin() as tx:
                vm = await tx.vms.get(VM_ROW.id)
                await tx.vms.update(replace(vm, wake_failures=vm.wake_failures + 1))

    await asyncio.gather(*(count_ten_up(store) for store in stores))
    async with stores[1].begin() as tx:
        assert (await tx.vms.get(VM_ROW.id)).wake_failures == 20
    for store in stores:
        await store.close()


async def test_close_waits_for_the_unit_of_work_under_way(database: Path) -> None:
    store = SqlStore(f"sqlite:///{database}")
    await store.open()
    async with store.begin() as tx:
        closing = spawn(store.close(), name="close")
        await tx.vms.insert(VM_ROW)
        assert not closing.done()
    await closing
    await store.open()
    async with store.begin() as tx:
        assert await tx.vms.list() == [VM_ROW]
    await store.close()


async def test_a_file_in_a_missing_folder_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="the database cannot be opened"):
        await SqlStore(f"sqlite:///{tmp_path}/missing/hatch.db").open()


async def test_a_file_that_is_no_database_is_corrupt_and_left_alone(database: Path) -> None:
    content = b"something else entirely " * 100
    database.write_bytes(content)
    with pytest.raises(Corrupt, match="the database file is not a database"):
        await SqlStore(f"sqlite:///{database}").open()
    assert database.read_bytes() == content


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        (f"postgresql://hatch:{SECRET}@db/hatch", Unsupported),
        (f"hatch:{SECRET}", Invalid),
        (f"sqlite://{SECRET}/hatch.db", Invalid),
        ("sqlite://", Invalid),
        ("", Invalid),
    ],
)
def test_other_urls_are_refused_without_repeating_them(url: str, kind: type[HatchError]) -> None:
    with pytest.raises(kind) as caught:
        SqlStore(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_user_data_reaches_no_log_and_no_error(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = SqlStore(f"sqlite:///{database}")
    await store.open()
    with pytest.raises(Conflict) as conflict:
        async with store.begin() as tx:
            await tx.vms.insert(VM_ROW)
            await tx.vms.insert(replace(VM_ROW, id="vm-2"))
    unstorable = replace(VM_ROW, spec=replace(VM_ROW.spec, user_data=SECRET + "\ud800"))
    with pytest.raises(Invalid) as invalid:
        async with store.begin() as tx:
            await tx.vms.insert(unstorable)
    await store.close()
    told = [caplog.text]
    for error in (conflict.value, invalid.value):
        told += [error.message, error.detail, *traceback.format_exception(error)]
    assert not [text for text in told if SECRET in text]
