"""One collection's mapping read backwards: `Rebuilder.document` turns rows into the document.

``document(rows(d)) == d`` but for the order of fields in an object, the width of an integer, and fields that
the mapping ignores. The exact values that the rest column holds count only while the columns still say what
the mapping made of them; where the application has changed a column, the column wins.

Rows are by column name, as asyncpg returns them; a jsonb column is its JSON text (bytes or str), so that
what nobody reads is not decoded. The real columns must hold all that the mapping's types hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, cast
from uuid import UUID

import orjson

from worker.mapping import values
from worker.mapping.columns import MISSING, Notes
from worker.mapping.extended import from_extended
from worker.mapping.ids import row_id
from worker.mapping.model import ELEMENT, Child, CollectionMapping, Mapping
from worker.mapping.plan import NOTES, Fields, Scopes, scopes

_NOTHING: dict[str, Any] = {}

Document = dict[str, Any]


class SourceRow(Protocol):
    """A row: values by column name."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column's value."""
        ...


class Unrebuildable(Exception):
    """The row stands for no document, as its rest column is not what a rest column is."""


class _Back:
    """The fields of one (sub)document, from its columns and its rest column."""

    def __init__(self, fields: Fields) -> None:
        self._rest = fields.rest
        self._plans = [plan for plan in fields.plans if plan.constant is None]
        self._columns = [
            (plan.name, plan.path, plan.give, plan.back, "." in plan.path)
            for plan in self._plans
            if plan.path != ELEMENT
        ]

    def rest(self, row: SourceRow) -> tuple[dict[str, Any], Notes]:
        """Return the rest column's fields and its notes, both as they stand there."""
        text = row[self._rest]
        if text is None:
            return _NOTHING, _NOTHING
        rest = orjson.loads(text)
        if type(rest) is not dict:
            raise Unrebuildable(f"column {self._rest} holds no JSON object")
        fields = cast("dict[str, Any]", rest)
        notes = fields.pop(NOTES, _NOTHING)
        if type(notes) is not dict:
            raise Unrebuildable(f"column {self._rest}: {NOTES} is no JSON object")
        return fields, cast("Notes", notes)

    def put(self, row: SourceRow, document: Document, notes: Notes) -> None:
        """Put the columns' values into the document, or the notes' where these still count."""
        for name, path, give, back, deep in self._columns:
            value = row[name]
            if notes:
                value = give(value, notes)
                if value is MISSING:
                    continue
            elif value is None:
                continue
            elif back is not None:
                value = back(value)
            if deep:
                put(document, path, value)
            else:
                document[path] = value

    def untouched(self, row: SourceRow) -> bool:
        """Whether every column of a field holds what it does where there is no field."""
        return all(plan.untouched(row[plan.name]) for plan in self._plans)


def put(document: Document, path: str, value: Any) -> None:
    """Set the value at a dotted path; what is on the way and no object makes room for one."""
    *way, last = path.split(".")
    for name in way:
        inner = document.get(name)
        if type(inner) is not dict:
            inner = document[name] = Document()
        document = cast("Document", inner)
    document[last] = value


def _names(rest: dict[str, Any]) -> Document:
    """Return the rest column's fields; its own object is never a value of Extended JSON."""
    return {name[1:] if name.startswith("$$") else name: from_extended(value) for name, value in rest.items()}


Position = tuple[int, ...]
_ByParent = dict[Position, list[SourceRow]]


