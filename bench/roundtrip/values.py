"""Values of every BSON type, seeded: those that a column's type takes, and any at all."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from random import Random
from typing import Any
from uuid import UUID

from bson import Binary, Code, DBRef, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS

from bench.roundtrip.mappings import LABELS
from worker.mapping.ids import objectid_to_uuid

Make = Callable[[Random], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST, _LAST = -62135596800000, 253402300799999  # milliseconds: the years 1 to 9999
_DAY = 86_400_000
_LETTERS = "abcdefghijklmnopqrstuvwxyzäößéñçø 0123456789-_.,:;'\"\\/%{}[]()\t\n"
_STRANGE = [
    "\0",
    "\ufffd",
    "\U0001f600",
    "é",
    "\u200d",
    "\u202e",
    "\x01",
    "\x7f",
    "\ufeff",
    "\uffff",
    "漢",
    "٣",
]
_TEXTS = [
    *(
        "",
        "\0",
        "a\0b",
        "5",
        "NaN",
        "null",
        "true",
        "{}",
        "[]",
        "{1,2}",
        "NULL",
        "\\x00",
        "\\",
        "$x",
        " ",
        "'",
    ),
    *(
        "12345",
        "123456",
        "ééééé",
        "éééééé",
        "😀😀😀😀😀",
        "😀😀😀😀😀😀",
        "abcde ",
        "2020-01-02T03:04:05.678Z",
    ),
    *("11111111-1111-4111-8111-111111111111", "65b30f37e307b5b75b0ffcee", "-Infinity", "infinity", "epoch"),
]
_INTEGERS = [0, 1, -1, 2**15 - 1, 2**15, -(2**15), 2**31 - 1, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, -(2**63)]
_DOUBLES = [0.0, -0.0, 1.0, -5.0, 0.1, 1e15, 9999999999999998.0, 1e16, 1e17, 5.129148864682219e16, 2.0**53]
_DOUBLES += [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1e300, float("nan")]
_DOUBLES += [float("inf"), float("-inf")]
_DIGITS = [
    "0",
    "-0",
    "0.00",
    "-0.00",
    "0E+3",
    "0E-6176",
    "0E+6111",
    "1E+3",
    "10000",
    "120000.00",
    "1E+6144",
]
_DIGITS += ["1E-6176", "NaN", "-NaN", "Infinity", "-Infinity", "1.20", "-0.00001200", "9" * 34, "-0.1", "1"]
_DIGITS += ["9" * 34 + "E+6111", "0." + "1" * 34, "1" + "0" * 33]
_DECIMALS = [Decimal128(digits) for digits in _DIGITS]
_NAMES = [
    "a",
    "b",
    "n",
    "m",
    "o",
    "json",
    "text",
    "",
    ".",
    "a.b",
    "~",
    "~0",
    "~1",
    "~01",
    "0",
    "1",
    "-1",
    "٣",
]
_NAMES += [
    "$",
    "$notes",
    "$value",
    "$$x",
    "$$",
    "$oid",
    "$date",
    "$numberInt",
    "$numberLong",
    "$numberDouble",
]
_NAMES += ["$minKey", "$code", "$scope", "$ref", "$id", "$db", "$utf8", "$binary", "$undefined", "$symbol"]
_NAMES += ["é", "😀", "__proto__", "a b", '"', "\\", "'", "\x01", "left_behind", "deep", "name", "id", "rest"]


def text(rng: Random) -> str:
    """Return a string: often an awkward one."""
    chance = rng.random()
    if chance < 0.3:
        return rng.choice(_TEXTS)
    letters = "".join(rng.choices(_LETTERS, k=rng.randrange(9)))
    return letters + rng.choice(_STRANGE) if chance < 0.45 else letters


def _integer(rng: Random) -> int:
    chance = rng.random()
    value = rng.choice(_INTEGERS) if chance < 0.3 else rng.randrange(-1000, 1000)
    return Int64(value) if chance < 0.15 or not -(2**31) <= value < 2**31 else value


def _double(rng: Random) -> float:
    chance = rng.random()
    if chance < 0.4:
        return rng.choice(_DOUBLES)
    if chance < 0.6:
        return struct.unpack("<d", rng.randbytes(8))[0]
    return rng.uniform(-1000, 1000) if chance < 0.8 else float(rng.randrange(-1000, 1000))


def _decimal(rng: Random) -> Decimal128:
    chance = rng.random()
    if chance < 0.4:
        return rng.choice(_DECIMALS)
    if chance < 0.6:
        return Decimal128.from_bid(rng.randbytes(16))
    return Decimal128(f"{rng.randrange(-(10**6), 10**6)}.{rng.randrange(100):02}")


def _date(rng: Random) -> datetime | DatetimeMS:
    chance = rng.random()
    if chance < 0.1:
        return DatetimeMS(rng.choice([2**62, -(2**63), 2**63 - 1, _LAST + 1, _FIRST - 1]))
    if chance < 0.2:
        return _EPOCH + timedelta(milliseconds=rng.choice([_FIRST, _LAST, -1, 0, 1]))
    if chance < 0.5:
        return _EPOCH + timedelta(milliseconds=rng.randrange(_FIRST, _LAST))
    return _EPOCH + timedelta(milliseconds=rng.randrange(0, 2 * 10**12))


def _day(rng: Random) -> datetime:
    return _EPOCH + timedelta(days=rng.randrange(_FIRST // _DAY, _LAST // _DAY))


def _uuid(rng: Random) -> UUID:
    return UUID(int=rng.getrandbits(128), version=4)


def _objectid(rng: Random) -> ObjectId:
    return ObjectId(rng.randbytes(12))


def some_id(rng: Random) -> Any:
    """Return an id of the kinds that row ids tell, or one that looks as if it were."""
    chance = rng.random()
    if chance < 0.45:
        return _uuid(rng)
    return _objectid(rng) if chance < 0.9 else objectid_to_uuid(_objectid(rng))


def _binary(rng: Random) -> Binary:
    subtype = rng.choice([1, 2, 3, 5, 6, 7, 8, 9, 128, 255])
    return Binary(rng.randbytes(16 if subtype == 3 else rng.randrange(5)), subtype)


def _regex(rng: Random) -> Regex[str]:
    return Regex(rng.choice(["", "a/b", "^é$", "\\d+"]), rng.choice(["", "i", "imx", "lsu"]))


def _code(rng: Random) -> Code:
    return Code(text(rng)) if rng.random() < 0.5 else Code(text(rng), _object(rng, 1))


def _reference(rng: Random) -> DBRef:
    id_ = some_id(rng) if rng.random() < 0.7 else any_value(rng, 1)
    more = {f"x{name}": any_value(rng, 1) for name in range(rng.randrange(2))}
    if rng.random() < 0.2:
        more["$x"] = any_value(rng, 1)
    return DBRef(text(rng), id_, rng.choice([None, "db", "a\0"]), more)


_LEAVES: list[Make] = [
    lambda rng: None,
    lambda rng: rng.random() < 0.5,
    *(_integer, _integer, _double, _double, text, text, text, _date, _day, _decimal, some_id),
    lambda rng: rng.randbytes(rng.randrange(4)),
    _binary,
    lambda rng: Timestamp(rng.getrandbits(32), rng.getrandbits(32)),
    *(_regex, _code, _reference),
    lambda rng: MinKey() if rng.random() < 0.5 else MaxKey(),
]


def leaf(rng: Random) -> Any:
    """Return a value of any type but object and array."""
    return rng.choice(_LEAVES)(rng)


def name(rng: Random) -> str:
    """Return a field's name, often one that could be mistaken."""
    return rng.choice(_NAMES) if rng.random() < 0.8 else text(rng).replace("\0", "")


