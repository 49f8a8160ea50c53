"""What `crossfade topics` says of records and topics, without Kafka."""

from __future__ import annotations

import json

from topics import Collection, TopicNames, declare
from topics.examples import read_examples
from worker.broker.admin import Found, advice
from worker.broker.reader import Record
from worker.topics_cli import misfits, tell

EXAMPLES = {one.name: one for one in read_examples()}


def record(name: str) -> Record:
    return Record(2, 17, 1767323045678, EXAMPLES[name].key_bytes, EXAMPLES[name].value_bytes)


def test_a_document_is_told_only_when_asked() -> None:
    told = tell(record("stream-upsert-in-transaction"), documents=False)
    assert told == {
        "partition": 2,
        "offset": 17,
        "operation": "upsert",
        "collection": "spaces.pages",
        "id": {"$oid": "6957360ad1f0c2b3a4958677"},
        "version": {"t": 1767323045, "i": 7, "order": 2},
        "source": "stream",
        "wall": "2026-01-02T03:04:05.678Z",
        "incarnation": "8c1f6a52-0d3e-4b7a-9f41-52a1d5c7e890",
        "bytes": len(EXAMPLES["stream-upsert-in-transaction"].value_bytes),
        "transaction": 41,
    }
    assert "Überblick" not in json.dumps(told, ensure_ascii=False)
    assert tell(record("stream-upsert"), documents=True)["document"]["title"] == "Überblick"


def test_every_example_can_be_told_as_extended_json() -> None:
    for name, one in EXAMPLES.items():
        told = json.loads(json.dumps(tell(record(name), documents=True)))
        assert told["operation"] == one.value["op"], name
        assert ("document" in told) == ("doc" in one.value), name


def test_what_is_no_event_is_told_as_such_with_the_id_of_its_key() -> None:
    told = tell(Record(0, 1, 0, EXAMPLES["id-string"].key_bytes, b"s3cret"), documents=False)
    assert (told["operation"], told["id"], told["bytes"]) == ("undecodable", "Grüße/1", 6)
    assert "s3cret" not in json.dumps(told) and "value" not in told
    asked = tell(Record(0, 1, 0, b"no key", b"s3cret"), documents=True)
    assert asked["id"] is None and asked["value"]["$binary"]["base64"] == "czNjcmV0"
    assert tell(Record(0, 1, 0, None, None), documents=False)["operation"] == "undecodable"


def test_a_topic_that_exists_otherwise_is_named_with_what_to_do() -> None:
    topic, _ = declare(TopicNames(), [Collection("spaces", "pages")], partitions=4, replication=1)
    assert misfits(Found(topic, False, 4, topic.max_message_bytes, 1)) == []
    settings = {"cleanup.policy": "compact,delete", "unclean.leader.election.enable": "true"}
    more, compacted, unclean = misfits(Found(topic, False, 6, 1_048_588, -1, settings))
    assert "has 6 partitions, not 4" in more and "CROSSFADE_TOPIC_PARTITIONS=6" in more
    assert "compacted" in compacted and "cleanup.policy=delete" in compacted
    assert "unclean.leader.election.enable=false" in unclean


def test_what_would_be_better_otherwise_with_a_topic_is_told_with_what_to_do() -> None:
    topic, _ = declare(TopicNames(), [Collection("spaces", "pages")], partitions=4, replication=3)
    well = topic.config() | {"retention.bytes": "-1"}
    assert advice(Found(topic, False, 4, topic.max_message_bytes, -1, well)) == []
    poor = {
        "retention.bytes": "1000",
        "min.insync.replicas": "1",
        "message.timestamp.type": "CreateTime",
    }
    short, few, small, clock, alone = advice(Found(topic, False, 4, 1_048_588, 5_400_000, poor))
    assert "1.5 h" in short and "retention.ms=604800000" in short
    assert "1000 bytes of each partition" in few and "retention.bytes=-1" in few
    assert "1048588 bytes at most" in small and "max.message.bytes=20971520" in small
    assert "an hour ahead" in clock and "message.timestamp.type=LogAppendTime" in clock
    assert "one broker alone" in alone and "min.insync.replicas=2" in alone
