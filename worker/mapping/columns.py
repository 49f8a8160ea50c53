"""One column of a mapping, both ways: what it takes from a document, and what it gives back.

``notes`` are, by path, the exact values of fields whose column cannot say them. On the way back a note
counts only while the column still holds what the mapping made of it: where the application has changed the
column, the column wins.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

from worker.mapping import values
from worker.mapping.extended import as_id, from_extended
from worker.mapping.model import Column
from worker.mapping.types import ColumnType
from worker.mapping.values import Inexact

MISSING: Any = object()
ABSENT = {"$undefined": True}
"""The note of a field that is not there; no value of a document is written so."""

Notes = dict[str, Any]


class Unmappable(Exception):
    """The document has no place in its table. ``kind`` is the dead letter's; the text names fields only."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


class ColumnPlan:
    """A column as both directions use it. ``scope``: as for `ids.row_id`, for a column that refers."""

    def __init__(self, name: str, column: Column, scope: str | None = None) -> None:
        self.name, self.path = name, column.path or name
        self.type = column.parsed
        self.constant = self._literal(column, column.constant)
        self._default = self._literal(column, column.default)
        self._required = column.required
        self._refers = column.references is not None
        self._refuses = column.required or column.misfit == "dead_letter"
        self._convert = _converter(self.type, column, scope)
        self.back = values.back(self.type)
        """Turns the column's value into the field's where there are no notes."""
        self.take: Callable[[Any, Notes], Any] = self._take
        self.give: Callable[[Any, Notes], Any] = self._give
        if self.type.base == "jsonb":
            self.take, self.give = self._take_json, self._give_json

    def _literal(self, column: Column, value: Any) -> Any:
        return None if value is None else values.literal(self.type, column.values, value)

    def _take(self, value: Any, notes: Notes) -> Any:
        """Return the column's value for a field's; what it cannot say is added to ``notes``."""
        if value is MISSING or value is None:
            return self._nothing(value, notes)
        try:
            return self._convert(value)
        except Inexact as inexact:
            if self._refuses and not inexact.fits:
                raise self._unfit(value) from None
            notes[self.path] = as_id(value) if self._refers else value
            return self._default if inexact.plain is None else inexact.plain

    def _take_json(self, value: Any, notes: Notes) -> Any:
        if value is MISSING or value is None:
            return self._nothing(value, notes)
        plain = values.plain(value, self.path, notes)
        if plain is None and self._refuses:
            raise self._unfit(value)
        return plain

    def _nothing(self, value: Any, notes: Notes) -> Any:
        if self._required:
            state = "missing" if value is MISSING else "null"
            raise Unmappable("mapping", f"field {self.path} is {state}, its column requires {self.type.sql}")
        if value is None or self._default is not None:
            notes[self.path] = value
        return self._default

    def _unfit(self, value: Any) -> Unmappable:
        found = type(value).__name__
        return Unmappable("mapping", f"field {self.path} holds {found}, its column requires {self.type.sql}")

    def _give(self, held: Any, notes: Notes) -> Any:
        """Return the field's value for the column's, or MISSING."""
        if notes and self.path in notes:
            exact = _exact(notes[self.path])
            if values.holds(self.type, held, self.made(exact)):
                return exact
        if held is None:
            return MISSING
        return self.back(held) if self.back else held

    def _give_json(self, held: Any, notes: Notes) -> Any:
        note = _exact(notes[self.path]) if self.path in notes else MISSING
        if held is None:
            return note if note is None or values.nearest(note) is None else MISSING
        assert self.back is not None
        plain = self.back(held)
        if not notes:
            return plain
        if note is not MISSING:
            return note if note is not None and _is_nearest(plain, note) else plain
        inside = f"{self.path}."
        for at, inner in notes.items():
            if at.startswith(inside):
                plain = _annotate(plain, at[len(inside) :].split("."), inner)
        return plain

    def made(self, exact: Any) -> Any:
        """Return what the mapping puts into the column for a field's value."""
        if exact is MISSING or exact is None:
            return self._default
        try:
            return self._convert(exact)
        except Inexact as inexact:
            return self._default if inexact.plain is None else inexact.plain

    def untouched(self, held: Any) -> bool:
        """Whether the column holds what it does where there is no field."""
        return values.holds(self.type, held, self._default)


def _converter(type_: ColumnType, column: Column, scope: str | None) -> values.Converter:
    if column.references is not None:
        one = values.reference(scope)
        return values.array(one) if type_.array else one
    return values.nearest if type_.base == "jsonb" else values.converter(type_, column.values)


def _exact(note: Any) -> Any:
    return MISSING if note == ABSENT else from_extended(note)


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
        return cast("dict[str, Any]", place).get(_unescaped(step), MISSING)
    if type(place) is list and step.isascii() and step.isdigit():
        items = cast("list[Any]", place)
        return items[int(step)] if int(step) < len(items) else MISSING
    return MISSING


def _unescaped(step: str) -> str:
    return step.replace("~1", ".").replace("~0", "~") if "~" in step else step


def _is_nearest(plain: Any, exact: Any) -> bool:
    """Whether plain JSON is still what the mapping wrote for an exact value."""
    if plain is MISSING:
        return False
    expected = values.nearest(exact)
    if type(expected) is float and type(plain) is int:  # jsonb writes large ones in full
        return Decimal(repr(expected)) == plain
    return type(plain) is type(expected) and plain == expected
