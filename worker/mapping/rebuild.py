"""One collection's mapping read backwards: `Rebuilder.document` turns rows into the document.

``document(rows(d)) == d`` but for the order of fields in an object and the width of an integer. The exact
values that the rest column holds count only while the columns still say what the mapping made of them;
where the application has changed a column, the column wins.

Rows are by column name, as asyncpg returns them; a jsonb column is its JSON text (bytes or str), so that
what nobody reads is not decoded. The real columns must hold all that the mapping's types hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol, cast
from uuid import UUID

import orjson
from bson import Decimal128, ObjectId
from bson.decimal128 import create_decimal128_context

from worker.mapping import values
from worker.mapping.extended import from_extended
from worker.mapping.ids import row_id, uuid_to_objectid
from worker.mapping.model import Child, CollectionMapping, Column, ColumnType
from worker.mapping.plan import NOTES, WHOLE

_MISSING: Any = object()
_NOTHING: dict[str, Any] = {}

Document = dict[str, Any]


class SourceRow(Protocol):
    """A row: values by column name."""

    def __getitem__(self, name: str, /) -> Any:
        """Return a column's value."""
        ...


class Unrebuildable(Exception):
    """The row stands for no document, as its rest column is not what a rest column is."""


class _Fields:
    """The fields of one (sub)document, from its columns and its rest column."""

    def __init__(self, columns: dict[str, Column], rest: str) -> None:
        self._rest = rest
        self._columns: list[tuple[str, str, ColumnType, Callable[[Any], Any] | None]] = [
            (name, column.path or name, column.type, _BACK.get(column.type))
            for name, column in columns.items()
        ]

    def rest(self, row: SourceRow) -> tuple[dict[str, Any], dict[str, Any]]:
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
        return fields, cast("dict[str, Any]", notes)

    def put(self, row: SourceRow, document: Document, notes: dict[str, Any]) -> None:
        """Put the columns' values into the document, or the notes' where these still count."""
        for name, path, type_, back in self._columns:
            value = row[name]
            if notes:
                value = _noted(value, path, type_, back, notes)
                if value is _MISSING:
                    continue
            elif value is None:
                continue
            elif back:
                value = back(value)
            if "." in path:
                put(document, path, value)
            else:
                document[path] = value

    def untouched(self, row: SourceRow) -> bool:
        """Whether every column is NULL."""
        return all(row[column[0]] is None for column in self._columns)


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


def _noted(
    value: Any, path: str, type_: ColumnType, back: Callable[[Any], Any] | None, notes: dict[str, Any]
) -> Any:
    """Return a field's value, given that there are notes, perhaps on it."""
    note = from_extended(notes[path]) if path in notes else _MISSING
    if value is None:
        # NULL: as the mapping left it if that is what it makes of the note.
        return note if note is _MISSING or note is None or _column_of(note, type_) is None else _MISSING
    plain = back(value) if back else value
    if type_ == "jsonb":
        if note is not _MISSING:
            return note if note is not None and _is_nearest(plain, note) else plain
        inside = f"{path}."
        for at, inner in notes.items():
            if at.startswith(inside):
                plain = _annotate(plain, at[len(inside) :].split("."), inner)
        return plain
    if note is not _MISSING and note is not None:
        made = _column_of(note, type_)
        if made is not None and (Decimal(made) if type_ == "numeric" else made) == value:
            return note
    return plain


def _column_of(note: Any, type_: ColumnType) -> Any:
    """Return what the mapping puts into a column beside this note; None for NULL."""
    if type_ == "jsonb":
        return values.nearest(note)
    try:
        return values.CONVERTERS[type_](note)
    except values.Inexact as inexact:
        return inexact.plain


def _annotate(root: Any, steps: list[str], note: Any) -> Any:
    """Put a note's value where its path leads, if its plain form stands there."""
    place = root
    *way, last = steps
    for step in way:
        place = _inner(place, step)
    if _is_nearest(_inner(place, last), exact := from_extended(note)):
        if type(place) is dict:
            place[_unescaped(last)] = exact
        else:
            place[int(last)] = exact
    return root


def _inner(place: Any, step: str) -> Any:
    if type(place) is dict:
        return cast("Document", place).get(_unescaped(step), _MISSING)
    if type(place) is list and step.isascii() and step.isdigit():
        items = cast("list[Any]", place)
        return items[int(step)] if int(step) < len(items) else _MISSING
    return _MISSING


def _unescaped(step: str) -> str:
    return step.replace("~1", ".").replace("~0", "~") if "~" in step else step


