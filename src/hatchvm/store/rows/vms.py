"""The VMs' table: what was asked for and where it stands, in one flat row."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from sqlalchemy import RowMapping, Table, bindparam, case, func, or_, select, update

from hatchvm.base.errors import StaleGeneration
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.store import tables
from hatchvm.store.rows.base import TableRows

_C: Final = tables.vms.c
_SPEC: Final = frozenset(field.name for field in fields(VMSpec))
_ACTIVE_AT: Final = bindparam("active_at", type_=_C.last_active_at.type)
#: `touch` takes no generation, so the row may know of newer activity than who writes it.
_NEWEST_ACTIVITY: Final = case(
    (_C.last_active_at > _ACTIVE_AT, _C.last_active_at), else_=func.coalesce(_ACTIVE_AT, _C.last_active_at)
)
#: Built once: building a statement of this size costs more than running it.
_COMPARE_AND_SET: Final = (
    update(tables.vms)
    .where(_C.id == bindparam("row_id"), _C.generation == bindparam("row_generation"))
    .values(last_active_at=_NEWEST_ACTIVITY)
    .returning(*_C)
)


class SqlVMRows(TableRows[VM]):
    """Implements `ports.store.VMRows`."""

    table: ClassVar[Table] = tables.vms
    noun: ClassVar[str] = "vm"
    value = VM

    async def update(self, vm: VM) -> VM:
        values = self._encode(replace(vm, generation=vm.generation + 1))
        guard = {"row_id": vm.id, "row_generation": vm.generation, "active_at": values.pop("last_active_at")}
        written = await self._lane.execute(_COMPARE_AND_SET, values | guard)
        if not written:
            await self.get(vm.id)
            raise StaleGeneration("the vm was changed by someone else; try again")
        return self._decode(written[0])

    async def touch(self, vm_id: str, last_active_at: datetime) -> None:
        known = _C.last_active_at
        behind = or_(known.is_(None), known < last_active_at)
        await self._lane.execute(update(self.table).where(_C.id == vm_id, behind).values(last_active_at=last_active_at))

    async def used_ssh_ports(self) -> set[int]:
        port = _C.ssh_port
        return {row["ssh_port"] for row in await self._lane.execute(select(port).where(port.is_not(None)))}

    async def used_addresses(self) -> set[str]:
        address = select(_C.guest_ip).where(_C.tap_name.is_not(None))
        return {row["guest_ip"] for row in await self._lane.execute(address)}

    async def count_by_image(self, image_id: str) -> int:
        counted = select(func.count().label("count")).where(_C.image_id == image_id)
        (row,) = await self._lane.execute(counted)
        return int(row["count"])

    def _encode(self, row: VM) -> dict[str, Any]:
        return {c.name: getattr(row.spec if c.name in _SPEC else row, c.name) for c in _C}

    def _decode(self, columns: RowMapping) -> VM:
        spec = VMSpec(**{name: columns[name] for name in _SPEC})
        return VM(spec=spec, **{name: value for name, value in columns.items() if name not in _SPEC})
