"""Faust's consumer thread ends in order though Kafka has just gone away."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from topics import Topic
from worker.broker.access import Access
from worker.broker.admin import ensure_topics
from worker.broker.batch_consumer import ConsumerThread
from worker.embedded import Services

_LONG = 60_000  # milliseconds


async def test_a_fetch_that_rests_after_a_failure_does_not_cancel_the_threads_end(
    services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    topic = Topic(f"t{uuid4().hex[:8]}", 1, 1, -1, 1_000_000, "nobody", "this test", "nothing")
    await ensure_topics(Access(services.kafka_bootstrap), [topic])
    consumer = AIOKafkaConsumer(
        bootstrap_servers=services.kafka_bootstrap, retry_backoff_ms=_LONG, fetch_max_wait_ms=_LONG // 2
    )
    await consumer.start()
    consumer.assign([place := TopicPartition(topic.name, 0)])
    await consumer.position(place)
    fetcher: Any = consumer._fetcher
    with caplog.at_level(logging.ERROR, "aiokafka.consumer.fetcher"):
        async with asyncio.timeout(60):
            while not fetcher._pending_tasks:  # noqa: ASYNC110 - its own work
                await asyncio.sleep(0.01)
            while "Failed fetch messages" not in caplog.text:  # as when Kafka is killed
                for connection in list(consumer._client._conns.values()):
                    if connection._requests:  # the fetch, which waits for records
                        connection.close()
                await asyncio.sleep(0.01)
    thread: Any = object.__new__(ConsumerThread)  # as it is while it ends: the consumer is left
    thread._consumer, thread._method_queue = consumer, None
    await thread.on_thread_stop()
    assert consumer._closed
    assert not any(one.connected() for one in consumer._client._conns.values())
