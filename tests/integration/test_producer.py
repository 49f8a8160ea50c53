"""The producer on a real broker: what fits into a record, into a request, and how it is set up."""

from __future__ import annotations

import struct
from uuid import uuid4

import pytest

from tests.support.hands import configure, make_topic
from worker.broker.access import Access
from worker.broker.offsets import end_offsets
from worker.broker.producer import Producer, Takes, acknowledged
from worker.embedded import Services
from worker.errors import Fatal

MB = 1024 * 1024


async def test_records_of_many_partitions_do_not_meet_in_a_request_that_no_broker_takes(
    services: Services,
) -> None:
    topic = f"p{uuid4().hex[:8]}"
    await make_topic(services.kafka_bootstrap, topic, 8, max_message_bytes=str(20 * MB))
    producer = Producer(Access(services.kafka_bootstrap), "test", {topic: Takes(8, 19 * MB)})
    await producer.start()
    sent = await producer.send_all({(topic, number): [(b"k", bytes(16 * MB))] for number in range(8)})
    await acknowledged(sent)
    await producer.stop()
    ends = await end_offsets(Access(services.kafka_bootstrap), {topic: 8})
    assert set(ends.values()) == {1}


async def test_batches_keep_to_what_the_topic_takes_and_a_refused_one_is_fatal(services: Services) -> None:
    topic = f"p{uuid4().hex[:8]}"
    await make_topic(services.kafka_bootstrap, topic, 1, max_message_bytes="20000")
    producer = Producer(Access(services.kafka_bootstrap), "test", {topic: Takes(1, 20_000 - 512)})
    await producer.start()
    records = [(b"k", bytes(size)) for size in (19_487, 1, 9_000, 9_000, 9_000, *[1] * 1000)]
    await acknowledged(await producer.send(topic, 0, records))
    with pytest.raises(Fatal, match="even without its document"):
        await producer.send(topic, 0, [(b"k", bytes(19_488))])
    assert await end_offsets(Access(services.kafka_bootstrap), {topic: 1}) == {(topic, 0): len(records)}
    await configure(services.kafka_bootstrap, topic, max_message_bytes="10000")
    with pytest.raises(Fatal, match="MessageSizeTooLarge"):
        await acknowledged(await producer.send(topic, 0, [(b"k", bytes(15_000))]))
    await producer.stop()


async def test_what_lies_in_kafka_was_sent_by_an_idempotent_producer(services: Services) -> None:
    """A batch that is sent again, because its acknowledgement was lost, is then taken once."""
    topic = f"p{uuid4().hex[:8]}"
    await make_topic(services.kafka_bootstrap, topic, 1)
    producer = Producer(Access(services.kafka_bootstrap), "test", {topic: Takes(1, MB)})
    await producer.start()
    for _ in range(2):
        await acknowledged(await producer.send(topic, 0, [(b"k", b"v")] * 3))
    assert producer._producer._sender._acks == -1  # all replicas in sync; a broker alone cannot show it
    await producer.stop()
    log = (services.directory / f"kafka/data/{topic}-0/00000000000000000000.log").read_bytes()
    headers = struct.Struct(">qiiBIhiqqqhi")  # of a batch, to its first sequence number; KIP-98
    first = headers.unpack_from(log)
    second = headers.unpack_from(log, 12 + first[1])
    (producer_id, _, sequence), (again, _, following) = first[-3:], second[-3:]
    assert producer_id == again >= 0 and (sequence, following) == (0, 3)
