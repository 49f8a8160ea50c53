"""How the migration stands, read from the control schema in one snapshot."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from worker.errors import SchemaError, ServiceUnavailable
from worker.postgres import phases
from worker.postgres.audit import Incident, incidents
from worker.postgres.batches import count_held
from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, describe
from worker.postgres.migration_log import OUTCOMES


class CopyStanding(NamedTuple):
    """A collection's copy. ``copied``: documents that Kafka has; ``estimated``: held when the copy began.

    ``copies`` counts the copies that have begun, ``mapping_hash`` is that of the rows' mapping. ``seconds``
    were spent so far and ``rate`` is documents a second lately, both without pauses.
    """

    namespace: str
    state: str
    copied: int
    estimated: int
    started_at: datetime | None
    finished_at: datetime | None
    copies: int
    mapping_hash: str
    paused: bool = False
    seconds: float = 0.0
    rate: float | None = None


class PublisherStanding(NamedTuple):
    """A publisher's stream. ``token_time``: clusterTime of the saved resume token, as one integer.

    ``started_time``: where its incarnation began; ``incarnations`` counts those so far. ``copy``: what its
    copy goes by, and what holds it, as `worker.publish.throttle` told at ``copy_at``.
    """

    publisher: str
    incarnation: UUID
    token_time: int | None
    saved_at: datetime
    started_time: int
    incarnations: int
    copy: Mapping[str, Any] | None = None
    copy_at: datetime | None = None


class PartitionStanding(NamedTuple):
    """A topic partition as apply has read it; ``heartbeat_at`` is None where none has come through."""

    topic: str
    partition: int
    records: int
    heartbeat_at: datetime | None
    outcomes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """Everything at one moment, by PostgreSQL's clock."""

    at: datetime
    copies: Sequence[CopyStanding]
    publishers: Sequence[PublisherStanding]
    partitions: Sequence[PartitionStanding]
    last_batch_at: datetime | None
    dead_letters: Mapping[str, int]
    """Counts by state."""
    tenants: Mapping[str, int]
    """Counts by phase."""
    held: int = 0
    """Documents of batches that were rolled back, which wait to be fetched again."""
    tenant_unknown: int = 0
    """Dead letters that stand and whose tenant cannot be told: they hold back every tenant."""
    incidents: Sequence[Incident] = ()
    """What publish did by itself, the newest first."""

    def beating(self, read: Container[str] | None) -> list[PartitionStanding]:
        """Return partitions that a heartbeat has come through, of the topics that are ``read``; None: all.

        What is no longer mapped is no longer read: its last heartbeat is no lag.
        """
        return [one for one in self.partitions if one.heartbeat_at and (read is None or one.topic in read)]


_INCIDENTS = 10  # told at most
_NOW = "SELECT clock_timestamp()"
_COPIES = """
SELECT namespace, copy_state::text, copied, estimated, copy_started_at, copy_finished_at, copies,
    mapping_hash, copy_paused, copy_seconds, copy_rate
FROM crossfade.collection ORDER BY namespace
"""
_PUBLISHERS = """
SELECT publisher, incarnation, token_time, saved_at, started_time, incarnations, copy_standing,
    copy_standing_at
FROM crossfade.checkpoint ORDER BY publisher
"""
_PARTITIONS = f"""
SELECT topic, partition, records, heartbeat_at, {", ".join(OUTCOMES)} FROM crossfade.partition_progress
ORDER BY topic, partition
"""  # noqa: S608 - names of our own columns
_LAST_BATCH = "SELECT applied_at FROM crossfade.batch ORDER BY batch_id DESC LIMIT 1"
_DEAD_LETTERS = "SELECT state::text, count(*) FROM crossfade.dead_letter GROUP BY state"
_TENANT_UNKNOWN = """
SELECT count(*) FROM crossfade.dead_letter WHERE state IN ('parked', 'dead') AND tenant_id IS NULL
"""


async def read_standing(connection: Connection) -> Standing:
    """Return how things stand; `SchemaError` without our schema, `ServiceUnavailable` without an answer."""
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _read(connection)
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError):
        raise SchemaError(
            "the database has no control schema, or an older one", remedy="run `crossfade schema apply`"
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaError(
            "the role of CROSSFADE_POSTGRES_DSN may not read schema crossfade",
            remedy="connect as crossfade_sync or crossfade_reader",
        ) from None
    except FAULTS as error:
        raise ServiceUnavailable(
            f"PostgreSQL does not answer ({describe(error)})", remedy="check the server, then try again"
        ) from None


async def _read(connection: Connection) -> Standing:
    at: datetime = await connection.fetchval(_NOW)  # pyright: ignore[reportAssignmentType]
    copies = await connection.fetch(_COPIES)
    publishers = await connection.fetch(_PUBLISHERS)
    partitions = await connection.fetch(_PARTITIONS)
    return Standing(
        at=at,
        copies=[CopyStanding(*row) for row in copies],
        publishers=[
            PublisherStanding(row[0], row[1], row[2], row[3], row[4], row[5], _json(row[6]), row[7])
            for row in publishers
        ],
        partitions=[
            PartitionStanding(row[0], row[1], row[2], row[3], {name: row[name] for name in OUTCOMES})
            for row in partitions
        ],
        last_batch_at=await connection.fetchval(_LAST_BATCH),
        dead_letters={row[0]: row[1] for row in await connection.fetch(_DEAD_LETTERS)},
        tenants=await phases.count(connection),
        held=await count_held(connection),
        tenant_unknown=await connection.fetchval(_TENANT_UNKNOWN) or 0,
        incidents=await incidents(connection, _INCIDENTS),
    )


def _json(value: bytes | None) -> Any:
    return None if value is None else orjson.loads(value)
