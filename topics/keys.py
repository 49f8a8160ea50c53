"""Record keys: the canonical BSON of a document's ``_id``, so that a document stays in one partition.

MongoDB holds ``1``, ``1.0`` and ``NumberLong(1)`` for the same ``_id``; so they are one key here. The
partition is part of the contract: every producer must compute it by `partition_of`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context
from typing import Any, cast
from zlib import crc32

import bson
from bson import Decimal128, Int64
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_DECIMAL128 = Context(prec=34, Emin=-6143, Emax=6144, clamp=1)  # IEEE 754 decimal128
_INT64 = range(-(2**63), 2**63)


def document_key(document_id: Any) -> bytes:
    """Return the canonical BSON bytes of a document id: equal for MongoDB means equal here."""
    return bson.encode({"": canonical(document_id)}, codec_options=_CODEC)


def id_to_bson(document_id: Any) -> bytes:
    """Return BSON ``{"": _id}`` with the id exactly as it is; `key_to_id` reads it back."""
    return bson.encode({"": document_id}, codec_options=_CODEC)


def key_to_id(key: bytes) -> Any:
    """Return the document id in a record key, or in `id_to_bson`'s bytes."""
    return bson.decode(key, codec_options=_CODEC)[""]  # pyright: ignore[reportUnknownMemberType]


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a record key: its CRC-32 modulo the number of partitions."""
    return crc32(key) % partitions


def canonical(value: Any) -> Any:
    """Return the value with every number in the narrowest type that MongoDB compares as equal.

    Integral doubles and decimals become integers, doubles and decimals of equal value one decimal or
    double, -0.0 becomes 0; objects and arrays are walked; all else is returned as it is.
    """
    match value:
        case bool() | str() | None:
            return value
        case Int64():
            return int(value)
        case float():
            return _canonical_float(value)
        case Decimal128():
            return _canonical_decimal(value)
        case Mapping():
            document = cast("Mapping[str, Any]", value)
            return {name: canonical(item) for name, item in document.items()}
        case list():
            return [canonical(item) for item in cast("list[Any]", value)]
        case _:
            return value


def _canonical_float(value: float) -> int | float:
    if math.isfinite(value) and value.is_integer() and int(value) in _INT64:
        return int(value)
    return value


def _canonical_decimal(value: Decimal128) -> int | float | Decimal128:
    number = value.to_decimal()
    if number.is_nan():
        return math.nan
    if number.is_infinite():
        return math.inf if number > 0 else -math.inf
    if number == number.to_integral_value() and int(number) in _INT64:
        return int(number)
    if number == float(number):  # exact: Decimal compares with the double's true value
        return float(number)
    return Decimal128(number.normalize(_DECIMAL128))