def _object(rng: Random, depth: int) -> dict[str, Any]:
    return {name(rng): any_value(rng, depth - 1) for _ in range(rng.randrange(4))}


def any_value(rng: Random, depth: int = 3) -> Any:
    """Return a value of any type, objects and arrays at most so deep."""
    chance = rng.random()
    if depth <= 0 or chance < 0.6:
        return leaf(rng)
    if chance < 0.8:
        return _object(rng, depth)
    return [any_value(rng, depth - 1) for _ in range(rng.randrange(4))]


def nested(rng: Random, levels: int) -> Any:
    """Return a value inside so many objects and arrays."""
    value = leaf(rng)
    for _ in range(levels):
        value = [value] if rng.random() < 0.3 else {name(rng): value}
    return value


FITTING: dict[str, Make] = {
    "text": text,
    "varchar": lambda rng: text(rng)[:5],
    "enum": lambda rng: rng.choice(LABELS),
    "uuid": some_id,
    "boolean": lambda rng: rng.random() < 0.5,
    "smallint": lambda rng: rng.randrange(-(2**15), 2**15),
    "integer": lambda rng: rng.randrange(-(2**31), 2**31),
    "bigint": lambda rng: Int64(rng.randrange(-(2**63), 2**63)),
    "double precision": _double,
    "numeric": _decimal,
    "timestamptz": _date,
    "date": _day,
    "bytea": lambda rng: rng.randbytes(rng.randrange(5)),
    "jsonb": lambda rng: any_value(rng, 3),
}
"""By a type's base: values that its columns take, or nearly."""


def as_bson(base: str, written: Any) -> Any:
    """Return a mapping's literal as a document would hold it."""
    match base:
        case "uuid":
            return UUID(written)
        case "numeric":
            return Decimal128(written)
        case "date":
            return datetime.combine(written, time(), UTC)
        case _:
            return written
