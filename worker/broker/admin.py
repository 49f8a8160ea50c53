"""Creates the declared topics and says how many partitions each has."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from topics import Topic
from worker.errors import ServiceUnavailable
from worker.retry import Backoff

# aiokafka logs every failed attempt with a traceback; each failure is told once by us.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

_TIMEOUT_MS = 15_000


def unreachable(bootstrap: str, error: BaseException) -> ServiceUnavailable:
    """Return the error that says Kafka cannot be used."""
    return ServiceUnavailable(
        f"Kafka at {bootstrap} cannot be reached ({type(error).__name__})",
        remedy="start it, or mend CROSSFADE_KAFKA_BOOTSTRAP",
    )


async def ensure_topics(bootstrap: str, topics: list[Topic]) -> dict[str, int]:
    """Create the topics that are missing; return each topic's real number of partitions."""
    admin = AIOKafkaAdminClient(
        bootstrap_servers=bootstrap, client_id="crossfade admin", request_timeout_ms=_TIMEOUT_MS
    )
    try:
        await admin.start()
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if missing:
            await _create(admin, missing)
        return await _partitions(admin, [topic.name for topic in topics])
    except (KafkaError, OSError, TimeoutError) as error:
        raise unreachable(bootstrap, error) from None
    finally:
        await admin.close()


async def _create(admin: AIOKafkaAdminClient, missing: list[Topic]) -> None:
    reply: Any = await admin.create_topics(
        [
            NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.config())
            for topic in missing
        ]
    )
    for name, code, *rest in reply.topic_errors:
        kind = for_code(code)
        if code and kind is not TopicAlreadyExistsError:
            reason = rest[0] if rest and rest[0] else kind.__name__
            raise ServiceUnavailable(
                f"Kafka refuses to create topic {name} ({reason})",
                remedy="check CROSSFADE_TOPIC_PARTITIONS, CROSSFADE_TOPIC_REPLICATION and the user's rights",
            )


async def _partitions(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Return each topic's number of partitions, once the broker that answers knows all of them.

    A topic that was just created is listed with an error and no partition until the broker has the
    controller's records; a record's partition must not be reckoned from that.
    """
    async with asyncio.timeout(_TIMEOUT_MS / 1000):
        for delay in Backoff(longest=1).delays():
            found = await admin.describe_topics(names)
            if all(not topic["error_code"] and topic["partitions"] for topic in found):
                return {topic["topic"]: len(topic["partitions"]) for topic in found}
            await asyncio.sleep(delay)
    raise AssertionError
