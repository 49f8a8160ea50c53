"""One collection's mapping as a converter: `CollectionPlan.rows` turns a document into rows.

What the columns take is removed from a copy of the document; what is left over goes to the rest column, at
its path. Under ``$notes`` the rest column holds the exact value of each mapped field whose column cannot say
it: a column that is NULL without a note stands for a field that is not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, cast
from uuid import UUID

from topics import Collection, id_to_bson
from worker.mapping.columns import ABSENT, MISSING, ColumnPlan, Notes, Unmappable
from worker.mapping.extended import as_id, extended
from worker.mapping.ids import reversible, row_id
from worker.mapping.model import ELEMENT, Child, CollectionMapping, Column, Mapping, Tenant
from worker.mapping.sources import named_tenant

NOTES = "$notes"

Row = dict[str, Any]
Scopes = dict[str, str | None]
"""The scope (see `ids.row_id`) of each collection's ids."""


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What SQL needs to know of a table: its columns with types in order, and its key.

    ``tenant`` is None where the rows belong to all tenants.
    """

    table: str
    key: tuple[str, ...]
    tenant: str | None
    columns: dict[str, str]


class ParentKey(NamedTuple):
    """The document whose tenant another one has."""

    collection: str
    row_id: UUID


@dataclass(frozen=True, slots=True)
class Rows:
    """One document's rows. ``children`` has the rows of each child table, in the plan's order.

    Where the tenant is a parent document's, ``parent`` names that one and ``tenant_id`` is None until
    `of_tenant` has told it.
    """

    row_id: UUID
    tenant_id: UUID | None
    document_id: bytes | None  # BSON {"": _id} where the row id alone does not tell it
    row: Row
    children: tuple[list[Row], ...]
    parent: ParentKey | None = None


class Fields:
    """Columns and rest column of one (sub)document."""

    def __init__(self, columns: dict[str, Column], rest: str, ignore: Sequence[str], scopes: Scopes) -> None:
        self.rest = rest
        self._ignore = tuple(ignore)
        self.plans = [
            ColumnPlan(name, column, scopes.get(column.references or "")) for name, column in columns.items()
        ]
        # A field that only has a constant's name is none of its business.
        self._constants = {plan.name: plan.constant for plan in self.plans if plan.constant is not None}
        own = [plan for plan in self.plans if plan.constant is None and plan.path != ELEMENT]
        self._flat = [(plan.name, plan.path, plan.take) for plan in own if "." not in plan.path]
        self._deep = [(plan.name, plan.path, plan.take) for plan in own if "." in plan.path]
        self.whole = next((plan for plan in self.plans if plan.path == ELEMENT), None)

    def take(self, left: dict[str, Any], row: Row, notes: Notes) -> None:
        """Move mapped fields from ``left`` into ``row``; what their columns cannot say into ``notes``."""
        if self._constants:
            row.update(self._constants)
        for name, path, take in self._flat:
            row[name] = take(left.pop(path, MISSING), notes)
        for name, path, take in self._deep:
            row[name] = take(pop(left, path), notes)
        for path in self._ignore:
            pop(left, path)

    def finish(self, left: dict[str, Any], row: Row, notes: Notes) -> None:
        """Set the rest column."""
        rest: dict[str, Any] = extended(left) if left else {}
        if notes:
            rest[NOTES] = {p: ABSENT if v is MISSING else extended(v) for p, v in notes.items()}
        row[self.rest] = rest or None


def pop(left: dict[str, Any], path: str) -> Any:
    """Remove and return the value at a dotted path, or MISSING. Objects on the way are copied."""
    if "." not in path:
        return left.pop(path, MISSING)
    *way, last = path.split(".")
    place = left
    for name in way:
        inner = place.get(name)
        if not isinstance(inner, dict):
            return MISSING
        inner = dict(cast("dict[str, Any]", inner))
        place[name] = inner
        place = inner
    return place.pop(last, MISSING)


class _ChildPlan:
    """An array's elements as rows of a child table, and the arrays inside them as rows of further ones."""

    def __init__(self, path: str, child: Child, scopes: Scopes) -> None:
        self.path = path
        self._key = (*child.parent, child.position)
        self._tenant = child.tenant
        self._fields = Fields(child.columns, child.rest, child.ignore, scopes)
        self._scalars = self._fields.whole is not None and len(child.columns) == 1 and not child.children
        self._below = [_ChildPlan(path, inner, scopes) for path, inner in child.children.items()]
        first, *positions = self._key
        types: dict[str, str] = {first: "uuid", **({child.tenant: "uuid"} if child.tenant else {})}
        types |= dict.fromkeys(positions, "integer")
        types |= {plan.name: plan.type.sql for plan in self._fields.plans}
        types[child.rest] = "jsonb"
        self.table = TablePlan(child.table, self._key, child.tenant, types)

    def all(self) -> list[_ChildPlan]:
        """Return this table's plan and those below it, parents first."""
        return [self, *(plan for below in self._below for plan in below.all())]

    def rows(
        self,
        array: Any,
        parent: tuple[Any, ...],
        tenant: UUID | None,
        notes: Notes,
        out: dict[str, list[Row]],
    ) -> None:
        """Add a row for each element to ``out``; what is no array, and an empty one, is noted."""
        if array is MISSING:
            return
        if not isinstance(array, list) or not array:
            notes[self.path] = array
            return
        rows = out[self.table.table]
        for position, element in enumerate(cast("list[Any]", array)):
            rows.append(self._row(element, (*parent, position), tenant, out))

    def _row(self, element: Any, key: tuple[Any, ...], tenant: UUID | None, out: dict[str, list[Row]]) -> Row:
        row: Row = dict(zip(self._key, key, strict=True))
        if self._tenant:
            row[self._tenant] = tenant
        fields = self._fields
        notes: Notes = {}
        whole = fields.whole
        if self._scalars or not isinstance(element, dict):
            fields.take({}, row, {})  # required ones refuse it
            if whole is None:
                notes[ELEMENT] = element
            else:
                row[whole.name] = whole.take(element, notes)
            fields.finish({}, row, notes)
            return row
        left = dict(cast("dict[str, Any]", element))
        fields.take(left, row, notes)
        if whole is not None:
            row[whole.name] = None
        for below in self._below:
            below.rows(pop(left, below.path), key, tenant, notes, out)
        fields.finish(left, row, notes)
        return row


