"""How far topics go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.broker.access import Access
from worker.retry import Backoff

_log = structlog.get_logger()


async def end_offsets(kafka: Access, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the next offset to come of each partition; ``topics``: each with its number of partitions.

    Waits while Kafka is away.
    """
    return await _offsets(kafka, topics, AIOKafkaConsumer.end_offsets)


async def begin_offsets(kafka: Access, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the first offset that each partition still has; otherwise as `end_offsets`."""
    return await _offsets(kafka, topics, AIOKafkaConsumer.beginning_offsets)


async def _offsets(kafka: Access, topics: Mapping[str, int], ask: Any) -> dict[tuple[str, int], int]:
    partitions = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
    for delay in Backoff().delays():
        consumer = AIOKafkaConsumer(**kafka.options(), client_id="crossfade offsets", group_id=None)
        try:
            await consumer.start()
            found = await ask(consumer, partitions)
            return {(one.topic, one.partition): offset for one, offset in found.items()}
        except (KafkaError, OSError, TimeoutError) as error:
            _log.warning("Kafka does not tell its offsets, trying again", error=type(error).__name__)
        finally:
            await consumer.stop()
        await asyncio.sleep(delay)
    raise AssertionError
