"""How far topics go."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.retry import Backoff

_log = structlog.get_logger()


async def end_offsets(bootstrap: str, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the next offset to come of each partition; ``topics``: each with its number of partitions.

    Waits while Kafka is away.
    """
    partitions = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
    for delay in Backoff().delays():
        consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, client_id="crossfade ends", group_id=None)
        try:
            await consumer.start()
            ends = await consumer.end_offsets(partitions)
            return {(one.topic, one.partition): end for one, end in ends.items()}
        except (KafkaError, OSError, TimeoutError) as error:
            _log.warning("Kafka does not tell its offsets, trying again", error=type(error).__name__)
        finally:
            await consumer.stop()
        await asyncio.sleep(delay)
    raise AssertionError
