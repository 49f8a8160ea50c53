"""Statements on the migration log as people look at it, roll batches back, and fetch documents again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from worker.errors import Transient, UsageError
from worker.postgres.checkpoints import document_id
from worker.postgres.connect import Connection, connect
from worker.postgres.faults import describe
from worker.postgres.ledger import Key
from worker.postgres.mapping_versions import told_clearly
from worker.postgres.migration_log import OUTCOMES

_WITHIN = 660.0  # seconds; the ledger is read as a whole, and a rollback's own limit is 600


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Connection]:
    """Yield a connection for people's work on batches, with what PostgreSQL may say in one line."""
    connection = await connect(dsn, "batches", statement_timeout=_WITHIN)
    try:
        with told_clearly():
            try:
                yield connection
            except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError):
                raise Transient(
                    "apply or another transaction holds one of these documents; nothing was changed",
                    remedy="try again",
                ) from None
            except asyncpg.ForeignKeyViolationError as error:
                raise UsageError(
                    f"rows of other documents refer to these ({describe(error)}); nothing was changed",
                    remedy="let the sync role set session_replication_role (`crossfade check` says how)",
                ) from None
    finally:
        connection.terminate()


class Batch(NamedTuple):
    """A row of the migration log. ``partitions``: topic, partition, first and last offset of each."""

    batch_id: int
    source: str
    worker: str
    started_at: datetime
    applied_at: datetime
    records: int
    outcomes: dict[str, int]
    partitions: list[tuple[str, int, int, int]]
    rolled_back_at: datetime | None


class Written(NamedTuple):
    """A document that a batch was the last to write. ``state``: live, deleted, or refetch (held)."""

    namespace: str
    row_id: UUID
    tenant_id: UUID | None
    state: str
    id: Any


_BATCHES = f"""
SELECT b.batch_id, source, worker, started_at, applied_at, records, partitions, rolled_back_at,
    {", ".join(OUTCOMES)}
FROM crossfade.batch b LEFT JOIN crossfade.batch_rollback USING (batch_id)
"""  # noqa: S608 - names of our own columns
_LIST = f"{_BATCHES} ORDER BY b.batch_id DESC LIMIT $1"
_ONE = f"{_BATCHES} WHERE b.batch_id = $1"


async def newest(connection: Connection, limit: int) -> list[Batch]:
    """Return batches, the newest first."""
    return [_batch(row) for row in await connection.fetch(_LIST, limit)]


async def one(connection: Connection, batch_id: int) -> Batch | None:
    """Return a batch, if there is one of this number."""
    row = await connection.fetchrow(_ONE, batch_id)
    return row and _batch(row)


def _batch(row: Any) -> Batch:
    partitions = [tuple(one) for one in orjson.loads(row["partitions"])]
    outcomes = {name: row[name] for name in OUTCOMES}
    started, applied, records = row["started_at"], row["applied_at"], row["records"]
    return Batch(
        row["batch_id"],
        row["source"],
        row["worker"],
        started,
        applied,
        records,
        outcomes,
        partitions,
        row["rolled_back_at"],
    )


# The ledger has no index on batch_id, which would cost every batch of apply (docs/decisions/0010): all of it
# is read, as it lies on the disk.
_LAST_WROTE = """
SELECT batch_id, state::text, count(*) FROM crossfade.document WHERE batch_id = ANY($1::bigint[])
GROUP BY 1, 2
"""


async def last_wrote(connection: Connection, batch_ids: Sequence[int]) -> dict[int, dict[str, int]]:
    """Return how many documents each batch was the last to write, by state. Reads the whole ledger."""
    found: dict[int, dict[str, int]] = {batch_id: {} for batch_id in batch_ids}
    for batch_id, state, count in await connection.fetch(_LAST_WROTE, batch_ids):
        found[batch_id][state] = count
    return found


_WRITTEN = """
SELECT namespace, row_id, tenant_id, state::text, document_id
FROM (
    SELECT * FROM crossfade.document WHERE batch_id = $1
    ORDER BY collection_id, row_id LIMIT $2 OFFSET $3
) d JOIN crossfade.collection USING (collection_id) ORDER BY collection_id, row_id
"""


async def written(connection: Connection, batch_id: int, limit: int, skip: int) -> list[Written]:
    """Return documents that a batch was the last to write, in the ledger's order. Reads the whole ledger."""
    rows = await connection.fetch(_WRITTEN, batch_id, limit, skip)
    return [Written(row[0], row[1], row[2], row[3], document_id(row[1], row[4])) for row in rows]


_AWAY = """
SELECT DISTINCT tenant_id, phase::text FROM crossfade.document JOIN crossfade.tenant USING (tenant_id)
WHERE batch_id = $1 AND phase <> 'mongo' ORDER BY 1
"""


