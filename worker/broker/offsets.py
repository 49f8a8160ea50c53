"""How far topics go."""

from __future__ import annotations

from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.broker.admin import unreachable


async def end_offsets(bootstrap: str, topics: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Return the next offset to come of each partition; ``topics``: each with its number of partitions."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, client_id="crossfade ends", group_id=None)
    try:
        await consumer.start()
        partitions = [TopicPartition(topic, n) for topic, count in topics.items() for n in range(count)]
        ends = await consumer.end_offsets(partitions)
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreachable(bootstrap, error) from None
    finally:
        await consumer.stop()
    return {(one.topic, one.partition): end for one, end in ends.items()}
