"""Barriers that arrived, and what a tenant's move has still to look at."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from topics import Version
from worker.postgres.connect import Connection


class Arrived(NamedTuple):
    """A barrier: partitions that it has come through, of how many, and its stream's incarnations."""

    partitions: int
    of: int
    incarnations: frozenset[UUID]

    @property
    def everywhere(self) -> bool:
        """Whether every partition has brought it."""
        return self.of > 0 and self.partitions >= self.of


class Touched(NamedTuple):
    """A document to be looked at: its logical collection, row id, tenant, and the ledger's version."""

    namespace: str
    row_id: UUID
    tenant_id: UUID | None
    version: Version


_ARRIVED = """
SELECT count(*), coalesce(max(partitions), 0), array_agg(DISTINCT incarnation)
FROM crossfade.barrier WHERE barrier_id = $1
"""
# Beside what changed, what is known to be wrong, or may be, though nothing changed: rows that somebody else
# wrote, those that were taken out with a batch, and those of which an event could not be applied: that may
# have moved them to another tenant.
_CHANGED = """
SELECT c.namespace, d.row_id, d.tenant_id, d.version_time, d.version_order
FROM crossfade.document d JOIN crossfade.collection c USING (collection_id)
WHERE d.tenant_id = ANY($1::uuid[]) AND (d.version_time > $2 OR d.state = 'refetch')
UNION
SELECT m.namespace, m.row_id, coalesce(d.tenant_id, m.tenant_id, m.row_tenant_id),
    coalesce(d.version_time, 0), coalesce(d.version_order, 0)
FROM crossfade.mismatch m LEFT JOIN crossfade.collection c USING (namespace)
LEFT JOIN crossfade.document d ON d.collection_id = c.collection_id AND d.row_id = m.row_id
WHERE m.tenant_id = ANY($1::uuid[]) OR m.row_tenant_id = ANY($1::uuid[])
    OR num_nonnulls(m.tenant_id, m.row_tenant_id) = 0
UNION
SELECT c.namespace, d.row_id, d.tenant_id, d.version_time, d.version_order
FROM crossfade.dead_letter l JOIN crossfade.document d USING (row_id)
JOIN crossfade.collection c USING (collection_id)
WHERE l.state IN ('parked', 'dead') AND d.tenant_id = ANY($1::uuid[])
LIMIT $3
"""
_DRAINING = """
SELECT DISTINCT c.namespace, d.row_id, d.tenant_id, d.version_time, d.version_order
FROM unnest($1::uuid[], $2::bigint[]) AS k(tenant_id, epoch)
JOIN crossfade.draining_document USING (tenant_id, epoch)
JOIN crossfade.document d USING (collection_id, row_id)
JOIN crossfade.collection c ON c.collection_id = d.collection_id
LIMIT $3
"""
_COPIES = "SELECT namespace, copy_state::text, copies FROM crossfade.collection WHERE namespace = ANY($1)"
# A document that moves to another tenant and does not fit there: the letter is that tenant's, the row is not.
# Older letters are found by _CHANGED, for which a pause has no time.
_LETTERS = """
SELECT count(*) FROM crossfade.dead_letter l
WHERE l.state IN ('parked', 'dead') AND (
    l.tenant_id = ANY($1::uuid[]) OR l.tenant_id IS NULL
    OR l.first_seen_at > (
        SELECT min(changed_at) - interval '5 minutes' FROM crossfade.tenant WHERE tenant_id = ANY($1::uuid[])
    ) AND EXISTS (
        SELECT FROM crossfade.collection c JOIN crossfade.document d USING (collection_id)
        WHERE d.row_id = l.row_id AND d.tenant_id = ANY($1::uuid[])))
"""
_PARKED = """
SELECT count(*) FROM crossfade.dead_letter
WHERE state = 'parked' AND kind = 'rolling_back' AND tenant_id = ANY($1::uuid[])
"""
_EXPIRED = """
SELECT k.namespace, k.row_id FROM unnest($1::text[], $2::text[], $3::uuid[]) AS k(namespace, logical, row_id)
JOIN crossfade.collection c ON c.namespace = k.logical
WHERE EXISTS (
    SELECT FROM crossfade.dead_letter d
    WHERE d.tenant_id = ANY($4::uuid[]) AND d.row_id = k.row_id AND d.namespace = k.namespace
        AND d.kind = 'expired' AND d.state = 'discarded' AND NOT EXISTS (
            SELECT FROM crossfade.document l WHERE l.collection_id = c.collection_id AND l.row_id = k.row_id
                AND (l.version_time, l.version_order) >= (d.version_time, d.version_order)))
"""
_FORGET = """
WITH barriers AS (
    DELETE FROM crossfade.barrier
    WHERE barrier_id = ANY($1::uuid[]) OR arrived_at < now() - interval '1 hour'
), back AS (
    DELETE FROM crossfade.reverse_barrier WHERE asked_at < now() - interval '1 hour'
)
DELETE FROM crossfade.draining_document d USING unnest($2::uuid[], $3::bigint[]) AS k(tenant_id, epoch)
WHERE d.tenant_id = k.tenant_id AND d.epoch <= k.epoch
"""