def _is_nearest(plain: Any, exact: Any) -> bool:
    """Whether plain JSON is still what the mapping wrote for an exact value."""
    if plain is _MISSING:
        return False
    expected = values.nearest(exact)
    if type(expected) is float and type(plain) is int:  # jsonb writes large ones in full
        return Decimal(repr(expected)) == plain
    return type(plain) is type(expected) and plain == expected


def _id(value: UUID) -> UUID | ObjectId:
    """Return the id that a row id stands for; asyncpg's UUIDs are of a class of their own."""
    return uuid_to_objectid(value) or UUID(int=value.int)


def _datetime(value: datetime) -> datetime:
    """Return a point in time as BSON has it, in whole milliseconds; asyncpg's infinities become ends."""
    if value.microsecond % 1000:
        value = value.replace(microsecond=value.microsecond // 1000 * 1000)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


_ROUNDING = create_decimal128_context()
_ROUNDING.clear_traps()


def _decimal(value: Decimal) -> Decimal128:
    """Return a numeric as Decimal128, rounded where that is too narrow.

    numeric has no positive exponents, but asyncpg makes some of trailing zeros: 10000 comes as 1E+4.
    """
    sign, digits, exponent = value.as_tuple()
    if type(exponent) is int and exponent > 0 and len(digits) + exponent <= 34:
        return Decimal128(Decimal((sign, digits + (0,) * exponent, 0)))
    return Decimal128(_ROUNDING.create_decimal(value))


_WIDE = re.compile(rb"\d{19}")


def _json(text: bytes | str) -> Any:
    """Return jsonb as BSON-able values: an integer beyond 64 bits as a double."""
    value = orjson.loads(text)
    if _WIDE.search(text.encode() if isinstance(text, str) else text):
        return _narrowed(value)
    return value


def _narrowed(value: Any) -> Any:
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else float(value)
    if type(value) is dict:
        return {name: _narrowed(item) for name, item in cast("Document", value).items()}
    if type(value) is list:
        return [_narrowed(item) for item in cast("list[Any]", value)]
    return value


_BACK: dict[ColumnType, Callable[[Any], Any]] = {
    "uuid": _id,
    "timestamptz": _datetime,
    "numeric": _decimal,
    "jsonb": _json,
}


class _Elements:
    """A child table's rows as an array's elements."""

    def __init__(self, path: str, child: Child) -> None:
        self.path = path
        self._fields = _Fields(child.columns, child.rest)

    def array(self, rows: Iterable[SourceRow], notes: dict[str, Any]) -> Any:
        """Return the array; without rows what the note says, if there is one."""
        elements = [self._element(row) for row in rows]
        if elements or self.path not in notes:
            return elements or _MISSING
        return from_extended(notes[self.path])

    def _element(self, row: SourceRow) -> Any:
        rest, notes = self._fields.rest(row)
        if WHOLE in rest:
            whole = rest.pop(WHOLE)
            if self._fields.untouched(row):
                return from_extended(whole)
        element = _names(rest)
        self._fields.put(row, element, notes)
        return element


class Rebuilder:
    """Turns rows of one collection's tables back into documents: `CollectionPlan`'s inverse."""

    def __init__(self, mapping: CollectionMapping) -> None:
        self._id, self._tenant = mapping.id, mapping.tenant
        self._fields = _Fields(mapping.columns, mapping.rest)
        self._arrays = [_Elements(path, child) for path, child in mapping.children.items()]

    def document(self, row: SourceRow, children: Sequence[Iterable[SourceRow]] = ()) -> Document:
        """Return a row's document. ``children``: rows by position, for each child table in the plan's order.

        `Unrebuildable` where the rest column of a row is no object with notes.
        """
        rest, notes = self._fields.rest(row)
        document: Document = {"_id": None}
        if rest:
            document |= _names(rest)
        document["_id"] = _noted_id(row[self._id], "_id", notes)
        self._fields.put(row, document, notes)
        for array, rows in zip(self._arrays, children, strict=True):
            elements = array.array(rows, notes)
            if elements is not _MISSING:
                put(document, array.path, elements)
        if self._tenant.path != "_id":
            path = self._tenant.path
            put(document, path, _noted_id(row[self._tenant.column], path, notes))
        return document


def _noted_id(value: UUID, path: str, notes: dict[str, Any]) -> Any:
    """Return the id that a row id was made of, from its note if the row id is still the note's."""
    if path in notes:
        note = from_extended(notes[path])
        if row_id(note) == value:
            return note
    return _id(value)