class _Elements:
    """A child table's rows as an array's elements, with the arrays inside them."""

    def __init__(self, path: str, child: Child, scopes: Scopes) -> None:
        self.path = path
        fields = Fields(child.columns, child.rest, (), scopes)
        self._fields, self._whole = _Back(fields), fields.whole
        self._only_whole = fields.whole is not None and len(child.columns) == 1 and not child.children
        self._positions = (*child.parent[1:], child.position)
        self._below = [_Elements(path, inner, scopes) for path, inner in child.children.items()]

    def all(self) -> list[_Elements]:
        """Return this table and those below it, parents first."""
        return [self, *(one for below in self._below for one in below.all())]

    def by_parent(self, rows: Iterable[SourceRow]) -> _ByParent:
        """Return rows by the positions of the element that they lie in."""
        above = self._positions[:-1]
        if not above:
            return {(): list(rows)}
        found: _ByParent = {}
        for row in rows:
            found.setdefault(tuple(row[name] for name in above), []).append(row)
        return found

    def put(self, document: Document, at: Position, notes: Notes, rows: dict[_Elements, _ByParent]) -> None:
        """Put the array into its (sub)document; without rows what the note says, if there is one."""
        elements = [self._element(row, rows) for row in rows[self].get(at, ())]
        if elements:
            put(document, self.path, elements)
        elif self.path in notes:
            put(document, self.path, from_extended(notes[self.path]))

    def _element(self, row: SourceRow, rows: dict[_Elements, _ByParent]) -> Any:
        rest, notes = self._fields.rest(row)
        at = tuple(row[name] for name in self._positions) if self._below else ()
        whole = self._whole
        if whole is not None and (self._only_whole or row[whole.name] is not None):
            value = whole.give(row[whole.name], notes)
            return None if value is MISSING else value
        # A note of an element that is no object counts while nothing says that it has become one.
        if ELEMENT in notes and self._bare(row, at, rows):
            return from_extended(notes[ELEMENT])
        element = _names(rest)
        self._fields.put(row, element, notes)
        for below in self._below:
            below.put(element, at, notes, rows)
        return element

    def _bare(self, row: SourceRow, at: Position, rows: dict[_Elements, _ByParent]) -> bool:
        """Whether no column and no row below says that the element is an object."""
        return self._fields.untouched(row) and not any(at in rows[below] for below in self._below)


def rebuilder(mapping: Mapping, name: str, tenant: str | None) -> Rebuilder:
    """Return the inverse of a collection's plan; ``tenant``: as its name, or its database's, tells it."""
    return Rebuilder(mapping.collections[name], tenant, scopes(mapping, tenant))


class Rebuilder:
    """Turns rows of one collection's tables back into documents: `CollectionPlan`'s inverse."""

    def __init__(
        self, mapping: CollectionMapping, tenant: str | None = None, scopes: Scopes | None = None
    ) -> None:
        self._id, self._scope = mapping.id, tenant
        source = mapping.tenant
        self._tenant = (source.column, source.path) if source and source.path not in (None, "_id") else None
        scopes = scopes or {}
        self._fields = _Back(Fields(mapping.columns, mapping.rest, (), scopes))
        self._arrays = [_Elements(path, child, scopes) for path, child in mapping.children.items()]
        self._all = [one for array in self._arrays for one in array.all()]

    def document(self, row: SourceRow, children: Sequence[Iterable[SourceRow]] = ()) -> Document:
        """Return a row's document.

        ``children``: rows of each child table in the plan's order, each ordered by its positions.
        `Unrebuildable` where the rest column of a row is no object with notes.
        """
        rest, notes = self._fields.rest(row)
        document: Document = {"_id": None}
        if rest:
            document |= _names(rest)
        document["_id"] = _noted_id(row[self._id], "_id", notes, self._scope)
        self._fields.put(row, document, notes)
        if self._arrays:
            by_parent = {one: one.by_parent(rows) for one, rows in zip(self._all, children, strict=True)}
            for array in self._arrays:
                array.put(document, (), notes, by_parent)
        if self._tenant is not None:
            column, path = self._tenant
            put(document, path, _noted_id(row[column], path, notes, None))
        return document

    def document_id(self, row: SourceRow) -> Any:
        """Return the id of a row's document, from the row id's column and the rest column alone."""
        _, notes = self._fields.rest(row)
        return _noted_id(row[self._id], "_id", notes, self._scope)


def _noted_id(value: UUID, path: str, notes: Notes, scope: str | None) -> Any:
    """Return the id that a row id was made of, from its note if the row id is still the note's."""
    if path in notes:
        note = from_extended(notes[path])
        if row_id(note, scope) == value:
            return note
    return values.back_to_id(value)