async def arrived(connection: Connection, barrier: UUID) -> Arrived:
    """Return how far a barrier has come: all before it is applied, where it has arrived."""
    row = await connection.fetchrow(_ARRIVED, barrier)
    assert row is not None
    return Arrived(row[0], row[1], frozenset(UUID(int=one.int) for one in row[2] or ()))


async def changed(connection: Connection, tenants: Collection[UUID], since: int, most: int) -> list[Touched]:
    """Return documents of these tenants that the ledger knows newer than a clusterTime; reads all of it.

    And those that are held, mismatches that are theirs or nobody knows whose, and theirs of which a dead
    letter stands, whosoever that is.
    """
    rows = await connection.fetch(_CHANGED, list(tenants), since, most)
    return [_touched(row) for row in rows]


async def draining(
    connection: Connection, tenants: Sequence[UUID], epochs: Sequence[int], most: int
) -> list[Touched]:
    """Return documents that apply changed while these tenants were draining, in these epochs."""
    rows = await connection.fetch(_DRAINING, list(tenants), list(epochs), most)
    return [_touched(row) for row in rows]


def _touched(row: Any) -> Touched:
    tenant = None if row[2] is None else UUID(int=row[2].int)
    return Touched(row[0], UUID(int=row[1].int), tenant, Version(row[3], row[4]))


_ONE_OF = """
SELECT DISTINCT ON (c.namespace) c.namespace, d.row_id, d.tenant_id, d.version_time, d.version_order
FROM crossfade.document d JOIN crossfade.collection c USING (collection_id)
WHERE d.tenant_id = $1 AND d.state = 'live'
"""


async def examples(connection: Connection, tenant: UUID) -> list[Touched]:
    """Return a document of the tenant from each collection that has one; reads the whole ledger."""
    return [_touched(row) for row in await connection.fetch(_ONE_OF, tenant)]


class Copy(NamedTuple):
    """A collection's copy; ``number``: which it is of this collection's, 0 before the first."""

    namespace: str
    state: str
    number: int


async def copies(connection: Connection, namespaces: Collection[str]) -> list[Copy]:
    """Return the copies of these logical collections that publish has begun to know."""
    return [Copy(*row) for row in await connection.fetch(_COPIES, list(namespaces))]


async def letters(connection: Connection, tenants: Collection[UUID]) -> int:
    """Return how many dead letters stand of these tenants, or of nobody known, and, since shortly before
    their phases changed, of documents that PostgreSQL has as theirs.
    """
    return await connection.fetchval(_LETTERS, list(tenants)) or 0


async def parked_by_rollback(connection: Connection, tenants: Collection[UUID]) -> int:
    """Return how many events of these tenants wait because they are `rolling_back` (A7)."""
    return await connection.fetchval(_PARKED, list(tenants)) or 0


async def expired(
    connection: Connection, tenants: Collection[UUID], documents: Collection[tuple[str, str, UUID]]
) -> set[tuple[str, UUID]]:
    """Return which documents of these tenants a TTL index deleted, and nothing wrote since.

    Documents: real and logical namespace, row id. Returned without the logical one.
    """
    if not documents:
        return set()
    arrays = map(list, zip(*documents, strict=True))
    rows = await connection.fetch(_EXPIRED, *arrays, list(tenants))
    return {(row[0], UUID(int=row[1].int)) for row in rows}


async def forget(
    connection: Connection, barriers: Collection[UUID], tenants: Sequence[UUID], epochs: Sequence[int]
) -> None:
    """Remove what a move that has ended noted, and what others left an hour ago: nobody waits for that."""
    await connection.execute(_FORGET, list(barriers), list(tenants), list(epochs))
