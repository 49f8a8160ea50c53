"""The Kafka contract: keys, names and the envelope."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid4

import bson
import pytest
from bson import DBRef, Decimal128, Int64, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS

from topics import (
    Collection,
    EnvelopeError,
    Event,
    Operation,
    Origin,
    Source,
    TopicNames,
    Version,
    decode,
    document_key,
    encode,
    id_to_bson,
    key_to_id,
)
from worker.mapping.ids import objectid_to_uuid, reversible, row_id, uuid_to_objectid


def event(**changed: object) -> Event:
    fields: dict[str, object] = {
        "operation": Operation.UPSERT,
        "namespace": "db.notes",
        "id": 1,
        "version": Version.of(Timestamp(1700000000, 7), 3),
        "wall": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
        "source": Source.STREAM,
        "origin": Origin(UUID(int=5)),
        "document": {"_id": 1, "text": "é"},
    }
    return Event(**(fields | changed))  # pyright: ignore


def test_an_event_survives_the_wire() -> None:
    assert decode(encode(event())) == event()
    delete = event(operation=Operation.DELETE, document=None)
    assert decode(encode(delete)) == delete


def test_a_raw_document_passes_unread() -> None:
    raw = bson.raw_bson.RawBSONDocument(bson.encode({"_id": 1, "deep": {"n": Int64(1)}}))
    assert decode(encode(event(document=raw))).document == {"_id": 1, "deep": {"n": 1}}


def test_a_document_that_looks_like_a_reference_is_a_document() -> None:
    document = {"_id": 1, "$ref": "notes", "$id": 5, "$db": "x", "more": {"$ref": "notes", "$id": 6}}
    decoded = decode(encode(event(document=document))).document
    assert type(decoded) is dict and decoded == document | {"more": DBRef("notes", 6)}


@pytest.mark.parametrize(
    "value",
    [b"", b"nonsense", bson.encode({}), bson.encode({"v": 2}), bson.encode({"v": 1, "op": "explode"})],
)
def test_what_is_no_event_is_refused(value: bytes) -> None:
    with pytest.raises(EnvelopeError):
        decode(value)


def test_versions_order_by_time_then_order_and_a_snapshot_is_above_its_time() -> None:
    at = Timestamp(5, 1)
    assert Version.of(at, 0) < Version.of(at, 1) < Version.snapshot(at) < Version.of(Timestamp(5, 2), 0)


@pytest.mark.parametrize(
    "same", [[1, 1.0, Int64(1), Decimal128("1"), Decimal128("1.0")], [{"a": 1}, {"a": 1.0}]]
)
def test_ids_that_mongodb_holds_equal_are_one_key(same: list[object]) -> None:
    assert len({document_key(one) for one in same}) == 1


@pytest.mark.parametrize(
    "one",
    [
        1,
        "1",
        ObjectId(),
        uuid4(),
        None,
        True,
        {"a": [1, 2]},
        datetime(2020, 1, 1, tzinfo=UTC),
        DatetimeMS(2**62),
    ],
)
def test_a_document_id_is_read_back_from_its_bson(one: object) -> None:
    assert key_to_id(id_to_bson(one)) == one


def test_objectids_become_uuids_in_the_same_order_and_back() -> None:
    ids = sorted(ObjectId() for _ in range(100))
    uuids = [objectid_to_uuid(one) for one in ids]
    assert uuids == sorted(uuids)
    assert [uuid_to_objectid(one) for one in uuids] == ids
    assert all(one.version == 8 for one in uuids)
    assert uuid_to_objectid(uuid4()) is None


def test_other_ids_become_uuidv5_and_are_not_reversible() -> None:
    assert row_id("a") == row_id("a") != row_id("b")
    assert row_id("a").version == 5 and not reversible("a")
    assert reversible(uuid4()) and reversible(ObjectId())


def test_names_that_kafka_refuses_are_named() -> None:
    names = TopicNames("crossfade")
    assert names.stream(Collection("spaces", "pages")) == "crossfade.spaces.pages"
    with pytest.raises(ValueError, match="cannot be a Kafka topic"):
        names.stream(Collection("spaces", "pages and more"))


def test_decimals_of_34_digits_are_ids_of_their_own() -> None:
    one, other = (Decimal128(f"12345678901234567890123456789.0{digit}") for digit in (1, 2))
    assert document_key(one) != document_key(other)
    assert document_key(Decimal128("1.50")) == document_key(1.5)


@pytest.mark.parametrize(("field", "value"), [("t", Timestamp(2**31, 1)), ("ns", "spaces.pa\0ges")])
def test_what_no_column_could_hold_is_no_event(field: str, value: object) -> None:
    record = bson.decode(encode(event())) | {field: value}
    with pytest.raises(EnvelopeError, match=f"field {field} "):
        decode(bson.encode(record))
