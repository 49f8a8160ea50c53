"""What the way back has sent of each tenant: kept here, for what Kafka loses never comes to MongoDB (R5)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple
from uuid import UUID

from worker.postgres.connect import Connection


class Sent(NamedTuple):
    """A document that Kafka has. ``namespace``: its real collection's; ``key``: `topics.document_key`."""

    tenant_id: UUID
    collection_id: int
    row_id: UUID
    namespace: str
    key: bytes
    version: int


_REMEMBER = """
INSERT INTO crossfade.sent AS s (tenant_id, collection_id, row_id, namespace, document_key, version)
SELECT * FROM unnest($1::uuid[], $2::smallint[], $3::uuid[], $4::text[], $5::bytea[], $6::bigint[])
ORDER BY 1, 2, 3
ON CONFLICT (tenant_id, collection_id, row_id) DO UPDATE
SET namespace = excluded.namespace, document_key = excluded.document_key, version = excluded.version
WHERE s.version < excluded.version
"""
_REMEMBERED = """
SELECT tenant_id, collection_id, row_id, namespace, document_key, version FROM crossfade.sent
WHERE tenant_id = $1 AND version > $2 AND version <= $3
"""
_AT_ONCE = 1000


async def remember(connection: Connection, documents: Sequence[Sent]) -> None:
    """Keep what was sent, in the transaction that took it out of the outbox."""
    if documents:
        await connection.execute(_REMEMBER, *map(list, zip(*documents, strict=True)))


async def remembered(
    connection: Connection, tenant: UUID, above: int, upto: int
) -> AsyncIterator[list[Sent]]:
    """Yield, some at a time, what was sent of a tenant with versions above one, and up to another."""
    async with connection.transaction():
        cursor = await connection.cursor(_REMEMBERED, tenant, above, upto)
        while rows := await cursor.fetch(_AT_ONCE):
            yield [Sent(UUID(int=row[0].int), row[1], UUID(int=row[2].int), *row[3:]) for row in rows]


_SEND_AGAIN = """
WITH away AS (
    SELECT tenant_id, epoch FROM crossfade.tenant
    WHERE tenant_id = ANY($1::uuid[]) AND phase = 'postgres' ORDER BY tenant_id FOR SHARE
)
INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
SELECT k.collection_id, k.row_id, k.tenant_id, away.epoch
FROM unnest($1::uuid[], $2::smallint[], $3::uuid[]) AS k (tenant_id, collection_id, row_id)
JOIN away USING (tenant_id)
"""


async def again(connection: Connection, documents: Sequence[Sent]) -> None:
    """Put documents into the outbox, of tenants that are in `postgres`."""
    for first in range(0, len(documents), _AT_ONCE):
        some = documents[first : first + _AT_ONCE]
        columns = [[getattr(one, name) for one in some] for name in ("tenant_id", "collection_id", "row_id")]
        await connection.execute(_SEND_AGAIN, *columns)
