"""Statements on dead letters as apply keeps, retries and closes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from topics import Version
from worker.postgres.connect import Connection


class DeadLetter(NamedTuple):
    """An event that could not be applied, whole."""

    state: str
    kind: str
    reason: str
    namespace: str
    document_id: bytes | None
    row_id: UUID | None
    tenant_id: UUID | None
    version_time: int | None
    version_order: int | None
    topic: str
    partition: int
    offset: int
    event: bytes


_SAVE = """
INSERT INTO crossfade.dead_letter (state, kind, reason, namespace, document_id, row_id, tenant_id,
    version_time, version_order, topic, partition, "offset", event, batch_id, next_attempt_at, parked_at)
VALUES ($1::crossfade.dead_letter_state, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
    CASE WHEN $1::crossfade.dead_letter_state = 'parked' THEN now() END,
    CASE WHEN $1::crossfade.dead_letter_state = 'parked' THEN now() END)
ON CONFLICT (topic, partition, "offset") DO NOTHING
"""


async def save(connection: Connection, batch_id: int, letters: Sequence[DeadLetter]) -> None:
    """Keep events that could not be applied. One that is read again is there already, and keeps its state:
    what was healed or discarded does not come back.
    """
    await connection.executemany(_SAVE, [(*letter, batch_id) for letter in letters])


class Parked(NamedTuple):
    """A parked event, taken for another try. ``overdue``: if it does not fit now, it will never."""

    dead_letter_id: int
    topic: str
    partition: int
    offset: int
    event: bytes
    attempts: int
    overdue: bool
    kind: str = ""


# With an event whose time has come, what else is parked of its tenant comes along: events that fit only
# together, parked at different times, would otherwise each be tried when the others are not. Overdue is told
# by the stream's clock: what an event waits for may lie in Kafka, unread, or in a copy that is under way. The
# clock of a topic that is no longer read, of a collection that left the mapping, stands still. No event waits
# for longer than half a minute: a later time was set by a clock that has been set back since.
_TAKE_PARKED = """
WITH due AS MATERIALIZED (
    SELECT dead_letter_id, tenant_id FROM crossfade.dead_letter
    WHERE state = 'parked' AND (next_attempt_at <= now() OR next_attempt_at > now() + interval '1 minute')
    ORDER BY next_attempt_at, dead_letter_id LIMIT $1
), wanted AS (
    SELECT dead_letter_id FROM due
    UNION
    (SELECT d.dead_letter_id FROM crossfade.dead_letter d
     WHERE d.state = 'parked' AND d.tenant_id IN (SELECT tenant_id FROM due) LIMIT $1)
), sized AS (
    SELECT dead_letter_id, sum(octet_length(event)) OVER (ORDER BY dead_letter_id)
        - octet_length(event) AS before
    FROM crossfade.dead_letter WHERE dead_letter_id IN (SELECT dead_letter_id FROM wanted)
)
SELECT dead_letter_id, topic, partition, "offset", event, attempts,
    least(now(), (SELECT min(heartbeat_at) FROM crossfade.partition_progress WHERE topic = ANY($4::text[])))
        - greatest(parked_at, (SELECT max(copy_finished_at) FROM crossfade.collection))
        > make_interval(secs => $3)
        AND NOT EXISTS (SELECT FROM crossfade.collection WHERE copy_state IN ('copying', 'removing')), kind
FROM crossfade.dead_letter
WHERE state = 'parked' AND dead_letter_id IN (SELECT dead_letter_id FROM sized WHERE before < $2)
ORDER BY dead_letter_id FOR UPDATE SKIP LOCKED
"""

# An event that still does not fit waits twice as long each time, up to half a minute.
_SETTLE_PARKED = """
UPDATE crossfade.dead_letter d
SET state = r.state, kind = coalesce(r.kind, d.kind), reason = coalesce(r.reason, d.reason),
    row_id = coalesce(r.row_id, d.row_id),
    tenant_id = CASE WHEN r.kind IS NULL THEN d.tenant_id ELSE r.tenant_id END,
    attempts = d.attempts + 1,
    next_attempt_at = CASE WHEN r.state = 'parked'
        THEN now() + least(0.2 * 2 ^ least(d.attempts, 10), 30) * interval '1 second' END
