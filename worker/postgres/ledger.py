"""Statements on the ledger (`crossfade.document`) and on tenants' phases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from topics import Version
from worker.postgres.connect import Connection

Key = tuple[int, UUID]
"""A document in the ledger: collection number and row id."""


class LedgerRow(NamedTuple):
    """What the ledger knows of a document."""

    tenant_id: UUID | None
    version: Version
    state: str
    document_id: bytes | None = None  # BSON {"": _id} where the row id does not tell it


class Phase(NamedTuple):
    """A tenant's phase, the clusterTime below which nothing may change its rows, and its epoch."""

    phase: str
    floor: int
    epoch: int = 0


class Entry(NamedTuple):
    """What a batch writes into the ledger for one document."""

    key: Key
    tenant_id: UUID | None
    version: Version
    state: str
    document_id: bytes | None


_READ = """
SELECT d.collection_id, d.row_id, d.tenant_id, d.version_time, d.version_order, d.state::text, d.document_id
FROM unnest($1::smallint[], $2::uuid[]) AS k(collection_id, row_id)
JOIN crossfade.document d USING (collection_id, row_id)
FOR UPDATE OF d
"""


async def read(connection: Connection, keys: Sequence[Key]) -> dict[Key, LedgerRow]:
    """Return the ledger's rows of these documents, locked until the transaction ends.

    Locked, because the winners are decided from what is read here: a second worker that holds an event of
    the same document (a rebalance, or the copy beside the stream) waits, and then reads what we wrote.
    Keys come sorted, so that two workers lock in one order.
    """
    rows = await connection.fetch(_READ, [key[0] for key in keys], [key[1] for key in keys])
    return {(row[0], row[1]): LedgerRow(row[2], Version(row[3], row[4]), *row[5:]) for row in rows}


_TENANTS = """
SELECT d.collection_id, d.row_id, d.tenant_id
FROM unnest($1::smallint[], $2::uuid[]) AS k(collection_id, row_id)
JOIN crossfade.document d USING (collection_id, row_id) WHERE d.tenant_id IS NOT NULL
"""


async def tenants(connection: Connection, keys: Collection[Key]) -> dict[Key, UUID]:
    """Return the tenants of these documents, of those that the ledger knows."""
    rows = await connection.fetch(_TENANTS, [key[0] for key in keys], [key[1] for key in keys])
    # asyncpg's UUIDs are of a class of its own, which cannot be sent as JSON; these go into rows.
    return {(row[0], row[1]): UUID(int=row[2].int) for row in rows}


_INSERT = """
INSERT INTO crossfade.document
    (collection_id, row_id, tenant_id, version_time, version_order, state, document_id, batch_id)
SELECT *, $8::bigint FROM unnest(
    $1::smallint[], $2::uuid[], $3::uuid[], $4::bigint[], $5::integer[], $6::crossfade.document_state[],
    $7::bytea[])
ON CONFLICT DO NOTHING
"""

_UPDATE = """
UPDATE crossfade.document d
SET tenant_id = k.tenant_id, version_time = k.version_time, version_order = k.version_order,
    state = k.state, document_id = coalesce(k.document_id, d.document_id), batch_id = $8::bigint
FROM unnest(
    $1::smallint[], $2::uuid[], $3::uuid[], $4::bigint[], $5::integer[], $6::crossfade.document_state[],
    $7::bytea[]) AS k(collection_id, row_id, tenant_id, version_time, version_order, state, document_id)
WHERE d.collection_id = k.collection_id AND d.row_id = k.row_id
"""


async def insert(connection: Connection, batch_id: int, entries: Sequence[Entry]) -> bool:
    """Add documents that the ledger did not have; False when another worker added one since `read`."""
    status = await connection.execute(_INSERT, *_arrays(entries), batch_id)
    return int(status.rpartition(" ")[2]) == len(entries)


async def update(connection: Connection, batch_id: int, entries: Sequence[Entry]) -> None:
    """Change documents that `read` has locked."""
    await connection.execute(_UPDATE, *_arrays(entries), batch_id)


def _arrays(entries: Sequence[Entry]) -> tuple[list[object], ...]:
    return (
        [entry.key[0] for entry in entries],
        [entry.key[1] for entry in entries],
        [entry.tenant_id for entry in entries],
        [entry.version.time for entry in entries],
        [entry.version.order for entry in entries],
        [entry.state for entry in entries],
        [entry.document_id for entry in entries],
    )


_SHARE_PHASES = """
SELECT tenant_id, phase::text, floor, epoch FROM crossfade.tenant
WHERE tenant_id = ANY($1::uuid[]) ORDER BY tenant_id FOR SHARE
"""

_MEET_TENANTS = """
INSERT INTO crossfade.tenant (tenant_id) SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING
"""


async def share_phases(connection: Connection, tenants: Collection[UUID]) -> Mapping[UUID, Phase]:
    """Return the phases of these tenants, share-locked until the transaction ends (docs/protocol.md A3).

    A tenant seen for the first time starts in ``mongo``.
    """
    wanted = sorted(tenants)
    phases = await _share(connection, wanted)
    if missing := [tenant for tenant in wanted if tenant not in phases]:
        await connection.execute(_MEET_TENANTS, missing)
        phases |= await _share(connection, missing)
    return phases


async def _share(connection: Connection, tenants: list[UUID]) -> dict[UUID, Phase]:
    rows = await connection.fetch(_SHARE_PHASES, tenants)
    return {row[0]: Phase(*row[1:]) for row in rows}


class Standing(NamedTuple):
    """What the ledger has of one document. ``state``: live, deleted, or refetch (held)."""

    state: str
    version: Version
    tenant_id: UUID | None
    batch_id: int


_STANDING = """
SELECT d.state::text, d.version_time, d.version_order, d.tenant_id, d.batch_id
FROM crossfade.document d JOIN crossfade.collection USING (collection_id) WHERE namespace = $1 AND row_id = $2
"""


async def standing(connection: Connection, namespace: str, row_id: UUID) -> Standing | None:
    """Return what the ledger has of a document, to be looked at."""
    row = await connection.fetchrow(_STANDING, namespace, row_id)
    return None if row is None else Standing(row[0], Version(row[1], row[2]), row[3], row[4])


_DAY = 24 * 3600.0
_INDEXED = """
SELECT i.indisvalid FROM pg_catalog.pg_index i WHERE i.indexrelid = to_regclass('crossfade.document_tenant')
"""


async def index_tenants(connection: Connection, tell: Callable[[str], None]) -> None:
    """Give the ledger an index by tenant, as its owner, for whoever moves one: the copy is faster without.

    Nobody waits for it, and no timeout ends it: it waits itself for every transaction that is open.
    """
    valid = await connection.fetchval(_INDEXED)
    if valid:
        return
    tell("an index on the ledger is made; that waits for all transactions which are open now")
    await connection.execute("SET lock_timeout = 0")
    await connection.execute("SET statement_timeout = 0")
    if valid is not None:  # one that was broken off
        await connection.execute("DROP INDEX CONCURRENTLY crossfade.document_tenant", timeout=_DAY)
    create = "CREATE INDEX CONCURRENTLY document_tenant ON crossfade.document (tenant_id)"
    await connection.execute(create, timeout=_DAY)
