"""Single values: from BSON to what a column takes.

A converter returns the column's value when that says the document's value exactly. Otherwise it raises
`Inexact`, with the nearest value that the column can hold (or None): the exact one goes to the rest column.
Values are JSON-ready for orjson, which writes UUIDs and datetimes itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast
from uuid import UUID

from bson import Decimal128, Int64, ObjectId

from worker.mapping.ids import objectid_to_uuid, uuid_to_objectid
from worker.mapping.model import ColumnType

Converter = Callable[[Any], Any]


class Inexact(Exception):
    """The column cannot say this value; ``plain`` is the nearest that it can, or None."""

    def __init__(self, plain: Any = None) -> None:
        self.plain = plain
        super().__init__()


def _text(value: Any) -> str:
    if type(value) is str and "\0" not in value:
        return value
    raise Inexact


def _boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    raise Inexact


def _integer(bits: int) -> Converter:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

    def convert(value: Any) -> int:
        kind = type(value)  # pyright: ignore[reportUnknownVariableType]
        if (kind is int or kind is Int64) and low <= value <= high:
            return int(value)
        if kind is float and value.is_integer() and low <= value <= high:
            raise Inexact(int(value))
        raise Inexact

    return convert


def _double(value: Any) -> float | str:
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is float:
        if value != value or value in (math.inf, -math.inf) or (value == 0 and math.copysign(1, value) < 0):
            return repr(value)  # JSON's numbers have none of these; float8's input has
        return value
    if (kind is int or kind is Int64) and float(value) == value:
        raise Inexact(float(value))
    raise Inexact


def _numeric(value: Any) -> str:
    if type(value) is Decimal128:
        text, number = str(value), value.to_decimal()
        if Decimal128(text) != value:  # bits that the digits do not tell, as a NaN's sign
            raise Inexact
        if number.is_finite():
            # numeric keeps trailing zeros but no exponent, and no sign of zero
            exact = "E" not in text and not (number.is_zero() and number.is_signed())
            if exact:
                return text
            raise Inexact(f"{number:f}")
        return text
    if type(value) in (int, Int64):
        raise Inexact(str(value))
    if type(value) is float and math.isfinite(value):
        raise Inexact(repr(value))
    raise Inexact


def _uuid(value: Any) -> UUID:
    if type(value) is UUID:
        if uuid_to_objectid(value) is not None:  # would be read back as an ObjectId
            raise Inexact(value)
        return value
    if type(value) is ObjectId:
        return objectid_to_uuid(value)
    raise Inexact


def _timestamptz(value: Any) -> datetime:
    if type(value) is datetime:  # others (DatetimeMS) are outside the years 1 to 9999
        return value
    raise Inexact


def _bytea(value: Any) -> str:
    if type(value) is bytes:
        return "\\x" + value.hex()
    raise Inexact


CONVERTERS: dict[ColumnType, Converter] = {
    "text": _text,
    "uuid": _uuid,
    "boolean": _boolean,
    "smallint": _integer(16),
    "integer": _integer(32),
    "bigint": _integer(64),
    "double precision": _double,
    "numeric": _numeric,
    "timestamptz": _timestamptz,
    "bytea": _bytea,
}
"""By column type; ``jsonb`` has `plain`, because its values can be exact in one part and not in another."""


def plain(value: Any, path: str, notes: dict[str, Any]) -> Any:
    """Return a value as plain JSON; each part that this cannot say exactly is added to ``notes`` by path."""
    return value if _exact(value) else _noted(value, path, notes)


def _exact(value: Any) -> bool:
    """Tell whether JSON says a value exactly. Most values: so they are looked at without naming paths."""
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        return "\0" not in value
    if value is None or kind is bool or kind is int or kind is Int64:
        return True
    if kind is dict:
        return all(map(_exact, cast("dict[str, Any]", value).values()))
    if kind is list:
        return all(map(_exact, cast("list[Any]", value)))
    return kind is float and _plain_double(value)


def _noted(value: Any, path: str, notes: dict[str, Any]) -> Any:
    kind = type(value)  # pyright: ignore[reportUnknownVariableType]
    if kind is str:
        if "\0" in value:
            notes[path] = value
        return nearest(value)
    if value is None or kind is bool or kind is int:
        return value
    if kind is Int64:
        return int(value)
    if kind is dict:
        document = cast("dict[str, Any]", value)
        return {name: _noted(item, f"{path}.{_step(name)}", notes) for name, item in document.items()}
    if kind is list:
        items = cast("list[Any]", value)
        return [_noted(item, f"{path}.{position}", notes) for position, item in enumerate(items)]
    if kind is float and _plain_double(value):
        return value
    notes[path] = value
    return nearest(value)


def _step(name: str) -> str:
    """Return a field's name as one step of a note's path: ``~1`` for a dot, ``~0`` for a tilde."""
    return name.replace("~", "~0").replace(".", "~1") if "~" in name or "." in name else name


def _plain_double(value: float) -> bool:
    # jsonb's numbers are decimals: they keep "5.0" apart from "5", but neither the sign of zero nor an
    # exponent, so that 1e16 would come back as an integer.
    return abs(value) < 1e16 and not (value == 0 and math.copysign(1, value) < 0)


def nearest(value: Any) -> Any:
    """Return what an application would like to read in place of a value that JSON does not have."""
    if type(value) is str:
        return value.replace("\0", "\ufffd")
    match value:
        case datetime():
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case UUID() | ObjectId() | Decimal128():
            return str(value)
        case float() if math.isfinite(value):
            return value
        case _:
            return None
