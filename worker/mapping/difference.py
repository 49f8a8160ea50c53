"""What to change in a document so that it becomes another, path by path: what is equal stays untouched.

Equal as `document == rebuild(rows(document))` means it: but for the order of fields in an object and the
width of an integer. So the fields of an object that is kept keep their order and their widths.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard, cast

import bson
from bson import Int64
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

Document = dict[str, Any]
_CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_MISSING = object()


class Difference(NamedTuple):
    """Values by dotted path, and the paths that are to go. Arrays are whole values."""

    set: Document
    unset: list[str]


class NotByPath(Exception):
    """A name on the way to what differs cannot stand in a path (it has a dot, or begins with "$")."""


def same(one: Any, other: Any) -> bool:
    """Whether two BSON values are equal, but for the order of fields and the width of integers."""
    if _integer(one) and _integer(other):
        return int(one) == int(other)
    if type(one) is dict and type(other) is dict:
        left, right = cast("Document", one), cast("Document", other)
        return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
    if isinstance(one, list) and isinstance(other, list):
        items, others = cast("list[Any]", one), cast("list[Any]", other)
        return len(items) == len(others) and all(map(same, items, others))
    return _bytes(one) == _bytes(other)


def difference(now: Document, wanted: Document) -> Difference:
    """Return what turns ``now`` into ``wanted``; `NotByPath` where paths cannot say it."""
    found = Difference({}, [])
    _differ(now, wanted, "", found)
    return found


def merged(whole: Document, now: Document, wanted: Document) -> Document:
    """Return ``whole`` as ``wanted`` wants it; ``now`` is ``whole`` without what the mapping ignores."""
    result: Document = {}
    for name, value in whole.items():
        if name not in wanted:
            if name not in now:
                result[name] = value
            continue
        old, new = now.get(name, _MISSING), wanted[name]
        if type(value) is dict and type(old) is dict and type(new) is dict:
            inner = cast("Document", value), cast("Document", old), cast("Document", new)
            result[name] = merged(*inner)
        else:
            result[name] = value if old is not _MISSING and same(old, new) else new
    return result | {name: value for name, value in wanted.items() if name not in result}


def _differ(now: Document, wanted: Document, above: str, found: Difference) -> None:
    for name, new in wanted.items():
        old = now.get(name, _MISSING)
        if old is not _MISSING and same(old, new):
            continue
        path = _path(above, name)
        if type(old) is dict and type(new) is dict:
            _differ(cast("Document", old), cast("Document", new), f"{path}.", found)
        else:
            found.set[path] = Int64(new) if isinstance(old, Int64) and _integer(new) else new
    found.unset.extend(_path(above, name) for name in now if name not in wanted)


def _path(above: str, name: str) -> str:
    if not name or "." in name or name.startswith("$"):
        raise NotByPath
    return above + name


def _integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _bytes(value: Any) -> bytes:
    return bson.encode({"": value}, codec_options=_CODEC)
