"""Creates the declared topics, and says how each topic that exists is set up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.admin import DeleteGroupsRequest

from topics import Topic
from worker.broker.access import Access
from worker.errors import ServiceUnavailable
from worker.retry import Backoff

# aiokafka logs every failed attempt with a traceback; each failure is told once by us.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

_log = structlog.get_logger()

_TIMEOUT_MS = 15_000
_NO_SUCH_GROUP = 69
_CONFIGS = (
    "max.message.bytes",
    "message.timestamp.type",
    "retention.ms",
    "retention.bytes",
    "cleanup.policy",
    "min.insync.replicas",
    "unclean.leader.election.enable",
)
FRAME = 512
"""More bytes than Kafka's format needs around one record's key and value; `max.message.bytes` counts them."""


@dataclass(frozen=True, slots=True)
class Found:
    """A declared topic as Kafka has it."""

    topic: Topic
    created: bool
    """Whether this call made it; else it was there."""
    partitions: int
    max_message_bytes: int
    retention_ms: int
    """-1: for ever."""
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Kafka's, by name, of a topic that was there."""


async def ensure_topics(kafka: Access, topics: list[Topic]) -> dict[str, int]:
    """Create the topics that are missing; return each topic's real number of partitions."""
    async with _administering(kafka) as admin:
        await _create_missing(admin, topics)
        return await _partitions(admin, [topic.name for topic in topics])


async def missing_topics(kafka: Access, topics: Iterable[Topic]) -> list[str]:
    """Return the names of the topics that Kafka does not have."""
    async with _administering(kafka) as admin:
        existing = set(await admin.list_topics())
    return [topic.name for topic in topics if topic.name not in existing]


async def largest_records(kafka: Access, topics: Sequence[Topic]) -> dict[str, int]:
    """Return the most bytes that key and value of one record may have, for each topic, which must exist."""
    async with _administering(kafka) as admin:
        configs = await _configs(admin, [topic.name for topic in topics], may_be_hidden=True)
    return {
        topic.name: int(configs.get(topic.name, {}).get("max.message.bytes", topic.max_message_bytes)) - FRAME
        for topic in topics
    }


async def create_topics(kafka: Access, topics: Sequence[Topic]) -> list[Found]:
    """Create the topics that are missing; return how each one is set up, in the order given."""
    async with _administering(kafka) as admin:
        made = await _create_missing(admin, topics)
        there = await _found(admin, [topic for topic in topics if topic.name not in made])
        return [
            # The broker has just taken the declared values; the one asked next may not know them yet.
            Found(topic, True, topic.partitions, topic.max_message_bytes, topic.retention_ms)
            if topic.name in made
            else there[topic.name]
            for topic in topics
        ]


async def look_at_topics(kafka: Access, topics: Sequence[Topic]) -> tuple[list[Found], dict[str, str]]:
    """Return the topics that exist, and of each other one why Kafka would not create it, or nothing."""
    async with _administering(kafka) as admin:
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        found = await _found(admin, [topic for topic in topics if topic.name in existing])
        refusals: dict[str, str] = {}
        for topic in missing:
            try:
                await _create(admin, [topic], validate_only=True)
                refusals[topic.name] = ""
            except ServiceUnavailable as error:
                refusals[topic.name] = str(error)
        return list(found.values()), refusals


def misfits(found: Found) -> list[str]:
    """Return what makes an existing topic unfit, each with what to do."""
    name, faults = found.topic.name, list[str]()
    if found.partitions != found.topic.partitions:
        faults.append(
            f"topic {name} has {found.partitions} partitions, not {found.topic.partitions}: set "
            f"CROSSFADE_TOPIC_PARTITIONS={found.partitions}, or choose another CROSSFADE_TOPIC_PREFIX"
        )
    if "compact" in found.settings.get("cleanup.policy", ""):
        faults.append(
            f"topic {name} is compacted, which takes records that apply has not read: "
            + _alter(name, "cleanup.policy=delete")
        )
    if found.settings.get("unclean.leader.election.enable") == "true":
        faults.append(
            f"topic {name} may lose acknowledged records when a broker dies: "
            + _alter(name, "unclean.leader.election.enable=false")
        )
    return faults


def advice(found: Found) -> list[str]:
    """Return what would be better otherwise with an existing topic, each with what to do."""
    name, wanted, told = found.topic.name, found.topic, list[str]()
    if 0 <= found.retention_ms < wanted.retention_ms:
        told.append(
            f"topic {name} keeps records for {found.retention_ms / 3_600_000:.1f} h, and apply must never be "
            f"further behind: {_alter(name, f'retention.ms={wanted.retention_ms}')}"
        )
    if int(found.settings.get("retention.bytes", -1)) >= 0:
        told.append(
            f"topic {name} keeps {found.settings['retention.bytes']} bytes of each partition, and apply must "
            f"never be further behind: {_alter(name, 'retention.bytes=-1')}"
        )
    if found.max_message_bytes < wanted.max_message_bytes:
        told.append(
            f"topic {name} takes records of {found.max_message_bytes} bytes at most, so apply reads larger "
            f"documents from MongoDB: {_alter(name, f'max.message.bytes={wanted.max_message_bytes}')}"
        )
    if found.settings.get("message.timestamp.type") == "CreateTime":
        told.append(
            f"topic {name} refuses the records of a publisher whose clock is an hour ahead: "
            + _alter(name, "message.timestamp.type=LogAppendTime")
        )
    if wanted.replication > 2 and found.settings.get("min.insync.replicas") == "1":
        told.append(
            f"topic {name} acknowledges what one broker alone has: {_alter(name, 'min.insync.replicas=2')}"
        )
    return told


