"""What the way back has sent of each tenant: kept here, for what Kafka loses never comes to MongoDB (R5)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
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
ORDER BY 2, 3, 1
ON CONFLICT (collection_id, row_id, tenant_id) DO UPDATE
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
) -> AsyncGenerator[list[Sent]]:
    """Yield, some at a time, what was sent of a tenant with versions above one, and up to another."""
    async with connection.transaction():
        cursor = await connection.cursor(_REMEMBERED, tenant, above, upto)
        while rows := await cursor.fetch(_AT_ONCE):
            yield [Sent(UUID(int=row[0].int), row[1], UUID(int=row[2].int), *row[3:]) for row in rows]


# For all who are away and have sent it: of a document that changed tenants, whoever is sent for alone may not
# see the row, and take it for gone.
_SEND_AGAIN = """
WITH again AS (
    SELECT DISTINCT s.collection_id, s.row_id, s.tenant_id
    FROM unnest($1::smallint[], $2::uuid[]) AS k (collection_id, row_id)
    JOIN crossfade.sent s USING (collection_id, row_id)
), away AS (
    SELECT tenant_id, epoch FROM crossfade.tenant
    WHERE tenant_id IN (SELECT tenant_id FROM again) AND phase = 'postgres' ORDER BY tenant_id FOR SHARE
)
INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
SELECT collection_id, row_id, tenant_id, epoch FROM again JOIN away USING (tenant_id) ORDER BY 1, 2
"""


async def again(connection: Connection, documents: Sequence[Sent]) -> None:
    """Put documents into the outbox, of tenants that are in `postgres`."""
    for first in range(0, len(documents), _AT_ONCE):
        some = documents[first : first + _AT_ONCE]
        await connection.execute(
            _SEND_AGAIN, [one.collection_id for one in some], [one.row_id for one in some]
        )
