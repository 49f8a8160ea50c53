"""Statements on the migration log: batches and partitions' progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import orjson

from worker.errors import Fatal
from worker.postgres.connect import Connection

OUTCOMES = ("applied", "superseded", "absent", "echo", "switched", "parked", "dead_lettered", "control")
Partition = tuple[str, int]


@dataclass(slots=True)
class PartitionTally:
    """What one batch read of one partition, and what became of it."""

    first_offset: int
    last_offset: int
    heartbeat_at: datetime | None = None
    outcomes: dict[str, int] = field(default_factory=dict)
    heartbeat_time: int | None = None  # its clusterTime


_COUNTED = ", ".join(OUTCOMES)
_COUNTED_TYPES = ", ".join(f"{name} bigint" for name in OUTCOMES)
_ADDED = ", ".join(f"{name} = p.{name} + excluded.{name}" for name in OUTCOMES)

_PROGRESS = f"""
INSERT INTO crossfade.partition_progress AS p
    (topic, partition, next_offset, records, {_COUNTED}, heartbeat_at, heartbeat_time, heartbeat_applied_at)
SELECT topic, partition, next_offset, records, {_COUNTED}, heartbeat_at, heartbeat_time,
    CASE WHEN heartbeat_at IS NOT NULL THEN clock_timestamp() END
FROM jsonb_to_recordset($1::jsonb) AS r(topic text, partition integer, first_offset bigint,
    next_offset bigint, records bigint, {_COUNTED_TYPES}, heartbeat_at timestamptz, heartbeat_time bigint)
WHERE first_offset <= coalesce((SELECT next_offset FROM crossfade.partition_progress b
    WHERE (b.topic, b.partition) = (r.topic, r.partition)), 0)
ON CONFLICT (topic, partition) DO UPDATE SET
    next_offset = greatest(p.next_offset, excluded.next_offset), records = p.records + excluded.records,
    {_ADDED}, heartbeat_at = greatest(p.heartbeat_at, excluded.heartbeat_at),
    heartbeat_time = greatest(p.heartbeat_time, excluded.heartbeat_time),
    heartbeat_applied_at = CASE WHEN excluded.heartbeat_at <= p.heartbeat_at THEN p.heartbeat_applied_at
        ELSE coalesce(excluded.heartbeat_applied_at, p.heartbeat_applied_at) END,
    changed_at = clock_timestamp()
"""  # noqa: S608 - names of our own columns

_BATCH = f"""
INSERT INTO crossfade.batch (batch_id, source, worker, started_at, records, partitions, {_COUNTED})
VALUES ($1, $2, $3, $4, $5, $6::jsonb, {", ".join(f"${n}" for n in range(7, 7 + len(OUTCOMES)))})
"""  # noqa: S608


async def save_progress(connection: Connection, partitions: Mapping[Partition, PartitionTally]) -> None:
    """Store how far each partition is read, in the transaction of its rows (docs/protocol.md A2).

    `Fatal` where a partition's records do not follow on what is stored. PostgreSQL may have become an older
    one without our connection's ending: a pooler keeps it while it turns to another server.
    """
    rows = [
        {
            "topic": topic,
            "partition": partition,
            "first_offset": tally.first_offset,
            "next_offset": tally.last_offset + 1,
            "records": sum(tally.outcomes.values()),
            "heartbeat_at": tally.heartbeat_at,
            "heartbeat_time": tally.heartbeat_time,
            **{name: tally.outcomes.get(name, 0) for name in OUTCOMES},
        }
        for (topic, partition), tally in sorted(partitions.items())
    ]
    status = await connection.execute(_PROGRESS, orjson.dumps(rows))
    if int(status.rpartition(" ")[2]) < len(rows):
        raise Fatal("PostgreSQL lacks what came before these records; starting again from its offsets")


async def save_batch(
    connection: Connection,
    batch_id: int,
    *,
    source: str,
    worker: str,
    started_at: datetime,
    partitions: Mapping[Partition, PartitionTally],
) -> None:
    """Write a batch's row; a check of the table fails the transaction when the counts do not add up."""
    totals = {name: sum(t.outcomes.get(name, 0) for t in partitions.values()) for name in OUTCOMES}
    offsets = [[*key, tally.first_offset, tally.last_offset] for key, tally in sorted(partitions.items())]
    await connection.execute(
        _BATCH,
        batch_id,
        source,
        worker,
        started_at,
        sum(totals.values()),
        orjson.dumps(offsets),
        *totals.values(),
    )


async def offsets(connection: Connection) -> dict[Partition, int]:
    """Return the next offset of each partition as PostgreSQL has it."""
    rows = await connection.fetch("SELECT topic, partition, next_offset FROM crossfade.partition_progress")
    return {(row[0], row[1]): row[2] for row in rows}


_HEARTBEATS = """
SELECT topic, partition, heartbeat_at FROM crossfade.partition_progress WHERE heartbeat_at IS NOT NULL
"""


async def heartbeats(connection: Connection) -> dict[Partition, datetime]:
    """Return the newest applied heartbeat of each partition that has had one."""
    rows = await connection.fetch(_HEARTBEATS)
    return {(row[0], row[1]): row[2] for row in rows}


