"""Whether two documents are the same, to the last bit, but for the order of fields and the width of integers.

Also a digest of each: equal for the same documents, so that sums of digests prove that two sets of documents
are the same whatever the order in which they were read. Nothing here keeps or tells a value.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import orjson
from bson import Code, DBRef, Int64, ObjectId
from bson.datetime_ms import DatetimeMS

from topics import id_to_bson
from worker.mapping.extended import milliseconds

Document = dict[str, Any]
MOST_FIELDS = 50
"""Differing fields that are told of one document."""

_DIGEST = 16  # bytes
_MISSING = object()
# UUIDs, dates and floats that are no numbers are beyond the hook: orjson writes them as strings and as null.
# The hook could be given dates, but takes ten times as long.
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS


class Difference(NamedTuple):
    """A field that differs, as ``content.blocks.0.text``, and the BSON type that it has on each side.

    ``None``: the field is not there.
    """

    path: str
    mongo: str | None
    postgres: str | None


class Compared(NamedTuple):
    """Two documents compared: how they differ, and the digest of each."""

    differences: list[Difference]
    mongo: int
    postgres: int


def compare(mongo: Document, postgres: Document) -> Compared:
    """Compare a document in MongoDB with the one that PostgreSQL's rows make."""
    left, right = _text(mongo), _text(postgres)
    digest = _digest(left)
    # What the texts cannot tell apart (a UUID or a date and its string), Python can; and what Python takes
    # for equal (1, 1.0 and true), the texts tell apart.
    if left == right and mongo == postgres:
        return Compared([], digest, digest)
    found = list(_differences(mongo, postgres, ""))
    if not found:
        return Compared([], digest, digest)
    told = "\n".join(f"{one.path} {one.mongo} {one.postgres}" for one in found) if left == right else ""
    return Compared(found[:MOST_FIELDS], digest, _digest(right + told.encode()))


def digest(document: Document) -> int:
    """Return a document's digest, where the other side has none."""
    return _digest(_text(document))


def bson_type(value: Any) -> str | None:
    """Return the name that MongoDB's `$type` has for a value, or None where there is none."""
    if value is _MISSING:
        return None
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int"  # of either width
    return _TYPES.get(type(value).__name__, type(value).__name__)


_TYPES = {
    "NoneType": "null",
    "float": "double",
    "str": "string",
    "dict": "object",
    "list": "array",
    "bytes": "binData",
    "Binary": "binData",
    "UUID": "uuid",
    "ObjectId": "objectId",
    "datetime": "date",
    "DatetimeMS": "date",
    "Decimal128": "decimal",
    "Timestamp": "timestamp",
    "Regex": "regex",
    "Code": "javascript",
    "DBRef": "dbPointer",
    "MinKey": "minKey",
    "MaxKey": "maxKey",
}


def _digest(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST).digest(), "big")


def _text(document: Document) -> bytes:
    try:
        return orjson.dumps(document, default=_told, option=_OPTIONS)
    except TypeError:  # nested deeper than orjson goes
        return repr(_in_order(document)).encode()


def _told(value: Any) -> Any:
    """Return a value of a type that JSON has not; no field's name has a NUL, so none looks like it."""
    if type(value) is ObjectId:
        return {"\0id": value.binary.hex()}
    if type(value) is Int64:
        return int(value)
    if isinstance(value, DatetimeMS):
        return {"\0date": int(value)}
    if isinstance(value, Code):
        return {"\0code": [str.__str__(value), value.scope]}
    if isinstance(value, DBRef):
        return {"\0ref": dict(value.as_doc())}
    return {"\0bson": id_to_bson(value).hex()}


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value)
        return [(name, _in_order(items[name])) for name in sorted(items)]
    if isinstance(value, list):
        return [_in_order(item) for item in cast("list[Any]", value)]
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return (type(value).__name__, id_to_bson(value))


def _differences(left: Any, right: Any, path: str) -> Iterator[Difference]:
    if isinstance(left, dict) and isinstance(right, dict):
        one, other = cast("Document", left), cast("Document", right)
        before = f"{path}." if path else ""
        for name, value in one.items():
            yield from _differences(value, other.get(name, _MISSING), before + name)
        for name in other.keys() - one.keys():
            yield Difference(before + name, None, bson_type(other[name]))
    elif isinstance(left, list) and isinstance(right, list):
        ones, others = cast("list[Any]", left), cast("list[Any]", right)
        for position in range(max(len(ones), len(others))):
            one = ones[position] if position < len(ones) else _MISSING
            other = others[position] if position < len(others) else _MISSING
            yield from _differences(one, other, f"{path}.{position}")
    elif not _same(left, right):
        yield Difference(path, bson_type(left), bson_type(right))


def _same(left: Any, right: Any) -> bool:
    if left is _MISSING or right is _MISSING:
        return left is right
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int) and isinstance(right, int):
        return int(left) == int(right)
    if isinstance(left, datetime | DatetimeMS) and isinstance(right, datetime | DatetimeMS):
        return milliseconds(left) == milliseconds(right)
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("<d", left) == struct.pack("<d", right)  # 0.0 and -0.0, and one NaN and another
    if isinstance(left, DBRef) and isinstance(right, DBRef):
        return not any(_differences(dict(left.as_doc()), dict(right.as_doc()), ""))
    if isinstance(left, Code) and isinstance(right, Code):
        scopes = left.scope or {}, right.scope or {}
        return (
            str.__eq__(left, right)
            and (left.scope is None) == (right.scope is None)
            and not any(_differences(*scopes, ""))
        )
    if isinstance(left, UUID) and isinstance(right, UUID):
        return left == right
    return type(left) is type(right) and left == right
