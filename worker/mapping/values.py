"""Single values: from BSON to what a column takes, and back.

A converter returns the column's value when that says the document's value exactly. Otherwise it raises
`Inexact`, with the nearest value that the column can hold (or None): the exact one goes to the rest column.
Values are JSON-ready for orjson, which writes UUIDs, dates and datetimes itself. On the way back they are as
asyncpg returns them, jsonb as its text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from struct import pack
from typing import Any, cast
from uuid import UUID

import orjson
from bson import Decimal128, Int64, ObjectId
from bson.decimal128 import create_decimal128_context

from worker.mapping.ids import objectid_to_uuid, reversible, row_id, uuid_to_objectid
from worker.mapping.types import ColumnType

Converter = Callable[[Any], Any]

_NAN = pack("<d", math.nan)


class Inexact(Exception):
    """The column cannot say this value; ``plain`` is the nearest that it can, or None.

    ``fits`` is False where it is of another kind altogether, in an array where that is so of an element.
    """

    def __init__(self, plain: Any = None, fits: bool | None = None) -> None:
        self.plain = plain
        self.fits = plain is not None if fits is None else fits
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
        if value != value and pack("<d", value) != _NAN:
            raise Inexact("nan")  # PostgreSQL has one NaN only
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


def _date(value: Any) -> date:
    if type(value) is not datetime:
        raise Inexact
    if value.time() == time():
        return value.date()
    raise Inexact(value.date())


def _varchar(length: int) -> Converter:
    def convert(value: Any) -> str:
        if type(value) is str and len(value) <= length and "\0" not in value:
            return value
        raise Inexact

    return convert


def _enum(labels: tuple[str, ...]) -> Converter:
    known = frozenset(labels)

    def convert(value: Any) -> str:
        if type(value) is str and value in known:
            return value
        raise Inexact

    return convert


def array(element: Converter) -> Converter:
    """Return the converter of an array's type from that of its elements."""

    def convert(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Inexact
        exact = fits = True
        items = list[Any]()
        for item in cast("list[Any]", value):
            if item is None:
                items.append(None)
                continue
            try:
                items.append(element(item))
            except Inexact as inexact:
                exact, fits = False, fits and inexact.fits
                items.append(inexact.plain)
        if exact:
            return items
        raise Inexact(items, fits)

    return convert


def reference(scope: str | None) -> Converter:
    """Return the converter of document ids to row ids; ``scope`` as for `row_id`."""

    def convert(value: Any) -> UUID:
        made = row_id(value, scope)
        if reversible(value):
            return made
        raise Inexact(made)

    return convert


_SCALARS: dict[str, Converter] = {
    "text": _text,
    "uuid": _uuid,
    "boolean": _boolean,
    "smallint": _integer(16),
    "integer": _integer(32),
    "bigint": _integer(64),
    "double precision": _double,
    "numeric": _numeric,
    "timestamptz": _timestamptz,
    "date": _date,
    "bytea": _bytea,
}


def converter(type_: ColumnType, labels: tuple[str, ...] | None = None) -> Converter:
    """Return a type's converter; ``jsonb`` has `plain`, for its values can be exact in one part only."""
    if type_.array:
        return array(converter(type_.element, labels))
    if type_.length is not None:
        return _varchar(type_.length)
    return _enum(labels or ()) if type_.base == "enum" else _SCALARS[type_.base]


def literal(type_: ColumnType, labels: tuple[str, ...] | None, value: Any) -> Any:
    """Return a value written in the mapping as its column takes it; ValueError where it cannot."""
    wanted = f"a {type_.base} is needed here"
    if type_.base == "jsonb" or type_.array:
        raise ValueError(f"{type_.base}{'[]' if type_.array else ''} takes no value from the mapping")
    try:
        match type_.base:
            case "uuid":
                value = UUID(value) if isinstance(value, str) else value
            case "numeric":
                value = Decimal128(str(value)) if isinstance(value, str | int | float) else value
            case "timestamptz" if isinstance(value, datetime):
                value = value if value.tzinfo else value.replace(tzinfo=UTC)
            case "date" if type(value) is date:
                value = datetime.combine(value, time(), UTC)
            case "double precision" if type(value) is int:
                value = float(value)
            case "bytea":
                raise ValueError("bytea takes no value from the mapping")
            case _:
                pass
        return converter(type_, labels)(value)
    except Inexact as inexact:
        if isinstance(inexact.plain, UUID):
            return inexact.plain
        raise ValueError(wanted) from None
    except ArithmeticError:
        raise ValueError(wanted) from None


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


def back_to_id(value: UUID) -> UUID | ObjectId:
    """Return the id that a row id stands for; asyncpg's UUIDs are of a class of their own."""
    return uuid_to_objectid(value) or UUID(int=value.int)


def _from_timestamptz(value: datetime) -> datetime:
    """Return a point in time as BSON has it, in whole milliseconds; asyncpg's infinities become ends."""
    if value.microsecond % 1000:
        value = value.replace(microsecond=value.microsecond // 1000 * 1000)
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _from_date(value: date) -> datetime:
    return datetime.combine(value, time(), UTC)


_ROUNDING = create_decimal128_context()
_ROUNDING.clear_traps()


def _from_numeric(value: Decimal) -> Decimal128:
    """Return a numeric as Decimal128, rounded where that is too narrow.

    numeric has no positive exponents, but asyncpg makes some of trailing zeros: 10000 comes as 1E+4.
    """
    sign, digits, exponent = value.as_tuple()
    if type(exponent) is int and exponent > 0 and len(digits) + exponent <= 34:
        return Decimal128(Decimal((sign, digits + (0,) * exponent, 0)))
    return Decimal128(_ROUNDING.create_decimal(value))


_WIDE = re.compile(rb"\d{19}")


def _from_jsonb(text: bytes | str) -> Any:
    """Return jsonb as BSON-able values: an integer beyond 64 bits as a double."""
    value = orjson.loads(text)
    if _WIDE.search(text.encode() if isinstance(text, str) else text):
        return _narrowed(value)
    return value


def _narrowed(value: Any) -> Any:
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else float(value)
    if type(value) is dict:
        return {name: _narrowed(item) for name, item in cast("dict[str, Any]", value).items()}
    if type(value) is list:
        return [_narrowed(item) for item in cast("list[Any]", value)]
    return value


_BACK: dict[str, Converter] = {
    "uuid": back_to_id,
    "timestamptz": _from_timestamptz,
    "date": _from_date,
    "numeric": _from_numeric,
    "jsonb": _from_jsonb,
}


def back(type_: ColumnType) -> Converter | None:
    """Return what turns a column's value into BSON's; None where it is BSON's already."""
    one = _BACK.get(type_.base)
    if one is None or not type_.array:
        return one

    def of_array(items: Any) -> Any:
        # The application may have written more dimensions: any array type takes them.
        return [
            of_array(item) if type(item) is list else None if item is None else one(item) for item in items
        ]

    return of_array


_HELD: dict[str, Converter] = {
    "numeric": Decimal,
    "double precision": float,
    "bytea": lambda text: bytes.fromhex(text.removeprefix("\\x")),
}


def holds(type_: ColumnType, held: Any, made: Any) -> bool:
    """Whether a column still holds what a converter made for it."""
    if held is None or made is None:
        return held is made
    if type_.array:
        element = type_.element
        return len(held) == len(made) and all(holds(element, *pair) for pair in zip(held, made, strict=True))
    made = _HELD[type_.base](made) if type_.base in _HELD else made
    return held == made or (held != held and made != made)
