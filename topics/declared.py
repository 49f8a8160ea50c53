"""Declared topics: what each is for, who writes it, who reads it, and how it is set up in Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from topics.names import Collection, TopicNames

# A document may have 16 MiB, the envelope's other fields and its id are beside it.
LARGEST_RECORD = 20 * 1024 * 1024
_WEEK_MS = 7 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it is created, with its contract in words."""

    name: str
    partitions: int
    replication: int
    retention_ms: int
    max_message_bytes: int
    produced_by: str
    consumed_by: str
    holds: str

    def config(self) -> dict[str, str]:
        """Return the topic's settings by Kafka's names."""
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(self.retention_ms),
            "max.message.bytes": str(self.max_message_bytes),
            # The broker's clock, not ours: one that is an hour ahead would have every record refused, and one
            # that is days behind would have them deleted early.
            "message.timestamp.type": "LogAppendTime",
        }
        if self.replication > 2:  # with two, a broker that is down would stop the writes
            config["min.insync.replicas"] = "2"
        return config


def declare(
    names: TopicNames,
    collections: Iterable[Collection],
    *,
    partitions: int,
    replication: int,
    retention_ms: int = _WEEK_MS,
    max_message_bytes: int = LARGEST_RECORD,
) -> list[Topic]:
    """Return every topic that brings these collections to PostgreSQL, in a stable order."""
    topics: list[Topic] = []
    for collection in collections:
        for name, holds in (
            (names.stream(collection), f"live changes of {collection}, and control records"),
            (names.copy(collection), f"copy of {collection}"),
        ):
            topics.append(
                Topic(
                    name=name,
                    partitions=partitions,
                    replication=replication,
                    retention_ms=retention_ms,
                    max_message_bytes=max_message_bytes,
                    produced_by="publish",
                    consumed_by="apply",
                    holds=holds,
                )
            )
    return topics


def declare_reverse(
    names: TopicNames,
    collections: Iterable[Collection],
    *,
    partitions: int,
    replication: int,
    retention_ms: int = _WEEK_MS,
    max_message_bytes: int = LARGEST_RECORD,
) -> list[Topic]:
    """Return every topic of the way back of these collections, in a stable order."""
    return [
        Topic(
            name=names.reverse(collection),
            partitions=partitions,
            replication=replication,
            retention_ms=retention_ms,
            max_message_bytes=max_message_bytes,
            produced_by="reverse",
            consumed_by="reverse",
            holds=f"documents of {collection} as PostgreSQL has them, heartbeats and barriers of rollbacks",
        )
        for collection in collections
    ]


def declare_all(
    names: TopicNames, collections: Sequence[Collection], *, partitions: int, replication: int
) -> list[Topic]:
    """Return every topic of these collections, there and back."""
    return [
        *declare(names, collections, partitions=partitions, replication=replication),
        *declare_reverse(names, collections, partitions=partitions, replication=replication),
    ]
