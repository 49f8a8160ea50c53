"""Which generation was clean: at its end nothing was wrong, for all tenants or for one.

A generation's end tells what was wrong then (`reconciliation.finish`), and what turns out to have been wrong
since is added (`spoil`). What was only settling at its end has yet to be seen to fit: until then the
generation does not count. It says nothing without a full one that ended before it, about the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from worker.postgres import mismatches
from worker.postgres.connect import Connection
from worker.postgres.mismatches import ANY, CONCERNS, WHOSE
from worker.postgres.reconciliation import FORWARD, MOST_TOLD, STANDS

# {tenant}: an expression, NULL for all. A rollback's floor: what was seen before the tenant came back to
# MongoDB was of other rows.
_CLEAN = f"""
SELECT g.generation, g.finished_at FROM crossfade.generation g
WHERE {STANDS.format("$1")} AND (tenant_id IS NULL OR tenant_id = {{tenant}})
    AND CASE WHEN {{tenant}} IS NULL THEN unclean = '{{{{}}}}'
        ELSE NOT unclean && ARRAY[{{tenant}}, {ANY}] END
    AND ended_moment < coalesce((SELECT min(seen_moment) FROM crossfade.mismatch
        WHERE {CONCERNS.format("{tenant}")}), 9223372036854775807)
    AND EXISTS (SELECT FROM crossfade.generation f
        WHERE f.kind = 'full' AND f.ended_moment <= g.ended_moment
        AND (f.tenant_id IS NULL OR f.tenant_id = {{tenant}}) AND NOT f.given_up
        AND (f.incarnation, f.mapping_changes, f.copies) IS NOT DISTINCT FROM
            (g.incarnation, g.mapping_changes, g.copies)
        AND coalesce(f.began_time, 0) >= coalesce((SELECT max(floor) FROM crossfade.tenant t
            WHERE {FORWARD} AND ({{tenant}} IS NULL OR t.tenant_id = {{tenant}})), 0))
ORDER BY ended_moment DESC LIMIT 1
"""  # noqa: S608 - names of our own columns
_CLEAN_FOR = _CLEAN.format(tenant="$2::uuid")
_BY_TENANT = f"""
SELECT o.tenant_id, c.generation, c.finished_at
FROM crossfade.tenant o LEFT JOIN LATERAL ({_CLEAN.format(tenant="o.tenant_id")}) c ON true
WHERE {FORWARD} AND ($2::uuid IS NULL OR o.tenant_id = $2)
ORDER BY c.finished_at NULLS FIRST, o.tenant_id LIMIT $3
"""  # noqa: S608
_SPOIL = f"""
WITH wrong AS (
    SELECT {WHOSE}, seen_moment FROM crossfade.mismatch
    JOIN unnest($1::text[], $2::uuid[]) AS k(namespace, row_id) USING (namespace, row_id)
)
UPDATE crossfade.generation g SET unclean = (
    SELECT CASE WHEN count(*) > {MOST_TOLD} THEN ARRAY[{ANY}] ELSE array_agg(tenant) END FROM (
        SELECT unnest(g.unclean) AS tenant
        UNION SELECT tenant FROM wrong WHERE seen_moment < g.ended_moment) AS u)
WHERE ended_moment > (SELECT min(seen_moment) FROM wrong)
"""  # noqa: S608


_UNDER_WAY = f"""
SELECT generation, tenant_id, started_at, documents, rows, seconds, (
    SELECT max(last_read_at) FROM crossfade.generation_sum s WHERE s.generation = g.generation)
FROM crossfade.generation g
WHERE kind = 'full' AND finished_at IS NULL AND {STANDS.format("$1")} ORDER BY generation DESC LIMIT 1
"""  # noqa: S608
_LAST_FULL = f"""
SELECT generation, started_at, finished_at, documents, rows, seconds, settling, mismatches, coalesce(held, 0),
    {STANDS.format("$1")}, given_up, incarnation IS NOT DISTINCT FROM
        (SELECT incarnation FROM crossfade.checkpoint WHERE publisher = $1),
    mapping_changes = (SELECT changes FROM crossfade.mapping)
FROM crossfade.generation WHERE kind = 'full' AND tenant_id IS NULL AND finished_at IS NOT NULL
ORDER BY generation DESC LIMIT 1
"""  # noqa: S608


class UnderWay(NamedTuple):
    """A full generation that has not ended. ``last_read_at``: what was read of a document."""

    generation: int
    tenant_id: UUID | None
    started_at: datetime
    documents: int
    rows: int
    seconds: float
    last_read_at: datetime | None


class LastFull(NamedTuple):
    """The last full generation of all tenants that has ended. ``stale``: why it proves nothing any more."""

    generation: int
    started_at: datetime
    ended_at: datetime
    documents: int
    rows: int
    seconds: float
    settling: int
    mismatches: int
    held: int
    stale: str | None


class Proof(NamedTuple):
    """What the reconciler has proven so far. ``open``: state, kind, number, and since when, of mismatches."""

    under_way: UnderWay | None
    last_full: LastFull | None
    clean: Clean | None
    open: Sequence[tuple[str, str, int, datetime]]


class Clean(NamedTuple):
    """A generation at whose end nothing was wrong."""

    generation: int
    ended_at: datetime


class CleanFor(NamedTuple):
    """A tenant whose rows follow MongoDB, and the last generation that was clean for it."""

    tenant_id: UUID
    clean: Clean | None


NOTHING = Proof(None, None, None, ())


async def clean(connection: Connection, publisher: str, tenant: UUID | None = None) -> Clean | None:
    """Return the last generation that was clean for a tenant, or for all."""
    row = await connection.fetchrow(_CLEAN_FOR, publisher, tenant)
    return None if row is None else Clean(row[0], row[1])


async def clean_by_tenant(
    connection: Connection, publisher: str, tenant: UUID | None, limit: int
) -> list[CleanFor]:
    """Return tenants, or one, whose rows follow MongoDB: first those without a clean generation."""
    rows = await connection.fetch(_BY_TENANT, publisher, tenant, limit)
    return [CleanFor(UUID(int=row[0].int), None if row[1] is None else Clean(row[1], row[2])) for row in rows]


async def read(connection: Connection, publisher: str) -> Proof:
    """Return what is proven, to be told; in one snapshot where the caller has one."""
    under_way = await connection.fetchrow(_UNDER_WAY, publisher)
    last = await connection.fetchrow(_LAST_FULL, publisher)
    return Proof(
        under_way and UnderWay(*under_way),
        last and LastFull(*last[:9], stale=_stale(*last[9:])),
        await clean(connection, publisher),
        await mismatches.counts(connection),
    )


def _stale(stands: bool, given_up: bool, incarnation: bool, mapping: bool) -> str | None:
    if stands:
        return None
    if given_up:
        return "changes that followed it were not seen"
    if not incarnation:
        return "the change stream began anew"
    return "collections were copied again" if mapping else "the mapping was changed"


async def spoil(connection: Connection, keys: Sequence[tuple[str, UUID]]) -> None:
    """Let generations be unclean that ended when these mismatches, now known to be real, had been seen."""
    if keys:
        await connection.execute(_SPOIL, [key[0] for key in keys], [key[1] for key in keys])