async def invalidate_copies(connection: Connection, namespaces: Sequence[str]) -> None:
    """Say that collections' rows may lack documents, or be stale; publish copies them again."""
    await connection.execute(
        "UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = ANY($1::text[])", namespaces
    )


# The letters of the topic that is gone make room for those of the new one, which has the same offsets.
_BEGIN_AGAIN = """
WITH letters AS (
    UPDATE crossfade.dead_letter SET "offset" = -dead_letter_id
    WHERE topic = $1 AND partition = $2 AND "offset" >= 0
), progress AS (
    UPDATE crossfade.partition_progress SET next_offset = $3 WHERE topic = $1 AND partition = $2
)
UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = $4
"""


async def begin_partition_again(
    connection: Connection, place: Partition, offset: int, namespace: str
) -> None:
    """Say that a partition's offsets begin anew, and that its collection's rows may lack documents."""
    await connection.execute(_BEGIN_AGAIN, *place, offset, namespace)


# The letters make room, as above. What is counted of the partitions stays counted.
_FORGET = """
WITH gone AS (
    UPDATE crossfade.partition_progress p SET next_offset = 0, heartbeat_at = NULL, heartbeat_time = NULL
    FROM unnest($1::text[], $2::text[], $3::integer[]) AS g(namespace, topic, partition)
    WHERE p.topic = g.topic AND p.partition = g.partition AND p.next_offset > 0
    RETURNING g.namespace, p.topic, p.partition
), letters AS (
    UPDATE crossfade.dead_letter l SET "offset" = -dead_letter_id FROM gone g
    WHERE l.topic = g.topic AND l.partition = g.partition AND l."offset" >= 0
)
UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace IN (SELECT namespace FROM gone)
RETURNING namespace
"""


async def forget_partitions(connection: Connection, gone: Sequence[tuple[str, str, int]]) -> list[str]:
    """Say that partitions are no more what was read of them: namespace, topic and number of each.

    Return the collections that had records there: their rows may lack documents, so they are copied again. A
    partition that no heartbeat reaches any more would otherwise be the furthest behind for ever.
    """
    if not gone:
        return []
    rows = await connection.fetch(_FORGET, *zip(*gone, strict=True))
    return [row[0] for row in rows]


async def forget_topics(connection: Connection, topics: Mapping[str, str]) -> list[str]:
    """Say that topics, each with its collection, are about to be made; return collections of which one was.

    Whatever a topic held is gone with it: a collection whose copy has begun is copied again.
    """
    if not topics:
        return []
    async with connection.transaction():
        known = await connection.fetch(_PARTITIONS, list(topics))
        await forget_partitions(connection, [(topics[row[0]], row[0], row[1]) for row in known])
        rows = await connection.fetch(_HAD_TOPICS, list(topics.values()))
    return sorted(row[0] for row in rows)


_PARTITIONS = "SELECT topic, partition FROM crossfade.partition_progress WHERE topic = ANY($1::text[])"
_HAD_TOPICS = """
UPDATE crossfade.collection SET copy_state = 'invalid' WHERE namespace = ANY($1::text[]) AND copies > 0
RETURNING namespace
"""
_NONE = ", ".join("0" for _ in OUTCOMES)
_PASS_OVER = f"""
WITH begins AS (
    SELECT * FROM unnest($1::text[], $2::text[], $3::integer[], $4::bigint[])
        AS b(namespace, topic, partition, first_offset)
), overrun AS (
    INSERT INTO crossfade.partition_progress AS p (topic, partition, next_offset, records, {_COUNTED})
    SELECT topic, partition, first_offset, 0, {_NONE} FROM begins
    ON CONFLICT (topic, partition) DO UPDATE SET next_offset = excluded.next_offset
        WHERE p.next_offset < excluded.next_offset
    RETURNING topic, partition
), invalid AS (
    UPDATE crossfade.collection SET copy_state = 'invalid'
    WHERE namespace IN (SELECT namespace FROM begins JOIN overrun USING (topic, partition))
)
SELECT topic, partition FROM overrun
"""  # noqa: S608 - names of our own columns


async def pass_over(connection: Connection, begins: Sequence[tuple[str, str, int, int]]) -> list[Partition]:
    """Return the partitions that begin behind what was applied: namespace, topic, partition, first offset.

    They are read from there on, and their collections' rows may lack documents.
    """
    if not begins:
        return []
    rows = await connection.fetch(_PASS_OVER, *zip(*begins, strict=True))
    return [(row[0], row[1]) for row in rows]


_SETTLED = """
SELECT coalesce(min(heartbeat_at) > $1, false)
    AND NOT EXISTS (SELECT FROM crossfade.dead_letter WHERE state = 'parked')
FROM crossfade.partition_progress WHERE heartbeat_at IS NOT NULL
"""


async def settled_since(connection: Connection, moment: datetime) -> bool:
    """Whether every partition has shown a heartbeat newer than a moment, and nothing is parked."""
    return bool(await connection.fetchval(_SETTLED, moment))
