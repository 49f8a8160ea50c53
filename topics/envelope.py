"""The event: one Kafka record's value, a BSON document of version 1.

| field | BSON type | meaning |
|---|---|---|
| `v` | int32 | version of this envelope: 1 |
| `op` | string | `upsert`, `reference`, `delete`, `heartbeat`, `barrier` |
| `ns` | string | `database.collection`; empty for control records |
| `id` | any | the document's `_id` as MongoDB holds it; for control records their own id |
| `doc` | document | the whole document; only with `upsert` |
| `size` | int32 | bytes that the value would have with its document; only with `reference` |
| `t` | timestamp | clusterTime of the change, or atClusterTime of the snapshot read |
| `n` | int32 | position among the events of `t` for the same document; 2147483647 for a snapshot read |
| `wall` | date | when the change was made (MongoDB's clock), or when the snapshot was read |
| `src` | string | `copy`, `stream`, `repair`, `replay`, `reverse` |
| `origin` | document | `inc`: the publisher's incarnation (UUID); a transaction's `lsid`, `txn`; `echo` |
| `tenants` | array of UUID | tenants under which its rows were seen; only with `repair`, `reverse` |

`origin.echo` is true for a change in MongoDB that the way back made; else it is not there.

Events of the way back (`reverse`) are of a document as PostgreSQL's rows make it. Their version is no
clusterTime but a number drawn from one sequence in PostgreSQL, which `t` holds as its 64 bits; `n` is 0. It
is compared with others of the way back alone.

An unknown field is ignored. An unknown `v`, `op` or `src`, or a field that is missing or of another type, is
an `EnvelopeError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar, cast
from uuid import UUID

import bson
from bson import DBRef, Timestamp
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import InvalidBSON

ENVELOPE_VERSION = 1
MAX_ORDER = 2**31 - 1

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)

# Dates that Python cannot hold come as DatetimeMS instead of failing the record.
_CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    uuid_representation=UuidRepresentation.STANDARD,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


class EnvelopeError(ValueError):
    """The record's value is not an event of this contract."""


class Operation(StrEnum):
    """What an event says of its document, or of the stream."""

    UPSERT = "upsert"
    REFERENCE = "reference"  # an upsert whose document the topic does not take: to be read from MongoDB
    DELETE = "delete"
    HEARTBEAT = "heartbeat"  # control: everything older in this partition has been read
    BARRIER = "barrier"  # control: the same, on request, with an id to wait for


class Source(StrEnum):
    """Who sent an event."""

    COPY = "copy"
    STREAM = "stream"
    REPAIR = "repair"
    REPLAY = "replay"
    REVERSE = "reverse"  # the way back: from PostgreSQL's rows to MongoDB