def _alter(topic: str, setting: str) -> str:
    return f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} --add-config {setting}"


async def existing_topics(kafka: Access, among: Iterable[str] | None = None) -> dict[str, int]:
    """Return the number of partitions of every topic that exists, or of those ``among`` some."""
    async with _administering(kafka) as admin:
        names = set(await admin.list_topics())
        wanted = names if among is None else names.intersection(among)
        return await _partitions(admin, sorted(wanted)) if wanted else {}


async def delete_topics(kafka: Access, names: Iterable[str]) -> list[str]:
    """Delete those of these topics that exist; return which. `ServiceUnavailable` where Kafka refuses."""
    async with _administering(kafka) as admin:
        wanted = sorted(set(await admin.list_topics()).intersection(names))
        if wanted:
            reply: Any = await admin.delete_topics(wanted)
            for name, code, *_ in reply.topic_error_codes:
                if code and (kind := for_code(code)) is not UnknownTopicOrPartitionError:
                    raise ServiceUnavailable(
                        f"Kafka refuses to delete topic {name} ({kind.__name__})",
                        remedy="let the user delete topics, or delete them by hand",
                    )
        return wanted


async def existing_groups(kafka: Access, among: Iterable[str]) -> list[str]:
    """Return which of these consumer groups Kafka knows, in order."""
    async with _administering(kafka) as admin:
        return sorted({name for name, _ in await admin.list_consumer_groups()}.intersection(among))


async def delete_groups(kafka: Access, names: Iterable[str]) -> None:
    """Delete consumer groups; one that is not there is no fault. `ServiceUnavailable` where Kafka refuses."""
    async with _administering(kafka) as admin:
        for name in names:
            coordinator = await admin.find_coordinator(name)
            # The client has the request, and no method for it.
            reply: Any = await admin._send_request(DeleteGroupsRequest([name]), coordinator)
            for _, code in reply.results:
                if code not in (0, _NO_SUCH_GROUP):
                    raise ServiceUnavailable(
                        f"Kafka refuses to delete consumer group {name} ({for_code(code).__name__})",
                        remedy="if a process of it was killed, wait for a minute; let the user delete groups",
                    )


@asynccontextmanager
async def _administering(kafka: Access) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(
        **kafka.options(), client_id="crossfade admin", request_timeout_ms=_TIMEOUT_MS
    )
    try:
        await admin.start()
        yield admin
    except (KafkaError, OSError, TimeoutError) as error:
        raise kafka.unreachable(error) from None
    finally:
        await admin.close()


async def _found(admin: AIOKafkaAdminClient, there: Sequence[Topic]) -> dict[str, Found]:
    """Return how topics that exist are set up, by name."""
    names = [topic.name for topic in there]
    partitions = await _partitions(admin, names) if names else {}
    configs = await _configs(admin, names) if names else {}
    return {
        topic.name: Found(
            topic,
            False,
            partitions[topic.name],
            int(configs[topic.name]["max.message.bytes"]),
            int(configs[topic.name]["retention.ms"]),
            configs[topic.name],
        )
        for topic in there
    }


async def _create_missing(admin: AIOKafkaAdminClient, topics: Iterable[Topic]) -> set[str]:
    """Return the names of the topics that this call made."""
    existing = set(await admin.list_topics())
    missing = [topic for topic in topics if topic.name not in existing]
    return await _create(admin, missing) if missing else set()


async def _create(
    admin: AIOKafkaAdminClient, missing: list[Topic], *, validate_only: bool = False
) -> set[str]:
    made: set[str] = set()
    reply: Any = await admin.create_topics(
        [
            NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=topic.config())
            for topic in missing
        ],
        validate_only=validate_only,
    )
    for name, code, *rest in reply.topic_errors:
        kind = for_code(code)
        if not code:
            made.add(name)
        elif kind is not TopicAlreadyExistsError:
            reason = rest[0] if rest and rest[0] else kind.__name__
            raise ServiceUnavailable(
                f"Kafka refuses to create topic {name} ({reason})",
                remedy="check CROSSFADE_TOPIC_PARTITIONS, CROSSFADE_TOPIC_REPLICATION and the user's rights",
            )
    return made


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


async def _configs(
    admin: AIOKafkaAdminClient, names: Sequence[str], *, may_be_hidden: bool = False
) -> dict[str, dict[str, str]]:
    """Return each topic's settings that concern us, as they are in force.

    A topic whose settings the user may not see is left out where they ``may_be_hidden``.
    """
    wanted = dict.fromkeys(_CONFIGS)
    found: dict[str, dict[str, str]] = {}
    left = list(names)
    async with asyncio.timeout(_TIMEOUT_MS / 1000):
        for delay in Backoff(longest=1).delays():
            replies: list[Any] = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in left]
            )
            left = []
            for code, reason, _, name, entries in (one for reply in replies for one in reply.resources):
                kind = for_code(code)
                if not code:
                    found[name] = {entry[0]: entry[1] for entry in entries}
                elif kind is UnknownTopicOrPartitionError:
                    left.append(name)  # just created: the broker that was asked has yet to hear of it
                elif may_be_hidden:
                    _log.warning("a topic's settings are not shown, taking them as declared", topic=name)
                else:
                    raise ServiceUnavailable(
                        f"Kafka does not show the settings of topic {name} ({reason or kind.__name__})",
                        remedy="allow the user to describe the topic's configs",
                    )
            if not left:
                return found
            await asyncio.sleep(delay)
    raise AssertionError
