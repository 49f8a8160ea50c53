"""One collection's mapping as a converter: `CollectionPlan.rows` turns a document into rows.

What the columns take is removed from a copy of the document; what is left over goes to the rest column, at
its path. Under ``$notes`` the rest column holds the exact value of each mapped field whose column cannot say
it: a column that is NULL without a note stands for a field that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from topics import id_to_bson
from worker.mapping import values
from worker.mapping.extended import extended
from worker.mapping.ids import reversible, row_id
from worker.mapping.model import Child, CollectionMapping, Column, ColumnType

NOTES = "$notes"
WHOLE = "$value"  # a child row's element that is no object
_MISSING: Any = object()

Row = dict[str, Any]


class Unmappable(Exception):
    """The document has no place in its table. ``kind`` is the dead letter's; the text names fields only."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What SQL needs to know of a table: its columns with types in order, and its key."""

    table: str
    key: tuple[str, ...]
    tenant: str
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class Rows:
    """One document's rows. ``children`` has the rows of each child table, in the plan's order."""

    row_id: UUID
    tenant_id: UUID
    document_id: bytes | None  # BSON {"": _id} where the row id alone does not tell it
    row: Row
    children: tuple[list[Row], ...]


class _Fields:
    """Columns and rest column of one (sub)document."""

    def __init__(self, columns: dict[str, Column], rest: str) -> None:
        self.rest = rest
        self._flat: list[tuple[str, str, ColumnType, bool]] = []
        self._deep: list[tuple[str, str, ColumnType, bool]] = []
        for name, column in columns.items():
            path = column.path or name
            (self._deep if "." in path else self._flat).append((name, path, column.type, column.required))

    def take(self, left: dict[str, Any], row: Row, notes: dict[str, Any]) -> None:
        """Move mapped fields from ``left`` into ``row``; what their columns cannot say into ``notes``."""
        for name, path, type_, required in self._flat:
            row[name] = _column(left.pop(path, _MISSING), path, type_, required, notes)
        for name, path, type_, required in self._deep:
            row[name] = _column(_pop(left, path), path, type_, required, notes)

    def finish(self, left: dict[str, Any], row: Row, notes: dict[str, Any]) -> None:
        """Set the rest column."""
        rest: dict[str, Any] = extended(left)
        if notes:
            rest[NOTES] = {path: extended(value) for path, value in notes.items()}
        row[self.rest] = rest or None


def _column(value: Any, path: str, type_: ColumnType, required: bool, notes: dict[str, Any]) -> Any:
    if value is _MISSING or value is None:
        if required:
            state = "missing" if value is _MISSING else "null"
            raise Unmappable("mapping", f"field {path} is {state}, its column requires {type_}")
        if value is None:
            notes[path] = None
        return None
    if type_ == "jsonb":
        return values.plain(value, path, notes)
    try:
        return values.CONVERTERS[type_](value)
    except values.Inexact as inexact:
        if required and inexact.plain is None:
            found = type(value).__name__
            raise Unmappable("mapping", f"field {path} holds {found}, its column requires {type_}") from None
        notes[path] = value
        return inexact.plain


def _pop(left: dict[str, Any], path: str) -> Any:
    """Remove and return the value at a dotted path. Objects on the way are copied."""
    if "." not in path:
        return left.pop(path, _MISSING)
    *way, last = path.split(".")
    place = left
    for name in way:
        inner = place.get(name)
        if not isinstance(inner, dict):
            return _MISSING
        inner = dict(cast("dict[str, Any]", inner))
        place[name] = inner
        place = inner
    return place.pop(last, _MISSING)


class _ChildPlan:
    """An array's elements as rows of a child table."""

    def __init__(self, path: str, child: Child) -> None:
        self.path = path
        self._child = child
        self._fields = _Fields(child.columns, child.rest)
        types: dict[str, str] = {child.parent: "uuid", child.tenant: "uuid", child.position: "integer"}
        types |= {name: column.type for name, column in child.columns.items()}
        types[child.rest] = "jsonb"
        self.table = TablePlan(child.table, (child.parent, child.position), child.tenant, types)

    def rows(self, array: Any, parent: UUID, tenant: UUID, notes: dict[str, Any]) -> list[Row]:
        """Return a row for each element; what is no array, and an empty one, is noted."""
        if array is _MISSING:
            return []
        if not isinstance(array, list) or not array:
            notes[self.path] = array
            return []
        elements = cast("list[Any]", array)
        return [self._row(element, parent, tenant, position) for position, element in enumerate(elements)]

    def _row(self, element: Any, parent: UUID, tenant: UUID, position: int) -> Row:
        child = self._child
        row: Row = {child.parent: parent, child.tenant: tenant, child.position: position}
        notes: dict[str, Any] = {}
        if not isinstance(element, dict):
            row.update(dict.fromkeys(child.columns))
            row[child.rest] = {WHOLE: extended(element)}
            return row
        left = dict(cast("dict[str, Any]", element))
        self._fields.take(left, row, notes)
        self._fields.finish(left, row, notes)
        return row


class CollectionPlan:
    """Turns one collection's documents into rows."""

    def __init__(self, mapping: CollectionMapping) -> None:
        self._mapping = mapping
        self._fields = _Fields(mapping.columns, mapping.rest)
        self._children = [_ChildPlan(path, child) for path, child in mapping.children.items()]
        self._own_tenant = mapping.tenant.column == mapping.id
        types: dict[str, str] = {mapping.id: "uuid", mapping.tenant.column: "uuid"}
        types |= {name: column.type for name, column in mapping.columns.items()}
        types[mapping.rest] = "jsonb"
        self.table = TablePlan(mapping.table, (mapping.id,), mapping.tenant.column, types)
        self.children = tuple(child.table for child in self._children)

    def rows(self, document: dict[str, Any]) -> Rows:
        """Return a document's rows; `Unmappable` where a required column or the tenant cannot be had."""
        mapping, left, notes = self._mapping, dict(document), dict[str, Any]()
        document_id = left.pop("_id")
        own = row_id(document_id)
        tenant = self._tenant(document, left, notes)
        row: Row = {mapping.id: own, mapping.tenant.column: tenant}
        self._fields.take(left, row, notes)
        children = tuple(child.rows(_pop(left, child.path), own, tenant, notes) for child in self._children)
        kept = None
        if not reversible(document_id):
            kept, notes["_id"] = id_to_bson(document_id), document_id
        self._fields.finish(left, row, notes)
        return Rows(own, tenant, kept, row, children)

    def tenant(self, document: dict[str, Any]) -> UUID:
        """Return the tenant of a document whose rows cannot be had; `Unmappable` where it cannot be told."""
        return self._tenant(document, dict(document), {})

    def _tenant(self, document: dict[str, Any], left: dict[str, Any], notes: dict[str, Any]) -> UUID:
        path = self._mapping.tenant.path
        value = document["_id"] if path == "_id" else _pop(left, path)
        if value is _MISSING or value is None:
            raise Unmappable("tenant", f"field {path}, which tells the tenant, is missing or null")
        if path != "_id" and not reversible(value):
            notes[path] = value
        return row_id(value)
