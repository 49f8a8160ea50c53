"""What proves that tenants' rows are their documents: the reconciler's generations, counts and hashes."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from worker.postgres import proof
from worker.postgres.connect import Connection
from worker.postgres.reconciliation import STANDS

_FULL = f"""
SELECT generation, coalesce(began_time, 0), incarnation FROM crossfade.generation
WHERE kind = 'full' AND finished_at IS NOT NULL AND (tenant_id IS NULL OR tenant_id = $2)
    AND ended_moment <= (SELECT ended_moment FROM crossfade.generation WHERE generation = $3)
    AND {STANDS.format("$1")}
ORDER BY ended_moment DESC LIMIT 1
"""  # noqa: S608
_SUMS = """
SELECT s.namespace, s.mongo_documents, s.mongo_hash::text, s.postgres_documents, s.postgres_hash::text
FROM crossfade.generation_sum s
WHERE tenant_id = $1 AND generation = (SELECT max(s.generation) FROM crossfade.generation_sum s
    JOIN crossfade.generation g USING (generation) WHERE s.tenant_id = $1 AND g.finished_at IS NOT NULL)
ORDER BY 1
"""


class Clean(NamedTuple):
    """The generation that is clean for tenants, and what it stands on.

    ``since``: a clusterTime before all that the full generation beneath it read; what changed later may not
    have been looked at.
    """

    generation: int
    ended_at: datetime
    since: int
    incarnation: UUID


async def clean(connection: Connection, publisher: str, tenants: Collection[UUID]) -> Clean | None:
    """Return what is clean for all of these tenants, the oldest; None where it is not so for some."""
    oldest: Clean | None = None
    for tenant in tenants:
        found = await proof.clean(connection, publisher, tenant)
        if found is None:
            return None
        row = await connection.fetchrow(_FULL, publisher, tenant, found.generation)
        if row is None or row[2] is None:
            return None
        one = Clean(found.generation, found.ended_at, row[1], UUID(int=row[2].int))
        if oldest is None or one.since < oldest.since:
            oldest = one
    return oldest


async def sums(connection: Connection, tenants: Collection[UUID]) -> dict[str, dict[str, Any]]:
    """Return, by tenant and collection, both sides' documents and hashes, as last walked through whole."""
    told: dict[str, dict[str, Any]] = {}
    for tenant in tenants:
        told[str(tenant)] = {
            row[0]: {"mongo": [row[1], row[2]], "postgres": [row[3], row[4]]}
            for row in await connection.fetch(_SUMS, tenant)
        }
    return told
