"""Where a collection's events go, and records collected for many partitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from uuid import UUID

import structlog
from bson import Timestamp

from topics import (
    Collection,
    Event,
    Operation,
    Origin,
    TopicNames,
    declare,
    encode,
    partition_of,
    reference,
)
from worker import metrics
from worker.broker.access import Access
from worker.broker.admin import ensure_topics, largest_records, missing_topics
from worker.broker.producer import Record, Takes
from worker.mapping import Mapping
from worker.mapping.sources import Sources
from worker.postgres.checkpoints import Checkpoints
from worker.settings import Settings

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Target:
    """One logical collection with its topics; ``namespace`` is its name in metrics and in PostgreSQL.

    Its events carry the real collection's namespace, which tells apply the tenant where a name holds it.
    A room is the most bytes that key and value of one record may have.
    """

    collection: Collection
    namespace: str
    stream_topic: str
    copy_topic: str
    stream_partitions: int
    copy_partitions: int
    stream_room: int
    copy_room: int

    def value(self, event: Event, key: bytes, room: int) -> bytes:
        """Return an event's record value: without its document where that would not fit (a reference)."""
        value = encode(event)
        if len(key) + len(value) <= room or event.operation is not Operation.UPSERT:
            return value
        metrics.REFERENCES.labels(self.namespace).inc()
        return encode(reference(event, len(value)))


class Targets:
    """All targets, and the one of each real namespace."""

    def __init__(self, targets: Sequence[Target], sources: Sources) -> None:
        self.all = tuple(targets)
        self.sources = sources
        self._by_collection = {target.collection: target for target in targets}
        self.find = lru_cache(maxsize=10_000)(self._find)
        """Return the target of ``database.collection``, or None where the mapping does not name it."""

    def topics(self) -> dict[str, Takes]:
        """Return what each topic takes."""
        topics: dict[str, Takes] = {}
        for one in self.all:
            topics[one.stream_topic] = Takes(one.stream_partitions, one.stream_room)
            topics[one.copy_topic] = Takes(one.copy_partitions, one.copy_room)
        return topics

    def _find(self, namespace: str) -> Target | None:
        source = self.sources.find(namespace)
        return source and self._by_collection[source.logical]


async def targets_of(
    settings: Settings, kafka: Access, mapping: Mapping, checkpoints: Checkpoints
) -> Targets:
    """Return the targets of all mapped collections; topics that are missing are created.

    What they held is gone, perhaps before it was applied: then their collections are copied again.
    """
    names = TopicNames(settings.topic_prefix)
    collections = list(mapping.namespaces())
    declared = declare(
        names, collections, partitions=settings.topic_partitions, replication=settings.topic_replication
    )
    of = {topic: str(one) for one in collections for topic in (names.stream(one), names.copy(one))}
    missing = await missing_topics(kafka, declared)
    # Told before they are made: who dies in between tells it again.
    for namespace in await checkpoints.forget_topics({topic: of[topic] for topic in missing}):
        _log.error("a topic is gone; its collection is copied again", collection=namespace)
    partitions = await ensure_topics(kafka, declared)
    rooms = await largest_records(kafka, declared)
    rooms = {topic: min(room, settings.kafka_largest_record) for topic, room in rooms.items()}

    def target(collection: Collection) -> Target:
        stream, copy = names.stream(collection), names.copy(collection)
        return Target(
            collection,
            str(collection),
            stream,
            copy,
            partitions[stream],
            partitions[copy],
            rooms[stream],
            rooms[copy],
        )

    return Targets([target(collection) for collection in collections], mapping.sources())


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One unbroken life of the change stream, and the clusterTime S where it began."""

    id: UUID
    started: Timestamp
    origin: Origin

    @classmethod
    def of(cls, id_: UUID, started_time: int) -> Incarnation:
        """Return the incarnation that a checkpoint holds."""
        return cls(id_, Timestamp(started_time >> 32, started_time & 0xFFFFFFFF), Origin(id_))


@dataclass(slots=True)
class Outgoing:
    """Records by topic and partition, in order within each."""

    records: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    bytes: int = 0

    def add(self, topic: str, partitions: int, key: bytes, value: bytes) -> None:
        """Add a document's record to its partition."""
        place = (topic, partition_of(key, partitions))
        self.bytes += len(value)
        if (records := self.records.get(place)) is not None:
            records.append((key, value))
        else:
            self.records[place] = [(key, value)]

    def add_everywhere(self, targets: Sequence[Target], key: bytes, value: bytes) -> None:
        """Add a control record to every partition of every stream topic."""
        for target in targets:
            for partition in range(target.stream_partitions):
                self.records.setdefault((target.stream_topic, partition), []).append((key, value))
