"""The wire format against topics/examples, and what is no event; the declared topics."""

from __future__ import annotations

from contextlib import suppress

import bson
import pytest
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from hypothesis import example, given
from hypothesis import strategies as st

from topics import (
    Collection,
    EnvelopeError,
    Event,
    Operation,
    Origin,
    Source,
    TopicNames,
    Version,
    declare,
    declare_reverse,
    decode,
    document_key,
    encode,
    key_to_id,
    partition_of,
)
from topics.examples import Example, read_examples

EXAMPLES = read_examples()
PLAIN: CodecOptions = CodecOptions(tz_aware=True, uuid_representation=UuidRepresentation.STANDARD)
PAGES = Collection("spaces", "pages")

each_example = pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: one.name)


def event_of(one: Example) -> Event:
    """The event that the readable form says, without the decoder."""
    value, origin = one.value, one.value["origin"]
    return Event(
        operation=Operation(value["op"]),
        namespace=value["ns"],
        id=value["id"],
        version=Version.of(value["t"], value["n"]),
        wall=value["wall"],
        source=Source(value["src"]),
        origin=Origin(origin["inc"], origin.get("lsid"), origin.get("txn"), origin.get("echo", False)),
        document=value.get("doc"),
        size=value.get("size"),
        tenants=tuple(value.get("tenants", ())),
    )


@each_example
def test_the_bytes_are_what_the_readable_form_says(one: Example) -> None:
    assert bson.encode(one.value, codec_options=PLAIN).hex() == one.value_bytes.hex()
    assert bson.encode(one.key, codec_options=PLAIN).hex() == one.key_bytes.hex()


@each_example
def test_encoding_gives_the_bytes(one: Example) -> None:
    event = event_of(one)
    assert encode(event).hex() == one.value_bytes.hex()
    assert document_key(event.id).hex() == one.key_bytes.hex()


@each_example
def test_decoding_gives_the_values_and_types(one: Example) -> None:
    event, expected = decode(one.value_bytes), event_of(one)
    assert event == expected
    assert type(event.id) is type(expected.id)
    assert encode(event) == one.value_bytes
    assert key_to_id(one.key_bytes) == one.key[""]


@each_example
def test_a_documents_record_has_its_topic_and_partition(one: Example) -> None:
    if event_of(one).control:
        assert one.partition is None
        return
    names, collection = TopicNames(), Collection.parse(one.value["ns"])
    of = {"copy": names.copy, "reverse": names.reverse}.get(one.value["src"], names.stream)
    assert one.topic == of(collection)
    assert one.partition is not None
    partition, partitions = one.partition
    assert partition_of(one.key_bytes, partitions) == partition


def test_every_operation_and_source_has_an_example() -> None:
    assert {one.value["op"] for one in EXAMPLES} == set(Operation)
    assert {one.value["src"] for one in EXAMPLES} == set(Source)


def test_ids_that_mongodb_holds_equal_share_key_and_partition() -> None:
    same = [one for one in EXAMPLES if one.name in ("id-int32", "id-int64-small", "id-double", "id-decimal")]
    assert len(same) == 4
    assert len({one.key_bytes for one in same}) == len({one.partition for one in same}) == 1


def test_an_unknown_field_is_ignored() -> None:
    one = EXAMPLES[0]
    later = bson.encode({**one.value, "later": {"more": 1}}, codec_options=PLAIN)
    assert decode(later) == event_of(one)


# ---- what is no event


@each_example
@pytest.mark.parametrize("version", [0, 2, 2**31 - 1, -1])
def test_another_envelope_version_is_refused_by_its_number(one: Example, version: int) -> None:
    with pytest.raises(EnvelopeError, match=f"envelope version {version},"):
        decode(bson.encode({**one.value, "v": version}, codec_options=PLAIN))


@each_example
def test_a_record_cut_short_anywhere_is_refused(one: Example) -> None:
    for length in range(len(one.value_bytes)):
        with pytest.raises(EnvelopeError):
            decode(one.value_bytes[:length])


@each_example
def test_a_missing_field_is_refused_by_name(one: Example) -> None:
    for name in one.value.keys() - {"tenants"}:  # which may be missing
        rest = {other: value for other, value in one.value.items() if other != name}
        with pytest.raises(EnvelopeError, match=name):
            decode(bson.encode(rest, codec_options=PLAIN))


WRONG = [None, True, "s3cret", 7, 1.0, [], {}, b"s3cret"]
FIELDS = ["v", "op", "ns", "t", "n", "wall", "src", "origin", "doc"]


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_a_field_of_another_type_is_refused_by_name_and_without_its_value(name: str, wrong: object) -> None:
    one = next(one for one in EXAMPLES if one.name == "stream-upsert")
    right = (name, type(wrong)) in {("ns", str), ("n", int), ("doc", dict)}
    value = bson.encode({**one.value, name: wrong}, codec_options=PLAIN)
    if right:
        decode(value)
        return
    with pytest.raises(EnvelopeError) as refused:
        decode(value)
    assert "s3cret" not in str(refused.value)
    told = {"v": "envelope version 7"} if wrong == 7 else {"origin": "field inc"} if wrong == {} else {}
    assert told.get(name, f"field {name}") in str(refused.value)


