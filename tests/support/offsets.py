"""A world's topics as Kafka has them."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.support.world import World


async def ends(w: World) -> dict[tuple[str, int], int]:
    """Return the next offset to come of each partition that has had any."""
    return {place: end for place, end in (await w.ends()).items() if end}


async def committed(w: World) -> dict[tuple[str, int], int]:
    """Return the offsets that the apply workers' group has committed."""
    consumer = AIOKafkaConsumer(bootstrap_servers=w.services.kafka_bootstrap, group_id=w.name)
    await consumer.start()
    try:
        places = [TopicPartition(*place) for place in await ends(w)]
        return {(one.topic, one.partition): await consumer.committed(one) or 0 for one in places}
    finally:
        await consumer.stop()
