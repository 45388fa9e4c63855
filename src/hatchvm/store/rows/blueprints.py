"""The tables of what VMs are made from: images and templates."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Final

from sqlalchemy import RowMapping, Table

from hatchvm.domain.image import Boot, Image, Template
from hatchvm.store import tables
from hatchvm.store.rows.base import NamedRows

_BOOT: Final = frozenset(field.name for field in fields(Boot))


class SqlImageRows(NamedRows[Image]):
    """Implements `ports.store.ImageRows`."""

    table: ClassVar[Table] = tables.images
    noun: ClassVar[str] = "image"
    value = Image

    async def update(self, image: Image) -> None:
        await self._set(image.id, {"name": image.name})

    def _encode(self, row: Image) -> dict[str, Any]:
        return {c.name: getattr(row.boot if c.name in _BOOT else row, c.name) for c in self.table.c}

    def _decode(self, columns: RowMapping) -> Image:
        boot = Boot(**{name: columns[name] for name in _BOOT})
        return Image(boot=boot, **{name: value for name, value in columns.items() if name not in _BOOT})


class SqlTemplateRows(NamedRows[Template]):
    """Implements `ports.store.TemplateRows`."""

    table: ClassVar[Table] = tables.templates
    noun: ClassVar[str] = "template"
    value = Template
