"""Rows as PostgreSQL and asyncpg give them back, without either: `stored`.

Assumed: rows go out as one orjson document; ``jsonb_to_recordset`` gives SQL NULL for JSON null; jsonb's
numbers are decimals that keep their scale but no exponent and no sign of zero; jsonb refuses NUL, and sorts
an object's fields by length, then by bytes; an enumerated type knows its labels; varchar(n) counts code
points; float8 has one NaN and reads "nan", "inf" and "-0.0"; asyncpg gives UUIDs of a class of its own, jsonb
as JSON bytes (`use_raw_json`), and decimals with exponents for groups of four trailing zeros. An array's
elements are as columns of their type. Columns are as wide as the mapping says.
"""

from __future__ import annotations

import json
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson
from asyncpg.pgproto.pgproto import UUID as RowUUID

from bench.roundtrip.mappings import LABELS

__all__ = ["RowUUID", "stored"]


def jsonb(value: Any) -> bytes:
    """Return what PostgreSQL's jsonb makes of decoded JSON, as text; floats come as decimals."""
    match value:
        case str():
            assert "\0" not in value
            return json.dumps(value).encode()
        case Decimal():
            return f"{abs(value) if value.is_zero() else value:f}".encode()
        case dict():
            fields = sorted(value.items(), key=lambda field: (len(field[0].encode()), field[0].encode()))
            return b"{%s}" % b", ".join(jsonb(name) + b": " + jsonb(item) for name, item in fields)
        case list():
            return b"[%s]" % b", ".join(map(jsonb, value))
        case _:
            return json.dumps(value).encode()


def numeric(value: Decimal) -> Decimal:
    """Return a numeric as asyncpg does: whole groups of four trailing zeros become the exponent."""
    if value.is_zero():
        return abs(value)
    sign, digits, exponent = value.as_tuple()
    if exponent != 0:  # it has a scale, or it is infinite or not a number
        return value
    while digits[-4:] == (0, 0, 0, 0):
        digits, exponent = digits[:-4], exponent + 4
    return Decimal((sign, digits, exponent))


def column(value: Any, type_: str) -> Any:
    """Return a column as asyncpg does, from decoded JSON."""
    if value is None:
        return None
    if type_.endswith("[]"):
        assert isinstance(value, list)
        return [column(item, type_[:-2]) for item in value]
    text = value if isinstance(value, str) else jsonb(value).decode()
    match type_:
        case "jsonb":
            return jsonb(value)
        case "text":
            assert "\0" not in text
            return text
        case _ if type_.startswith("varchar("):
            assert "\0" not in text and len(text) <= int(type_[8:-1])
            return text
        case _ if type_.startswith('"'):
            assert text in LABELS
            return text
        case "date":
            return date.fromisoformat(text)
        case "uuid":
            return RowUUID(text)
        case "boolean":
            return {"true": True, "false": False}[text]
        case "smallint" | "integer" | "bigint":
            return int(text)
        case "double precision":
            return float(text)
        case "numeric":
            return numeric(Decimal(text))
        case "timestamptz":
            return datetime.fromisoformat(text)
        case "bytea":
            return bytes.fromhex(text.removeprefix("\\x"))
    raise AssertionError(type_)


def stored(rows: list[dict[str, Any]], columns: dict[str, str]) -> list[dict[str, Any]]:
    sent = json.loads(orjson.dumps(rows), parse_float=Decimal)
    return [{name: column(row[name], type_) for name, type_ in columns.items()} for row in sent]
