"""Statements on the outbox: what the reverse publisher takes, in the order that PROTOCOL.md R2 demands."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from worker.mapping import TablePlan
from worker.postgres.connect import Connection
from worker.postgres.target import quoted

_WAITING = """
SELECT EXISTS (SELECT FROM crossfade.outbox)
    OR EXISTS (SELECT FROM crossfade.reverse_barrier WHERE sent_at IS NULL)
"""


async def waiting(connection: Connection) -> bool:
    """Whether there is anything to take, or a barrier to send."""
    found: bool = await connection.fetchval(_WAITING)  # pyright: ignore[reportAssignmentType]
    return found


class Touched(NamedTuple):
    """A document that transactions touched, and when the first of them did."""

    collection_id: int
    row_id: UUID
    tenant_id: UUID
    at: datetime


# Rows that another publisher holds are its business: it draws its version after it took them.
_TAKE = """
WITH taken AS (
    DELETE FROM crossfade.outbox WHERE outbox_id IN (
        SELECT outbox_id FROM crossfade.outbox ORDER BY outbox_id LIMIT $1 FOR UPDATE SKIP LOCKED
    ) RETURNING collection_id, row_id, tenant_id, at
)
SELECT collection_id, row_id, tenant_id, min(at) FROM taken GROUP BY 1, 2, 3
"""


async def take(connection: Connection, most: int) -> list[Touched]:
    """Take rows out of the outbox, for this transaction; a rollback puts them back."""
    rows = await connection.fetch(_TAKE, most)
    return [Touched(row[0], UUID(int=row[1].int), UUID(int=row[2].int), row[3]) for row in rows]


async def draw(connection: Connection) -> int:
    """Draw the version of what is read next. After `take`, before the documents are read (R2)."""
    version: int | None = await connection.fetchval("SELECT nextval('crossfade.reverse_version')")
    assert version is not None
    return version


_NOT_BELOW = """
SELECT setval('crossfade.reverse_version', $1) FROM crossfade.reverse_version WHERE last_value < $2
"""


async def not_below(connection: Connection, known: int, margin: int) -> bool:
    """See to it that no version is drawn again that MongoDB knows; return whether that had to be mended.

    So it is where PostgreSQL was put back to an older state (R4). ``margin``: versions to pass over, for
    those that may be in Kafka still.
    """
    return await connection.fetchval(_NOT_BELOW, known + margin, known) is not None


async def declare(connection: Connection, tenants: Collection[UUID]) -> None:
    """Let this transaction see these tenants' rows, as the sync role."""
    await connection.execute(
        "SELECT set_config('crossfade.tenants', $1, true)", ",".join(sorted(map(str, tenants)))
    )


class Noted(NamedTuple):
    """A document that is to be brought back; ``epoch``: its tenant's."""

    collection_id: int
    row_id: UUID
    tenant_id: UUID
    epoch: int


_NOTE = """
INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::uuid[], $4::bigint[])
"""


async def note(connection: Connection, documents: Sequence[Noted]) -> None:
    """Put documents into the outbox; their tenants' phases must be share-locked, and let it (R1)."""
    await connection.execute(_NOTE, *map(list, zip(*documents, strict=True)))


class Fault(NamedTuple):
    """Why a tenant's way back is broken. ``subject``: a column or a row id."""

    tenant_id: UUID
    kind: str
    namespace: str
    subject: str
    reason: str


_FAULT = """
INSERT INTO crossfade.way_back_fault (tenant_id, kind, namespace, subject, reason)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[])
ON CONFLICT DO NOTHING RETURNING tenant_id, kind, namespace, subject, reason
"""


async def broken(connection: Connection, faults: Collection[Fault]) -> list[Fault]:
    """Note that ways back are broken; return what was not known yet."""
    if not faults:
        return []
    rows = await connection.fetch(_FAULT, *map(list, zip(*faults, strict=True)))
    return [Fault(*row) for row in rows]


_AGAIN = """
WITH due AS (
    SELECT f.tenant_id, f.kind, f.namespace, f.subject, c.collection_id, t.epoch
    FROM crossfade.way_back_fault f JOIN crossfade.collection c USING (namespace)
    JOIN crossfade.tenant t USING (tenant_id)
    WHERE f.kind <> 'unmapped' AND t.phase = 'postgres' LIMIT 1000 FOR SHARE OF t
), gone AS (
    DELETE FROM crossfade.way_back_fault f USING due WHERE (f.tenant_id, f.kind, f.namespace, f.subject)
        = (due.tenant_id, due.kind, due.namespace, due.subject)
)
INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
SELECT DISTINCT collection_id, subject::uuid, tenant_id, epoch FROM due
"""


