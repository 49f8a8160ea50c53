"""Documents from rows: the rules of the target tables, written down a second time.

The program under test has its own code for this; here nothing of it is used, so that one's mistake is not
the other's. A column that is NULL is a field that is not there. What the columns cannot say stands in
``rest``: fields that have no column, and under ``$notes``, by path, the exact values of mapped fields. A note
counts only while the column holds what the note's value looks like in plain JSON, or is NULL where it cannot
hold it; otherwise the column was changed, and wins.
"""

from __future__ import annotations

import json
import math
import struct
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol
from uuid import UUID

import bson
from bson import Code, DBRef, Decimal128, ObjectId, json_util
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

from examples.spaces.shapes import Document

NOTES = "$notes"
ELEMENT = "$"
_MARK = b"xfo"
_MISSING = object()
_EXTENDED = json_util.JSONOptions(
    json_mode=json_util.JSONMode.CANONICAL,
    uuid_representation=UuidRepresentation.STANDARD,
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_CODEC: CodecOptions[Document] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


class Row(Protocol):
    """A row of a query: values by column name."""

    def __getitem__(self, name: str, /) -> Any:
        """Return the value of a column."""
        ...


@dataclass(frozen=True)
class Table:
    """A table and, by column, the fields it holds. ``json`` names the columns that are jsonb."""

    name: str
    columns: Mapping[str, str]
    json: frozenset[str] = field(default_factory=frozenset)

    def query(self, key: str) -> str:
        """Return the query for the rows whose ``key`` is in an array, jsonb as text whatever codec is set."""
        names = [f"{name}::text" if name in self.json or name == "rest" else name for name in self.columns]
        return f"SELECT {', '.join(names)}, rest::text FROM {self.name} WHERE {key} = ANY($1::uuid[])"  # noqa: S608


def _table(name: str, columns: str, json: str = "") -> Table:
    """Declare a table; a column that is not named like its field is written ``column=field``."""
    pairs = (column.partition("=") for column in columns.split())
    return Table(name, {column: path or column for column, _, path in pairs}, frozenset(json.split()))


_ID = "id=_id tenant_id=tenantId"
_TIMES = "created_at=createdAt updated_at=updatedAt"
TABLES = {
    "tenants": _table("tenants", f"id=_id name subdomain plan status settings {_TIMES}", "settings"),
    "users": _table(
        "users",
        f"{_ID} email name role profile is_active=isActive login_count=loginCount last_login_at=lastLoginAt"
        f" {_TIMES}",
        "profile",
    ),
    "passwords": _table(
        "user_passwords", f"{_ID} user_id=userId password_hash=hash algorithm changed_at=changedAt"
    ),
    "forms": _table(
        "form_configs",
        f"{_ID} name slug fields settings is_active=isActive submit_count=submitCount {_TIMES}",
        "fields settings",
    ),
    "pages": _table(
        "pages",
        f"{_ID} author_id=authorId title slug status content seo published_at=publishedAt version {_TIMES}",
        "content seo",
    ),
    "leads": _table(
        "leads",
        f"{_ID} form_id=formId assigned_to=assignedTo email name phone status score source data {_TIMES}",
        "data",
    ),
}
ACTIVITIES = _table(
    "lead_activities",
    "lead_id tenant_id position type occurred_at=at actor_id=by note meta",
    "meta",
)
_OWN = ("lead_id", "tenant_id", "position")


def row_id(document_id: Any) -> UUID | None:
    """Return the id of a document's row, None for an id that the application never uses."""
    if isinstance(document_id, UUID):
        return document_id
    if not isinstance(document_id, ObjectId):
        return None
    # 96 bits, most significant first: 48, the version 1000, 12, the variant 10, 36, two spare bits, the mark.
    bits = int.from_bytes(document_id.binary, "big")
    high = (bits >> 48) << 16 | 0x8 << 12 | (bits >> 36) & 0xFFF
    low = 0b10 << 62 | (bits & (1 << 36) - 1) << 26 | int.from_bytes(_MARK, "big")
    return UUID(int=high << 64 | low)


def document_id(row: UUID) -> UUID | ObjectId:
    """Return the document id that a row's id stands for."""
    value = row.int
    spare_and_mark, variant, version = value & 0x3FFFFFF, value >> 62 & 3, value >> 76 & 0xF
    if (spare_and_mark, variant, version) != (int.from_bytes(_MARK, "big"), 2, 8):
        return UUID(int=value)  # asyncpg's rows have a UUID type of their own
    bits = (value >> 80) << 48 | ((value >> 64) & 0xFFF) << 36 | (value >> 26) & (1 << 36) - 1
    return ObjectId(bits.to_bytes(12, "big"))


@dataclass(slots=True)
class Rebuilt:
    """A document made of rows, and what about these rows fits no document."""

    document: Document
    faults: list[str] = field(default_factory=list)


def rebuild(collection: str, row: Row, activities: Iterable[Row] = ()) -> Rebuilt:
    """Return the document that a row, and its child rows in order of position, stand for."""
    rebuilt = Rebuilt({})
    _fill(rebuilt, TABLES[collection], row)
    elements: list[Any] = []
    for expected, child in enumerate(activities):
        element = Rebuilt({})
        whole = _fill(element, ACTIVITIES, child)
        for name in _OWN:
            element.document.pop(name)
        # Columns beside the note of an element that is no object: the application has made it one.
        elements.append(element.document or whole if whole is not _MISSING else element.document)
        rebuilt.faults += [f"activities.{expected}.{fault}" for fault in element.faults]
        if child["position"] != expected:
            rebuilt.faults.append("activities.position")
        if child["tenant_id"] != row["tenant_id"]:
            rebuilt.faults.append(f"activities.{expected}.tenantId")
    if elements:
        # Rows beside a note (null, or an empty array) mean that the note is out of date.
        rebuilt.document["activities"] = elements
    return rebuilt


def _fill(rebuilt: Rebuilt, table: Table, row: Row) -> Any:
    """Fill a document from its row; return what the row says of an element that is no object, if it does."""
    document = rebuilt.document
    for column, path in table.columns.items():
        value = row[column]
        if value is None:
            continue
        if column in table.json:
            value = json.loads(value)
        elif isinstance(value, UUID):
            value = document_id(value)
        document[path] = value
    if row["rest"] is None:
        return _MISSING
    rest = json.loads(row["rest"])
    if not isinstance(rest, dict) or not rest:
        rebuilt.faults.append("rest")
        return _MISSING
    notes = {path: exact(note) for path, note in rest.pop(NOTES, {}).items()}
    whole = notes.pop(ELEMENT, _MISSING)
    for path, value in notes.items():
        _apply_note(document, path, value)
    for name, value in rest.items():
        name = _field(name)
        if name in document:
            rebuilt.faults.append(f"rest.{name}")
        document[name] = exact(value)
    return whole


def _field(name: str) -> str:
    """Return a field's name: one that begins with ``$`` is written with one more."""
    return name.removeprefix("$") if name.startswith("$$") else name


def exact(value: Any) -> Any:
    """Return a value of the rest column: Extended JSON, with four types more (docs/decisions/0002)."""
    if isinstance(value, list):
        return [exact(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {_field(name): exact(item) for name, item in value.items()}
    match value:
        case {"$utf8": data}:
            return b64decode(data).decode()
        case {"$double": data}:
            return struct.unpack("<d", b64decode(data))[0]
        case {"$decimal128": data}:
            return Decimal128.from_bid(b64decode(data))
        case {"$bson": data}:
            return bson.decode(b64decode(data), _CODEC)[""]
        case {"$code": _}:
            return Code(inner["$code"], inner.get("$scope"))
        case {"$ref": _, "$id": _}:
            return DBRef(inner.pop("$ref"), inner.pop("$id"), inner.pop("$db", None), inner)
    typed = any(name.startswith("$") and not name.startswith("$$") for name in value)
    return json_util.object_hook(inner, _EXTENDED) if typed else inner


def _apply_note(document: Document, path: str, value: Any) -> None:
    """Put a note's value where its path leads, unless something else stands there by now."""
    *parents, last = (step.replace("~1", ".").replace("~0", "~") for step in path.split("."))
    place: Any = document
    for step in parents:
        place = _child(place, step)
    current = _child(place, last)
    if current is _MISSING:
        # A NULL column; deeper down, its parent was replaced.
        if place is document:
            document[last] = value
    elif _looks_like(current, value):
        place[int(last) if isinstance(place, list) else last] = value


def _child(place: Any, step: str) -> Any:
    if isinstance(place, dict):
        return place.get(step, _MISSING)
    if isinstance(place, list) and step.isdigit() and int(step) < len(place):
        return place[int(step)]
    return _MISSING


def _looks_like(plain: Any, exact: Any) -> bool:
    """Tell whether ``plain``, from JSON, can be the nearest that JSON has to ``exact``."""
    if isinstance(exact, datetime):
        try:
            return isinstance(plain, str) and datetime.fromisoformat(plain) == exact
        except (ValueError, TypeError):
            return False
    if isinstance(exact, UUID | ObjectId):
        return plain == str(exact)
    if isinstance(exact, Decimal128):
        try:
            return Decimal(str(plain)) == exact.to_decimal()
        except InvalidOperation:
            return False
    if isinstance(exact, float) and math.isfinite(exact):
        return isinstance(plain, int | float) and plain == exact
    if isinstance(exact, str):
        # Only a NUL keeps text out of PostgreSQL; another character stands in for it.
        return isinstance(plain, str) and len(plain) == len(exact)
    if exact is None or isinstance(exact, bool | int | dict | list):
        return plain == exact
    # Of the rest (regular expressions, timestamps, ...) the application has none: any plain form will do.
    return True