class Version(NamedTuple):
    """Order of a document's events: clusterTime as one integer, then the order within it."""

    time: int
    order: int

    @classmethod
    def of(cls, time: Timestamp, order: int) -> Version:
        """Return the version of the ``order``-th event at a clusterTime."""
        return cls(time.time << 32 | time.inc, order)

    @classmethod
    def snapshot(cls, at_cluster_time: Timestamp) -> Version:
        """Return the version of a snapshot read: above every event of its clusterTime."""
        return cls.of(at_cluster_time, MAX_ORDER)

    @property
    def timestamp(self) -> Timestamp:
        """The clusterTime as BSON has it."""
        return Timestamp(self.time >> 32, self.time & 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event comes from: the stream's incarnation, and its transaction where it has one.

    ``echo``: the way back wrote it into MongoDB.
    """

    incarnation: UUID
    session: Any = None
    transaction: int | None = None
    echo: bool = False

    def to_bson(self) -> dict[str, Any]:
        """Return the origin as the envelope holds it."""
        document: dict[str, Any] = {"inc": self.incarnation}
        if self.transaction is not None:
            document |= {"lsid": self.session, "txn": self.transaction}
        if self.echo:
            document["echo"] = True
        return document


@dataclass(frozen=True, slots=True)
class Event:
    """One decoded event. ``document`` may be raw BSON when it is to be encoded unread."""

    operation: Operation
    namespace: str
    id: Any
    version: Version
    wall: datetime
    source: Source
    origin: Origin
    document: Mapping[str, Any] | None = field(default=None, repr=False)  # never into a log
    size: int | None = None
    """Bytes that a reference's value would have with its document."""
    tenants: tuple[UUID, ...] = ()
    """Tenants under which rows of the document were seen, where its sender has looked: any may be wrong."""

    @property
    def control(self) -> bool:
        """Whether this is a control record, not a document's event."""
        return self.operation in (Operation.HEARTBEAT, Operation.BARRIER)


# Looked up for every event: a third of the cost of calling the enum.
_OPERATIONS = {member.value: member for member in Operation}
_SOURCES = {member.value: member for member in Source}
_LOOKED = (Source.REPAIR, Source.REVERSE)  # their senders have seen rows


def encode(event: Event) -> bytes:
    """Return the record value of an event; its document is passed through unread when it is raw BSON."""
    value: dict[str, Any] = {
        "v": ENVELOPE_VERSION,
        "op": event.operation.value,
        "ns": event.namespace,
        "id": event.id,
        "t": event.version.timestamp,
        "n": event.version.order,
        "wall": event.wall,
        "src": event.source.value,
        "origin": event.origin.to_bson(),
    }
    if event.document is not None:
        value["doc"] = event.document
    if event.size is not None:
        value["size"] = event.size
    if event.tenants:
        value["tenants"] = list(event.tenants)
    return bson.encode(value, codec_options=_CODEC)


_LAST_SECOND = 2**31  # of a version that fits a signed 64-bit integer


def decode(value: bytes) -> Event:
    """Return the event in a record value; `EnvelopeError` when it is none, and never another error."""
    try:
        record = bson.decode(value, codec_options=_CODEC)  # pyright: ignore[reportUnknownMemberType]
    except (InvalidBSON, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        # Only the kind of the fault: the record may hold anything, secrets too.
        raise EnvelopeError(f"record is no BSON document ({type(error).__name__})") from None
    if (envelope := _field(record, "v", int)) != ENVELOPE_VERSION:
        raise EnvelopeError(f"envelope version {envelope}, this program reads {ENVELOPE_VERSION}")
    operation = _member(_OPERATIONS, _field(record, "op", str), "op")
    document = _document(record, "doc") if "doc" in record else None
    if (document is not None) != (operation is Operation.UPSERT):
        raise EnvelopeError(f"{operation} with doc {'missing' if document is None else 'present'}")
    size = _field(record, "size", int) if operation is Operation.REFERENCE else None
    if size is not None and size < 0:
        raise EnvelopeError("field size is out of range")
    if "id" not in record:  # which may be null
        raise EnvelopeError("field id is missing")
    order = _field(record, "n", int)
    if not 0 <= order <= MAX_ORDER:
        raise EnvelopeError("field n is out of range")
    if "\0" in (namespace := _field(record, "ns", str)):
        raise EnvelopeError("field ns holds a NUL")
    source = _member(_SOURCES, _field(record, "src", str), "src")
    if (at := _field(record, "t", Timestamp)).time >= _LAST_SECOND:
        raise EnvelopeError("field t is out of range")
    return Event(
        operation=operation,
        namespace=namespace,
        id=record["id"],
        version=Version.of(at, order),
        wall=_field(record, "wall", datetime),
        source=source,
        origin=_origin(_document(record, "origin")),
        document=document,
        size=size,
        tenants=_tenants(record) if source in _LOOKED and "tenants" in record else (),
    )


def reference(event: Event, size: int) -> Event:
    """Return an upsert without its document, for a topic that does not take a value of ``size`` bytes."""
    assert event.operation is Operation.UPSERT
    return replace(event, operation=Operation.REFERENCE, document=None, size=size)


def resolved(event: Event, document: Mapping[str, Any]) -> Event:
    """Return the upsert that a reference stands for, with a document read from MongoDB.

    The read must show the event's clusterTime or later. What is newer is followed by an event of its own.
    """
    assert event.operation is Operation.REFERENCE
    return replace(event, operation=Operation.UPSERT, document=document, size=None)


def _origin(origin: dict[str, Any]) -> Origin:
    incarnation = _field(origin, "inc", UUID)
    if "txn" not in origin:
        return Origin(incarnation)
    echo = origin.get("echo", False)
    if echo not in (True, False):
        raise EnvelopeError("field echo is no boolean")
    return Origin(incarnation, _document(origin, "lsid"), _field(origin, "txn", int), echo)


def _tenants(record: Mapping[str, Any]) -> tuple[UUID, ...]:
    tenants = cast("list[Any]", _field(record, "tenants", list))
    if not all(isinstance(tenant, UUID) for tenant in tenants):
        raise EnvelopeError("field tenants holds what is no UUID")
    return tuple(tenants)


def _document(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    if isinstance(value := record.get(name), DBRef):
        # A whole document with the fields $ref and $id looks like one to the decoder.
        return dict(cast("Mapping[str, Any]", value.as_doc()))
    return cast("dict[str, Any]", _field(record, name, dict))


def _field(record: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    try:
        value = record[name]
    except KeyError:
        raise EnvelopeError(f"field {name} is missing") from None
    if isinstance(value, kind) and value is not True and value is not False:
        return value
    raise EnvelopeError(f"field {name} is a {type(value).__name__}, not a {kind.__name__}")


def _member(members: Mapping[str, _E], value: str, name: str) -> _E:
    try:
        return members[value]
    except KeyError:
        raise EnvelopeError(f"field {name} is none of {', '.join(members)}") from None