async def try_again(connection: Connection) -> int:
    """Put documents that stand as faults into the outbox again; return how many.

    Their faults are gone until they fail once more, which is noted before anything that is sent later
    arrives: whoever asks after a barrier has arrived is told.
    """
    status = await connection.execute(_AGAIN)
    return int(status.rpartition(" ")[2])


_STANDING = """
SELECT count(*), greatest(coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0), 0)::float8,
    (SELECT count(DISTINCT tenant_id) FROM crossfade.way_back_fault)
FROM crossfade.outbox
"""


async def standing(connection: Connection) -> tuple[int, float, int]:
    """Return how many rows wait, since how many seconds the first does, and of how many tenants the way back
    is broken.
    """
    row = await connection.fetchrow(_STANDING)
    assert row is not None
    return row[0], row[1], row[2]


_UNMAPPED = """
SELECT a.attname::text FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass(quote_ident($1)) AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attgenerated = '' AND d.adbin IS NULL AND a.atttypid <> 'tsvector'::regtype
    AND a.attidentity = '' AND a.attname <> ALL($2::text[])
ORDER BY a.attnum
"""


async def unmapped(connection: Connection, table: TablePlan) -> list[str]:
    """Return the columns of a table that the mapping does not know, and that nothing but a statement fills:
    no default, no expression, no search vector.
    """
    rows = await connection.fetch(_UNMAPPED, table.table, [*table.columns, *table.key])
    return [row[0] for row in rows]


async def carried_not(
    connection: Connection, table: TablePlan, columns: Sequence[str], ids: Sequence[UUID]
) -> dict[UUID, str]:
    """Return, by row id, one of these columns that has a value in a row of these documents."""
    key = quoted(table.key[0])
    first = "CASE " + " ".join(f"WHEN {quoted(n)} IS NOT NULL THEN {_literal(n)}" for n in columns) + " END"
    some = " OR ".join(f"{quoted(name)} IS NOT NULL" for name in columns)
    rows = await connection.fetch(
        f"SELECT {key}, {first} FROM {quoted(table.table)} "  # noqa: S608 - the catalog's names, quoted
        f"WHERE {key} = ANY($1::uuid[]) AND ({some})",
        ids,
    )
    return {UUID(int=row[0].int): row[1] for row in rows}


def _literal(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"


async def asked(connection: Connection) -> list[UUID]:
    """Return the barriers that were asked for and not sent, locked; another publisher skips them."""
    rows = await connection.fetch(
        "SELECT barrier_id FROM crossfade.reverse_barrier WHERE sent_at IS NULL FOR UPDATE SKIP LOCKED"
    )
    return [UUID(int=row[0].int) for row in rows]


async def sent(connection: Connection, barriers: Sequence[UUID], partitions: int) -> None:
    """Note that barriers are in all of so many partitions."""
    await connection.execute(
        "UPDATE crossfade.reverse_barrier SET sent_at = clock_timestamp(), partitions = $2 "
        "WHERE barrier_id = ANY($1::uuid[])",
        barriers,
        partitions,
    )


async def ask_barrier(connection: Connection, barrier: UUID) -> None:
    """Ask for a barrier, as the role that changes phases; the reverse publisher sends it."""
    await connection.execute("INSERT INTO crossfade.reverse_barrier (barrier_id) VALUES ($1)", barrier)


async def drained(connection: Connection, tenant: UUID) -> bool:
    """Whether the outbox has no row of a tenant, held by a publisher or not (R3): a plain SELECT."""
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM crossfade.outbox WHERE tenant_id = $1)", tenant
    )
    return not found


async def faults(connection: Connection, tenant: UUID) -> list[Fault]:
    """Return why a tenant's way back is broken, if it is."""
    rows = await connection.fetch(
        "SELECT tenant_id, kind, namespace, subject, reason FROM crossfade.way_back_fault "
        "WHERE tenant_id = $1 ORDER BY first_seen_at",
        tenant,
    )
    return [Fault(*row) for row in rows]
