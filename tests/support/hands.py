"""What an administrator does to Kafka by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType


@asynccontextmanager
async def administering(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def make_topic(bootstrap: str, name: str, partitions: int, **config: str) -> None:
    """Make a topic; in the settings' names "_" stands for "."."""
    configs = {key.replace("_", "."): value for key, value in config.items()}
    async with administering(bootstrap) as admin:
        reply = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=configs)])
    assert [error[1] for error in reply.topic_errors] == [0], reply


async def remove_topic(bootstrap: str, name: str) -> None:
    """Delete a topic, and wait until Kafka no longer lists it."""
    async with administering(bootstrap) as admin:
        await admin.delete_topics([name])
        while name in await admin.list_topics():  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0.05)


async def configure(bootstrap: str, name: str, **config: str) -> None:
    """Change a topic's settings; those that are not named go back to their defaults."""
    configs = {key.replace("_", "."): value for key, value in config.items()}
    async with administering(bootstrap) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])


async def add_partitions(bootstrap: str, name: str, total: int) -> None:
    async with administering(bootstrap) as admin:
        await admin.create_partitions({name: NewPartitions(total)})