class CollectionPlan:
    """Turns one collection's documents into rows.

    ``tenant`` is the tenant's name where the collection's or the database's name tells it.
    """

    def __init__(
        self, mapping: CollectionMapping, tenant: str | None = None, scopes: Scopes | None = None
    ) -> None:
        self._mapping = mapping
        self._scope = tenant
        scopes = scopes or {}
        self._fields = Fields(mapping.columns, mapping.rest, mapping.ignore, scopes)
        self._children = [_ChildPlan(path, child, scopes) for path, child in mapping.children.items()]
        self._tenant = _tenant(mapping.tenant, tenant)
        self.named = row_id(named_tenant(tenant)) if tenant is not None else None
        """The tenant that the name tells, whatever the document."""
        column = mapping.tenant.column if mapping.tenant else None
        types: dict[str, str] = {mapping.id: "uuid", **({column: "uuid"} if column else {})}
        types |= {plan.name: plan.type.sql for plan in self._fields.plans}
        types[mapping.rest] = "jsonb"
        self.table = TablePlan(mapping.table, (mapping.id,), column, types)
        self.children = tuple(plan.table for child in self._children for plan in child.all())
        self.tables = (self.table, *self.children)
        """The collection's table first, then those below it."""

    def row_id(self, document_id: Any) -> UUID:
        """Return the row id of a document of this collection."""
        return row_id(document_id, self._scope)

    def rows(self, document: dict[str, Any]) -> Rows:
        """Return a document's rows; `Unmappable` where a required column or the tenant cannot be had."""
        mapping, left = self._mapping, dict(document)
        notes: Notes = {}
        document_id = left.pop("_id")
        own = self.row_id(document_id)
        row: Row = {mapping.id: own}
        tenant, parent = self._tenant(document, left, notes)
        if mapping.tenant:
            row[mapping.tenant.column] = tenant
        self._fields.take(left, row, notes)
        children: dict[str, list[Row]] = {table.table: [] for table in self.children}
        for child in self._children:
            child.rows(pop(left, child.path), (own,), tenant, notes, children)
        kept = None
        if not reversible(document_id):
            kept, notes["_id"] = id_to_bson(document_id), as_id(document_id)
        self._fields.finish(left, row, notes)
        return Rows(own, tenant, kept, row, tuple(children.values()), parent)

    def tenant(self, document: dict[str, Any]) -> UUID | None:
        """Return the tenant of a document whose rows cannot be had; `Unmappable` where it cannot be told.

        None where its parent document tells it, or where all tenants share it.
        """
        return self._tenant(document, dict(document), Notes())[0]

    def owner(self, document: dict[str, Any]) -> tuple[UUID | None, ParentKey | None]:
        """Return a document's tenant, or the parent document that tells it; otherwise as `tenant`."""
        return self._tenant(document, dict(document), Notes())

    def of_tenant(self, rows: Rows, tenant: UUID) -> Rows:
        """Return rows with the tenant that their parent document turned out to have."""
        tables = [(self.table, [rows.row]), *zip(self.children, rows.children, strict=True)]
        for table, some in tables:
            assert table.tenant is not None
            for row in some:
                row[table.tenant] = tenant
        return replace(rows, tenant_id=tenant)


