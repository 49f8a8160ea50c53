"""How far topics go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.broker.access import Access
from worker.retry import Backoff

_log = structlog.get_logger()
_RECORD_WITHIN = 10.0  # seconds

T = TypeVar("T")


async def end_offsets(kafka: Access, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the next offset to come of each partition; ``topics``: each with its number of partitions.

    Waits while Kafka is away.
    """
    return await _offsets(kafka, topics, AIOKafkaConsumer.end_offsets)


async def begin_offsets(kafka: Access, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the first offset that each partition still has; otherwise as `end_offsets`."""
    return await _offsets(kafka, topics, AIOKafkaConsumer.beginning_offsets)


async def next_record(kafka: Access, topic: str, partition: int, offset: int) -> int:
    """Return the offset of the first record that a partition still has at or behind ``offset``.

    One must be known to be there. Waits while Kafka is away.
    """
    place = TopicPartition(topic, partition)

    async def ask(consumer: AIOKafkaConsumer) -> int:
        consumer.assign([place])
        consumer.seek(place, offset)  # where that is no more, the reset makes it the first one kept
        async with asyncio.timeout(_RECORD_WITHIN):
            return (await consumer.getone()).offset

    return await _asking(kafka, ask)


async def _offsets(kafka: Access, topics: Mapping[str, int], ask: Any) -> dict[tuple[str, int], int]:
    partitions = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
    found: dict[TopicPartition, int] = await _asking(kafka, lambda consumer: ask(consumer, partitions))
    return {(one.topic, one.partition): offset for one, offset in found.items()}


async def _asking(kafka: Access, ask: Callable[[AIOKafkaConsumer], Awaitable[T]]) -> T:
    for delay in Backoff().delays():
        consumer = AIOKafkaConsumer(
            **kafka.options(), client_id="crossfade offsets", group_id=None, auto_offset_reset="earliest"
        )
        try:
            await consumer.start()
            return await ask(consumer)
        except (KafkaError, OSError, TimeoutError) as error:
            _log.warning("Kafka does not tell its offsets, trying again", error=type(error).__name__)
        finally:
            await consumer.stop()
        await asyncio.sleep(delay)
    raise AssertionError