FROM jsonb_to_recordset($1::jsonb) AS r(id bigint, state crossfade.dead_letter_state, kind text, reason text,
    row_id uuid, tenant_id uuid)
WHERE d.dead_letter_id = r.id
"""


async def take_parked(
    connection: Connection, *, most: int, size: int, overdue_after: float, topics: Sequence[str]
) -> list[Parked]:
    """Return parked events whose time has come, and their tenants' others, locked; another worker skips them.

    At most ``most`` of either, and about ``size`` bytes, but one at least. ``overdue_after``: seconds of
    waiting after which an event has had its time, by the heartbeats in ``topics``.
    """
    rows = await connection.fetch(_TAKE_PARKED, most, size, overdue_after, topics)
    return [Parked(*row) for row in rows]


async def settle_parked(connection: Connection, verdicts: Sequence[dict[str, Any]]) -> None:
    """Store what became of parked events: rows of ``id``, ``state``, and what is known of it now."""
    await connection.execute(_SETTLE_PARKED, orjson.dumps(verdicts))


class Standing(NamedTuple):
    """A dead letter that stands, for a document that something newer may be known of."""

    dead_letter_id: int
    namespace: str
    row_id: UUID
    version: Version
    document_id: bytes
    ledger_id: bytes | None  # of `overtaken` alone: the document id as the ledger keeps it


# What a raw client wrote is never made good by something newer, which the way back itself sends: a person
# settles it. Letters that another transaction holds are skipped, or two workers could wait for each other:
# that one is retrying them, and then finds what we wrote, or a person is settling them.
_STANDING = """
SELECT dead_letter_id, namespace, row_id, version_time, version_order, document_id, NULL
FROM crossfade.dead_letter
WHERE state IN ('parked', 'dead') AND kind <> 'rogue' AND row_id = ANY($1::uuid[]) FOR UPDATE SKIP LOCKED
"""

_OVERTAKEN = """
SELECT d.dead_letter_id, d.namespace, d.row_id, d.version_time, d.version_order, d.document_id, l.document_id
FROM crossfade.dead_letter d JOIN crossfade.collection c USING (namespace)
JOIN crossfade.document l ON l.collection_id = c.collection_id AND l.row_id = d.row_id
WHERE d.state IN ('parked', 'dead') AND d.kind NOT IN ('collision', 'rogue') AND l.state <> 'refetch'
    AND d.first_seen_at > now() - interval '10 minutes'
    AND (l.version_time, l.version_order) >= (d.version_time, d.version_order)
FOR UPDATE OF d SKIP LOCKED
"""


async def standing(connection: Connection, row_ids: Sequence[UUID]) -> list[Standing]:
    """Return the letters that stand of these documents, locked."""
    return [_standing(row) for row in await connection.fetch(_STANDING, row_ids)]


async def overtaken(connection: Connection) -> list[Standing]:
    """Return the letters of the last minutes that the ledger has a newer event for, locked."""
    return [_standing(row) for row in await connection.fetch(_OVERTAKEN)]


def _standing(row: Any) -> Standing:
    return Standing(row[0], row[1], row[2], Version(row[3], row[4]), row[5], row[6])


async def heal(connection: Connection, letters: Sequence[int]) -> None:
    """Close letters that something newer has made good."""
    await connection.execute(
        "UPDATE crossfade.dead_letter SET state = 'healed', next_attempt_at = NULL "
        "WHERE dead_letter_id = ANY($1::bigint[])",
        letters,
    )


_COUNT = """
SELECT state::text, count(*) FROM crossfade.dead_letter WHERE state IN ('parked', 'dead') GROUP BY state
"""


async def count_standing(connection: Connection) -> dict[str, int]:
    """Return how many dead letters stand, by state: ``parked`` and ``dead``."""
    return {"parked": 0, "dead": 0, **{row[0]: row[1] for row in await connection.fetch(_COUNT)}}