_Found = tuple[UUID | None, ParentKey | None]
_TenantOf = Callable[[dict[str, Any], dict[str, Any], Notes], _Found]


def _tenant(tenant: Tenant | None, name: str | None) -> _TenantOf:
    """Return what tells a document's tenant; called with the document, what is left of it, and the notes."""
    if tenant is None:
        return lambda document, left, notes: (None, None)
    if tenant.constant is not None:
        value = tenant.constant
        fixed = row_id(named_tenant(value) if isinstance(value, str) else value)
        return lambda document, left, notes: (fixed, None)
    if tenant.name is not None:
        named = row_id(named_tenant(name)) if name is not None else None
        return lambda document, left, notes: (named, None)
    if tenant.parent is not None:
        collection, way = tenant.parent.collection, tenant.parent.path
        return lambda document, left, notes: (
            None,
            ParentKey(collection, row_id(_told(_at(document, way), way))),
        )
    assert tenant.path is not None
    path = tenant.path
    if path == "_id":
        return lambda document, left, notes: (row_id(_told(document["_id"], path)), None)

    def of_path(document: dict[str, Any], left: dict[str, Any], notes: Notes) -> _Found:
        value = _told(pop(left, path), path)
        if not reversible(value):
            notes[path] = as_id(value)
        return row_id(value), None

    return of_path


def _told(value: Any, path: str) -> Any:
    if value is MISSING or value is None:
        raise Unmappable("tenant", f"field {path}, which tells the tenant, is missing or null")
    return value


def _at(document: dict[str, Any], path: str) -> Any:
    value: Any = document
    for name in path.split("."):
        if not isinstance(value, dict):
            return MISSING
        value = cast("dict[str, Any]", value).get(name, MISSING)
    return value


class Planned(NamedTuple):
    """A namespace's collection: its name in the mapping, the logical collection, its plan."""

    name: str
    logical: Collection
    plan: CollectionPlan


class Plans:
    """The plans of a whole mapping, by real namespace."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._sources = mapping.sources()
        self.find = lru_cache(maxsize=10_000)(self._find)
        """Return the plan of a namespace, or None where it is not mapped."""

    def _find(self, namespace: str) -> Planned | None:
        source = self._sources.find(namespace)
        if source is None:
            return None
        mapping = self._mapping.collections[source.name]
        plan = CollectionPlan(mapping, source.tenant, scopes(self._mapping, source.tenant))
        return Planned(source.name, source.logical, plan)

    def tables(self) -> list[TablePlan]:
        """Return every table, each after those that it lies below."""
        plans = map(CollectionPlan, self._mapping.collections.values())
        return [table for plan in plans for table in plan.tables]


def scopes(mapping: Mapping, tenant: str | None) -> Scopes:
    """Return the scope of each collection's ids, as seen from a collection of this tenant's name."""
    named = ((name, one.tenant and one.tenant.name) for name, one in mapping.collections.items())
    return {name: tenant if by_name else None for name, by_name in named}
