"""Statements on the outbox: what the reverse publisher takes, in the order of docs/protocol.md R2."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg

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


class Standing(NamedTuple):
    """How many rows wait, since how many seconds the first does, of how many tenants the way back is broken.

    ``lag``: seconds since the newest heartbeat that has come through, in the partition where it is oldest;
    None: none has.
    """

    rows: int
    waiting: float
    broken: int
    lag: float | None


_STANDING = """
SELECT count(*), greatest(coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0), 0)::float8,
    (SELECT count(DISTINCT tenant_id) FROM crossfade.way_back_fault),
    (SELECT greatest(extract(epoch FROM clock_timestamp() - min(heartbeat_at)), 0)::float8
        FROM crossfade.reverse_progress)
FROM crossfade.outbox
"""


async def standing(connection: Connection) -> Standing:
    """Return how the way back stands, by PostgreSQL's clock."""
    row = await connection.fetchrow(_STANDING)
    assert row is not None
    return Standing(*row)


_SENT_UPTO = "SELECT coalesce(min(at), clock_timestamp()) FROM crossfade.outbox"


async def sent_upto(connection: Connection) -> datetime:
    """Return a moment before which all that was committed has been sent: a heartbeat's."""
    moment: datetime = await connection.fetchval(_SENT_UPTO)  # pyright: ignore[reportAssignmentType]
    return moment


_PROGRESS = """
INSERT INTO crossfade.reverse_progress AS p (topic, partition, heartbeat_at)
SELECT * FROM unnest($1::text[], $2::integer[], $3::timestamptz[]) ORDER BY 1, 2
ON CONFLICT (topic, partition) DO UPDATE SET heartbeat_at = greatest(p.heartbeat_at, excluded.heartbeat_at)
"""


async def progressed(connection: Connection, beats: Mapping[tuple[str, int], datetime]) -> None:
    """Note the newest heartbeats that have come through partitions."""
    topics, partitions = [topic for topic, _ in beats], [partition for _, partition in beats]
    await connection.execute(_PROGRESS, topics, partitions, list(beats.values()))


_ONLY = """
DELETE FROM crossfade.reverse_progress p WHERE NOT EXISTS (
    SELECT FROM unnest($1::text[], $2::integer[]) AS k(topic, partitions)
    WHERE k.topic = p.topic AND p.partition < k.partitions)
"""


async def only(connection: Connection, partitions: Mapping[str, int]) -> None:
    """Forget heartbeats but of these topics, of so many partitions: what is not read any more would lag for
    ever.
    """
    await connection.execute(_ONLY, list(partitions), list(partitions.values()))


class Unmapped(NamedTuple):
    """A column that the mapping does not know. ``default``: what is always the same, as text; None: none."""

    column: str
    default: str | None


# A default that is not always the same, such as now(), tells nothing of a value: its columns are left out.
# The tree names the functions that it calls, and has nodes of its own for sequences, SQL's own functions, and
# what is made of a text.
_UNMAPPED = r"""
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), pg_get_expr(d.adbin, d.adrelid)
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass(quote_ident($1)) AND a.attnum > 0 AND NOT a.attisdropped
    AND a.attgenerated = '' AND a.atttypid <> 'tsvector'::regtype AND a.attidentity = ''
    AND a.attname <> ALL($2::text[])
    AND (d.adbin IS NULL OR d.adbin::text !~ '\{(NEXTVALUEEXPR|SQLVALUEFUNCTION|COERCEVIAIO)' AND NOT EXISTS (
        SELECT FROM regexp_matches(d.adbin::text, ':(?:op)?funcid (\d+)', 'g') AS m
        LEFT JOIN pg_catalog.pg_proc p ON p.oid = m[1]::oid AND p.provolatile = 'i'
            AND p.pronamespace = 'pg_catalog'::regnamespace
        WHERE p.oid IS NULL))
ORDER BY a.attnum
"""


async def unmapped(connection: Connection, table: TablePlan) -> list[Unmapped]:
    """Return the columns of a table that the mapping does not know, and in which a statement's value shows:
    nothing else fills them, or always the same.
    """
    rows = await connection.fetch(_UNMAPPED, table.table, [*table.columns, *table.key])
    found: list[Unmapped] = []
    for name, type_, expression in rows:
        default = None
        if expression is not None:
            try:
                async with connection.transaction():  # a savepoint: whoever wrote it may see more than we do
                    default = await connection.fetchval(f"SELECT (({expression})::{type_})::text")
            except asyncpg.PostgresError:
                continue
        found.append(Unmapped(name, default))
    return found


async def carried_not(
    connection: Connection, table: TablePlan, columns: Sequence[Unmapped], ids: Sequence[UUID]
) -> dict[UUID, str]:
    """Return, by row id, one of these columns that has a value of its own in a row of these documents."""
    key = quoted(table.key[0])
    parameters: list[object] = [ids]
    others: dict[str, str] = {}
    for one in columns:
        others[one.column] = f"{quoted(one.column)} IS NOT NULL"
        if one.default is not None:  # as text: not every type can be compared
            parameters.append(one.default)
            others[one.column] = f"{quoted(one.column)}::text <> ${len(parameters)}"
    first = "CASE " + " ".join(f"WHEN {it} THEN {_literal(name)}" for name, it in others.items()) + " END"
    rows = await connection.fetch(
        f"SELECT {key}, {first} FROM {quoted(table.table)} "  # noqa: S608 - the catalog's names, quoted
        f"WHERE {key} = ANY($1::uuid[]) AND ({' OR '.join(others.values())})",
        *parameters,
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


ALL = 2**63 - 1
"""Above every id."""


async def newest(connection: Connection) -> int:
    """Return the id of the outbox's newest row, held by a publisher or not; 0: it has none."""
    found: int = await connection.fetchval(  # pyright: ignore[reportAssignmentType]
        "SELECT coalesce(max(outbox_id), 0) FROM crossfade.outbox"
    )
    return found


async def drained(connection: Connection, tenant: UUID, upto: int = ALL) -> bool:
    """Whether the outbox has no row of a tenant, up to one's id, held by a publisher or not (R3)."""
    found = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM crossfade.outbox WHERE tenant_id = $1 AND outbox_id <= $2)",
        tenant,
        upto,
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