@pytest.mark.parametrize("wrong", [*WRONG, ["s3cret"], [None]], ids=repr)
def test_tenants_of_rows_are_uuids_and_only_a_repair_tells_them(wrong: object) -> None:
    value = next(one for one in EXAMPLES if one.name == "repair-delete-of-rows").value | {"tenants": wrong}
    assert decode(bson.encode({**value, "src": "stream"}, codec_options=PLAIN)).tenants == ()
    if wrong == []:
        assert decode(bson.encode(value, codec_options=PLAIN)).tenants == ()
        return
    with pytest.raises(EnvelopeError, match="field tenants") as refused:
        decode(bson.encode(value, codec_options=PLAIN))
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("order", [-1, 2**31, 2**63 - 1])
def test_an_order_that_no_int32_holds_is_refused(order: int) -> None:
    with pytest.raises(EnvelopeError, match="field n"):
        decode(bson.encode({**EXAMPLES[0].value, "n": order}, codec_options=PLAIN))


def nested(depth: int) -> bytes:
    value = b"\x05\x00\x00\x00\x00"
    for _ in range(depth):
        value = (len(value) + 8).to_bytes(4, "little") + b"\x03a\x00" + value + b"\x00"
    return value


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x05\x00\x00\x00\x00")
@example(nested(5_000))
def test_garbage_is_refused_and_never_another_error(value: bytes) -> None:
    with pytest.raises(EnvelopeError):
        decode(value)


@given(st.sampled_from(EXAMPLES), st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1))
def test_flipped_bits_are_an_event_or_refused_and_never_another_error(
    one: Example, flips: list[tuple[int, int]]
) -> None:
    value = bytearray(one.value_bytes)
    for position, mask in flips:
        value[position % len(value)] ^= mask
    with suppress(EnvelopeError):
        assert isinstance(decode(bytes(value)), Event)


_leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary()
_leaves |= st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5)
_names = st.sampled_from([*FIELDS, "id", "inc", "lsid", "txn", "$ref", "$id", "$db", ""])
_values = st.recursive(_leaves, lambda inner: st.lists(inner) | st.dictionaries(_names, inner), max_leaves=8)


@given(st.dictionaries(_names, _values))
def test_foreign_bson_is_refused_and_never_another_error(document: dict[str, object]) -> None:
    with pytest.raises(EnvelopeError):
        decode(bson.encode(document, codec_options=PLAIN))


@given(st.sampled_from(EXAMPLES), st.dictionaries(_names, _values))
def test_an_event_with_foreign_fields_is_an_event_or_refused(one: Example, fields: dict[str, object]) -> None:
    with suppress(EnvelopeError):
        decode(bson.encode({**one.value, **fields}, codec_options=PLAIN))


# ---- the declared topics


def test_each_collection_has_a_stream_and_a_copy_topic_for_a_week_with_room_for_the_largest_document() -> (
    None
):
    topics = declare(TopicNames("moving"), [PAGES, Collection("spaces", "a.b")], partitions=6, replication=3)
    assert [topic.name for topic in topics] == [
        "moving.spaces.pages",
        "moving.spaces.pages.copy",
        "moving.spaces.a.b",
        "moving.spaces.a.b.copy",
    ]
    for topic in topics:
        assert (topic.partitions, topic.replication) == (6, 3)
        assert (topic.produced_by, topic.consumed_by) == ("publish", "apply")
        assert topic.holds
        assert topic.config() == {
            "cleanup.policy": "delete",
            "retention.ms": "604800000",
            "max.message.bytes": "20971520",
            "message.timestamp.type": "LogAppendTime",
            "min.insync.replicas": "2",  # what is acknowledged survives a broker
        }
        assert topic.max_message_bytes > 16 * 1024 * 1024


def test_retention_and_largest_message_can_be_given() -> None:
    topic, _ = declare(
        TopicNames(), [PAGES], partitions=1, replication=1, retention_ms=5, max_message_bytes=8_000_000
    )
    assert topic.config()["retention.ms"] == "5"
    assert "min.insync.replicas" not in topic.config()
    assert topic.config()["max.message.bytes"] == "8000000"


def test_events_are_addressed_to_declared_topics() -> None:
    both = (declare, declare_reverse)
    declared = {one.name for of in both for one in of(TopicNames(), [PAGES], partitions=4, replication=1)}
    assert {one.topic for one in EXAMPLES} <= declared