async def away(connection: Connection, batch_id: int) -> dict[UUID, str]:
    """Return the phases of a batch's tenants that are not in `mongo`. Reads the whole ledger."""
    return {row[0]: row[1] for row in await connection.fetch(_AWAY, batch_id)}


_MARK = "INSERT INTO crossfade.batch_rollback (batch_id) VALUES ($1) ON CONFLICT DO NOTHING"


async def mark(connection: Connection, batch_id: int) -> bool:
    """Mark a batch as rolled back; False when it was. Waits for another transaction that does so now."""
    return await connection.execute(_MARK, batch_id) == "INSERT 0 1"


_KEYS = """
SELECT collection_id, row_id FROM crossfade.document WHERE batch_id = $1 AND state <> 'refetch' ORDER BY 1, 2
"""
# Locked in the ledger's order, as apply does. A document that another batch wrote since `_KEYS` is its own.
_LOCK = """
SELECT d.collection_id, d.row_id, d.tenant_id, d.state = 'deleted'
FROM unnest($1::smallint[], $2::uuid[]) AS k(collection_id, row_id)
JOIN crossfade.document d USING (collection_id, row_id)
WHERE d.batch_id = $3 AND d.state <> 'refetch' ORDER BY 1, 2 FOR UPDATE OF d
"""
_HOLD = """
UPDATE crossfade.document d SET state = 'refetch'
FROM unnest($1::smallint[], $2::uuid[]) AS k(collection_id, row_id)
WHERE d.collection_id = k.collection_id AND d.row_id = k.row_id
"""
_AT_ONCE = 5000


class Locked(NamedTuple):
    """A document of the ledger, locked until the transaction ends."""

    key: Key
    tenant_id: UUID | None
    deleted: bool


async def lock(connection: Connection, batch_id: int) -> list[Locked]:
    """Return the documents that a batch was the last to write, locked. Reads the whole ledger."""
    keys = [(row[0], row[1]) for row in await connection.fetch(_KEYS, batch_id)]
    locked: list[Locked] = []
    for start in range(0, len(keys), _AT_ONCE):
        numbers, row_ids = zip(*keys[start : start + _AT_ONCE], strict=True)
        rows = await connection.fetch(_LOCK, numbers, row_ids, batch_id)
        locked += [Locked((row[0], row[1]), row[2], row[3]) for row in rows]
    return locked


async def hold(connection: Connection, keys: Sequence[Key]) -> None:
    """Let the ledger wait for these documents: version, tenant and batch stay as they are (A9)."""
    for start in range(0, len(keys), _AT_ONCE):
        await connection.execute(_HOLD, *zip(*keys[start : start + _AT_ONCE], strict=True))


class Held(NamedTuple):
    """A document that waits to be fetched again."""

    key: Key
    namespace: str
    tenant_id: UUID | None
    id: Any


_HELD = """
WITH held AS (
    SELECT collection_id, row_id, tenant_id, document_id,
        sum(coalesce(octet_length(document_id), 0)) OVER (ORDER BY collection_id, row_id)
            - coalesce(octet_length(document_id), 0) AS before
    FROM (
        SELECT * FROM crossfade.document
        WHERE state = 'refetch' AND ($1::bigint IS NULL OR batch_id = $1)
            AND (collection_id, row_id) > ($2::smallint, $3::uuid)
        ORDER BY collection_id, row_id LIMIT $4
    ) d
)
SELECT collection_id, row_id, namespace, tenant_id, document_id
FROM held JOIN crossfade.collection USING (collection_id)
WHERE before < $5 ORDER BY collection_id, row_id
"""
_COUNT_HELD = """
SELECT count(*) FROM crossfade.document WHERE state = 'refetch' AND ($1::bigint IS NULL OR batch_id = $1)
"""
FIRST: Key = (-(2**15), UUID(int=0))
"""Before every document of the ledger."""


async def held(
    connection: Connection, batch_id: int | None, after: Key, most: int = 1000, size: int = 8 * 1024 * 1024
) -> list[Held]:
    """Return held documents after a key, of one batch or of all, in the ledger's order.

    At most ``most``, and about ``size`` bytes of ids, but one at least.
    """
    rows = await connection.fetch(_HELD, batch_id, *after, most, size)
    return [Held((row[0], row[1]), row[2], row[3], document_id(row[1], row[4])) for row in rows]


async def count_held(connection: Connection, batch_id: int | None = None) -> int:
    """Return how many documents wait to be fetched again, of one batch or of all."""
    return await connection.fetchval(_COUNT_HELD, batch_id) or 0
