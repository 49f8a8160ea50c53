"""What does not follow on: a gap is believed only where Kafka itself has one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from uuid import uuid4

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.support.hands import administering, make_topic
from worker.apply.batch import Item
from worker.apply.continuity import Continuity
from worker.broker.access import Access
from worker.broker.producer import Producer, Takes, acknowledged
from worker.embedded import Services
from worker.errors import Fatal

Healed = list[Callable[..., Awaitable[None]]]


async def _ten_records(services: Services, healed: Healed) -> tuple[str, Continuity]:
    topic, kafka = f"c{uuid4().hex[:8]}", Access(services.kafka_bootstrap)
    await make_topic(services.kafka_bootstrap, topic, 1)
    producer = Producer(kafka, "test", {topic: Takes(1, 1024 * 1024)})
    await producer.start()
    await acknowledged(await producer.send(topic, 0, [(b"k", b"v")] * 10))
    await producer.stop()

    async def do(work: Callable[..., Awaitable[None]]) -> None:
        healed.append(work)

    continuity = Continuity(kafka, {topic: "pages"}, do)
    continuity.reached({(topic, 0): 3})
    return topic, continuity


async def test_records_that_kafka_still_has_are_no_gap(services: Services) -> None:
    healed: Healed = []
    topic, continuity = await _ten_records(services, healed)
    with pytest.raises(Fatal, match="out of their order"):
        await continuity.following([[Item(topic, 0, 8, b"")]])
    assert healed == []
    assert await continuity.following([[Item(topic, 0, 3, b"")]]) == {(topic, 0): 4}


async def test_records_that_kafka_no_longer_has_are_a_gap(services: Services) -> None:
    healed: Healed = []
    topic, continuity = await _ten_records(services, healed)
    async with administering(services.kafka_bootstrap) as admin:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=8)})
    assert await continuity.following([[Item(topic, 0, 8, b"")]]) == {(topic, 0): 9}
    assert len(healed) == 1
