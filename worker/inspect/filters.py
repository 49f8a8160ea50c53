"""Filters of partial indexes as SQL conditions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from bson import Int64, ObjectId

from worker.inspect.names import quoted, shown
from worker.mapping import row_id

_COMPARISONS = {"$eq": "=", "$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "boolean": (bool,),
    "integer": (int, Int64),
    "bigint": (int, Int64),
    "double precision": (int, Int64, float),
    "numeric": (int, Int64, float),
    "timestamptz": (datetime,),
    "uuid": (UUID, ObjectId),
}

Columns = Callable[[str], tuple[str, str]]
"""Returns the column and its type of a path; raises `Untranslatable` where it has none."""


class Untranslatable(Exception):
    """The filter has no equivalent on the drafted columns; the text says why."""


def condition(filter_: dict[str, Any], columns: Columns) -> str:
    """Return a partial index's filter as a condition on columns."""
    parts: list[str] = []
    for name, wanted in filter_.items():
        if name in ("$and", "$or"):
            some = [f"({condition(one, columns)})" for one in cast("list[dict[str, Any]]", wanted)]
            parts.append(f"({(' AND ' if name == '$and' else ' OR ').join(some)})")
        elif name.startswith("$"):
            raise Untranslatable(f"its filter has {shown(name)}")
        else:
            parts.extend(_field(name, wanted, columns))
    return " AND ".join(parts)


def _field(path: str, wanted: Any, columns: Columns) -> list[str]:
    column, type_ = columns(path)
    if not isinstance(wanted, dict):
        return [_compared(column, type_, "$eq", wanted)]
    parts: list[str] = []
    for operator, value in cast("dict[str, Any]", wanted).items():
        if (operator == "$exists" and value) or operator == "$type":
            parts.append(f"{quoted(column)} IS NOT NULL")
        elif operator == "$in":
            some = [_compared(column, type_, "$eq", one) for one in cast("list[Any]", value)]
            parts.append(f"({' OR '.join(some)})")
        else:
            parts.append(_compared(column, type_, operator, value))
    return parts


def _compared(column: str, type_: str, operator: str, value: Any) -> str:
    if value is None and operator == "$eq":
        return f"{quoted(column)} IS NULL"
    if operator not in _COMPARISONS:
        raise Untranslatable(f"its filter has {shown(operator)}")
    if type(value) not in _TYPES.get(type_, ()):
        raise Untranslatable(f"its filter compares {shown(column)}, of type {type_}, with another type")
    return f"{quoted(column)} {_COMPARISONS[operator]} {_literal(value)}"


def _literal(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case float():
            return f"'{value!r}'::double precision"
        case datetime():
            return f"'{value.isoformat()}'::timestamptz"
        case UUID() | ObjectId():
            return f"'{row_id(value)}'::uuid"
        case _:
            text = str(value)
            if "\0" in text:
                raise Untranslatable("its filter has a text with a NUL")
            return "'" + text.replace("'", "''") + "'"
