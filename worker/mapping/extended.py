"""What plain columns cannot hold, as canonical Extended JSON that PostgreSQL's jsonb can hold, and back.

Three additions make it exact: jsonb has no NUL in strings, so one with a NUL is ``{"$utf8": "<base64>"}``; a
number whose bits its digits do not tell (a NaN's) is ``{"$double": "<base64>"}`` or ``{"$decimal128":
"<base64>"}``; and in an object of the document
a name that begins with ``$`` gets one more ``$``, so that none is taken for a type. And one for ids: jsonb
sorts an object's fields, but ``{a: 1, b: 2}`` and ``{b: 2, a: 1}`` are two ids, so one that would be sorted
is ``{"$bson": "<base64>"}``.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from math import nan
from struct import error as StructError
from struct import pack, unpack
from typing import Any, cast
from uuid import UUID

from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, json_util
from bson.binary import UuidRepresentation
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError

from topics import id_to_bson, key_to_id

_OPTIONS = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD
)
_NOTHING: Any = object()
_NAN = pack("<d", nan)
_FAULTS = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, BSONError, StructError)


class _Ordered:
    """A value whose order of fields matters, and which jsonb would change."""

    def __init__(self, value: Any) -> None:
        self.value = value


def as_id(value: Any) -> Any:
    """Return an id, or an array of them, such that `extended` keeps the order of its objects' fields."""
    if type(value) is list:
        return [as_id(item) for item in cast("list[Any]", value)]
    return value if _sorted(value) else _Ordered(value)


def _sorted(value: Any) -> bool:
    """Whether jsonb keeps the order of fields: it sorts them by length, then by bytes."""
    match value:
        case Mapping():
            document = cast("Mapping[str, Any]", value)
            names = [(len(name), name) for name in (_escaped(name).encode() for name in document)]
            return names == sorted(names) and all(map(_sorted, document.values()))
        case list():
            return all(map(_sorted, cast("list[Any]", value)))
        case DBRef():
            parts = cast("dict[str, Any]", value.as_doc())
            more = parts.keys() - {"$ref", "$id", "$db"}
            return len(more) < 2 and all(map(_sorted, parts.values()))
        case Code():
            return _sorted(value.scope)
        case _:
            return True


def extended(value: Any) -> Any:
    """Return a value of any BSON type as JSON-ready canonical Extended JSON."""
    if value is None or value is True or value is False:
        return value
    if type(value) is str:
        return value if "\0" not in value else {"$utf8": b64encode(value.encode()).decode()}
    if isinstance(value, Mapping):
        document = cast("Mapping[str, Any]", value)
        return {_escaped(name): extended(item) for name, item in document.items()}
    if isinstance(value, list):
        return [extended(item) for item in cast("list[Any]", value)]
    if isinstance(value, Code):
        code = {"$code": extended(str(value))}
        return code if value.scope is None else code | {"$scope": extended(value.scope)}
    if isinstance(value, DBRef):
        # "$ref" and "$id" as they are: they are what tells the type.
        parts = cast("dict[str, Any]", value.as_doc())
        return {name: extended(item) for name, item in parts.items()}
    if isinstance(value, _Ordered):
        return {"$bson": b64encode(id_to_bson(value.value)).decode()}
    if type(value) is float and value != value and pack("<d", value) != _NAN:
        return {"$double": b64encode(pack("<d", value)).decode()}
    if isinstance(value, Decimal128) and Decimal128(str(value)) != value:
        return {"$decimal128": b64encode(value.bid).decode()}
    return json_util.default(value, json_options=_OPTIONS)


def _escaped(name: str) -> str:
    return f"${name}" if name.startswith("$") else name


def from_extended(value: Any) -> Any:
    """Return the value that `extended` wrote; plain JSON, and an object of no known type, as they are."""
    if type(value) is dict:
        fields = cast("dict[str, Any]", value)
        if any(name.startswith("$") for name in fields):
            exact = _typed(fields)
            if exact is not _NOTHING:
                return exact
            return {
                name[1:] if name.startswith("$$") else name: from_extended(item)
                for name, item in fields.items()
            }
        return {name: from_extended(item) for name, item in fields.items()}
    if type(value) is list:
        return [from_extended(item) for item in cast("list[Any]", value)]
    if type(value) is int and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def _typed(fields: dict[str, Any]) -> Any:
    try:
        if len(fields) == 1:
            ((name, inner),) = fields.items()
            return _READERS[name](inner) if name in _READERS else _NOTHING
        if fields.keys() == {"$code", "$scope"}:
            return Code(_string(fields["$code"]), from_extended(fields["$scope"]))
        if "$ref" in fields and "$id" in fields:
            parts = {name: from_extended(item) for name, item in fields.items()}
            collection, id_, database = parts.pop("$ref"), parts.pop("$id"), parts.pop("$db", None)
            return DBRef(collection, id_, database, parts)
    except _FAULTS:
        pass
    return _NOTHING


def _string(value: Any) -> str:
    text = from_extended(value)
    if type(text) is not str:
        raise TypeError
    return text


def _int32(value: str) -> int:
    return int(_int64(value))


def _int64(value: str) -> Int64:
    number = Int64(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(date: datetime | DatetimeMS) -> int:
    """Return a date as MongoDB has it, in milliseconds since 1970; microseconds are cut."""
    return int(date) if isinstance(date, DatetimeMS) else int(DatetimeMS(date))


def _date(value: Any) -> datetime | DatetimeMS:
    if type(value) is str:
        date = datetime.fromisoformat(value)
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    milliseconds = int(_int64(value["$numberLong"]))
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return DatetimeMS(milliseconds)


def _binary(value: dict[str, str]) -> bytes | Binary | UUID:
    data, subtype = b64decode(value["base64"], validate=True), int(value["subType"], 16)
    if subtype == 0:
        return data
    return UUID(bytes=data) if subtype == 4 else Binary(data, subtype)


_READERS: dict[str, Callable[[Any], Any]] = {
    "$bson": lambda value: key_to_id(b64decode(value, validate=True)),
    "$utf8": lambda value: b64decode(value, validate=True).decode(),
    "$numberInt": _int32,
    "$numberLong": _int64,
    "$numberDouble": float,
    "$numberDecimal": Decimal128,
    "$double": lambda value: unpack("<d", b64decode(value, validate=True))[0],
    "$decimal128": lambda value: Decimal128.from_bid(b64decode(value, validate=True)),
    "$date": _date,
    "$oid": ObjectId,
    "$binary": _binary,
    "$timestamp": lambda value: Timestamp(value["t"], value["i"]),
    "$regularExpression": lambda value: Regex(value["pattern"], value["options"]),
    "$code": lambda value: Code(_string(value)),
    "$minKey": lambda _: MinKey(),
    "$maxKey": lambda _: MaxKey(),
}
