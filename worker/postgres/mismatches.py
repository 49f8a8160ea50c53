"""Documents that do not fit, as the reconciler keeps them in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from worker.postgres.connect import Connection

CONCERNS = (
    "({0} IS NULL OR tenant_id = {0} OR row_tenant_id = {0} OR num_nonnulls(tenant_id, row_tenant_id) = 0)"
)
"""Whether a mismatch is a tenant's, or may be: nobody can tell whose it is. {0} NULL: all."""
ANY = "'00000000-0000-0000-0000-000000000000'::uuid"
"""Stands for a tenant that none can tell."""
WHOSE = (
    f"unnest(CASE WHEN num_nonnulls(tenant_id, row_tenant_id) = 0 THEN ARRAY[{ANY}] "
    "ELSE array_remove(ARRAY[tenant_id, row_tenant_id], NULL) END) AS tenant"
)
"""The tenants of a mismatch: of its rows and of its document."""
KINDS = ("missing", "extra", "different", "tenant", "orphan", "duplicate", "unreadable")
STATES = ("settling", "real")

_COLUMNS = (
    "namespace, row_id, collection, document_id, tenant_id, state, kind, reason, fields, generation, "
    "first_seen_at, since, checked_at, changes, observed_time, version_time, version_order, mongo_digest, "
    "postgres_digest, repaired_at, repairs, row_tenant_id"
)
_CHANGED = (
    *("collection", "document_id", "tenant_id", "state", "kind", "reason", "fields", "since", "checked_at"),
    *("changes", "observed_time", "version_time", "version_order", "mongo_digest", "postgres_digest"),
    "row_tenant_id",
)
_RECORDS = """
jsonb_to_recordset($1::jsonb) AS r(namespace text, row_id uuid, collection text,
    document_id bytea, tenant_id uuid, state text, kind text, reason text, fields jsonb, generation bigint,
    first_seen_at timestamptz, since timestamptz, checked_at timestamptz, changes integer,
    observed_time bigint,
    version_time bigint, version_order integer, mongo_digest numeric, postgres_digest numeric,
    repaired_at timestamptz, repairs integer, row_tenant_id uuid)
"""
# What was seen before, by a recheck, stands: a walk that comes across it again knows less.
_ADD = f"""
INSERT INTO crossfade.mismatch ({_COLUMNS}) SELECT {_COLUMNS} FROM {_RECORDS} ORDER BY namespace, row_id
ON CONFLICT (namespace, row_id) DO NOTHING
"""  # noqa: S608 - names of our own columns
_SAVE = f"""
UPDATE crossfade.mismatch m SET {", ".join(f"{name} = r.{name}" for name in _CHANGED)}
FROM {_RECORDS} WHERE m.namespace = r.namespace AND m.row_id = r.row_id
"""  # noqa: S608
_DROP = """
DELETE FROM crossfade.mismatch m USING unnest($1::text[], $2::uuid[]) AS k(namespace, row_id)
WHERE m.namespace = k.namespace AND m.row_id = k.row_id
RETURNING m.namespace, m.row_id, m.repairs
"""
# Not what no event can mend, nor what a person holds back after a batch was rolled back.
_REPAIRABLE = """
FROM crossfade.mismatch m WHERE state = 'real' AND kind <> 'duplicate'
    AND ($1::uuid IS NULL OR $1 IN (tenant_id, row_tenant_id))
    AND ($2::text IS NULL OR $2 IN (namespace, collection))
    AND ($3::float8 IS NULL OR since <= clock_timestamp() - make_interval(secs => $3))
    AND ($4::float8 IS NULL OR repaired_at IS NULL
        OR repaired_at <= clock_timestamp() - make_interval(secs => $4))
    AND ($5::integer IS NULL OR repairs < $5) AND ($6::uuid IS NULL OR row_id = $6)
    AND NOT EXISTS (SELECT FROM crossfade.document d JOIN crossfade.collection c USING (collection_id)
        WHERE c.namespace = m.namespace AND d.row_id = m.row_id AND d.state = 'refetch')
"""
_REPAIRABLE_KEYS = f"SELECT namespace, row_id {_REPAIRABLE} ORDER BY namespace, row_id LIMIT $7"
_OF = f"""
SELECT {_COLUMNS} FROM crossfade.mismatch m
JOIN unnest($1::text[], $2::uuid[]) AS k(namespace, row_id) USING (namespace, row_id)
ORDER BY namespace, row_id
"""  # noqa: S608
# In one order, whoever changes them: else two of them would wait for each other.
_LOCK = """
SELECT FROM crossfade.mismatch m
JOIN unnest($1::text[], $2::uuid[]) AS k(namespace, row_id) USING (namespace, row_id)
ORDER BY namespace, row_id FOR UPDATE OF m
"""
_COUNT_REPAIRABLE = f"SELECT count(*) {_REPAIRABLE}"
_NOTE_REPAIR = """
UPDATE crossfade.mismatch m SET repaired_at = clock_timestamp(), repairs = repairs + 1
FROM unnest($1::text[], $2::uuid[]) AS k(namespace, row_id)
WHERE m.namespace = k.namespace AND m.row_id = k.row_id
"""
_DOCUMENTS = """
SELECT coalesce(max(documents), 0) FROM crossfade.generation
WHERE generation = (SELECT max(generation) FROM crossfade.generation
    WHERE kind = 'full' AND tenant_id IS NULL AND finished_at IS NOT NULL)
"""
_PAGE = f"""
SELECT {_COLUMNS} FROM crossfade.mismatch
WHERE (namespace, row_id) > ($1, $2) AND {CONCERNS.format("$3::uuid")}
    AND ($4::text IS NULL OR namespace = $4) AND ($5::text IS NULL OR state = $5)
    AND ($6::uuid IS NULL OR row_id = $6)
ORDER BY namespace, row_id LIMIT $7
"""  # noqa: S608
_COUNT = f"""
SELECT state, kind, count(*), min(first_seen_at) FROM crossfade.mismatch
WHERE {CONCERNS.format("$1::uuid")} GROUP BY state, kind ORDER BY state, kind
"""  # noqa: S608

Key = tuple[str, UUID]
"""Logical namespace and row id."""
MismatchRow = dict[str, Any]
"""A row of ``crossfade.mismatch``, its columns by name; digests are integers, ``fields`` a list."""


async def add(connection: Connection, rows: Iterable[MismatchRow]) -> None:
    """Add what does not fit; what is known already stays as it is."""
    if text := _texts(rows):
        await connection.execute(_ADD, text)


async def save(connection: Connection, rows: Iterable[MismatchRow]) -> None:
    """Save what a recheck has found, of those that are still kept: another may have seen them fit."""
    if text := _texts(rows):
        await connection.execute(_SAVE, text)


async def drop(connection: Connection, keys: Sequence[Key]) -> set[Key]:
    """Forget documents that fit now; return those of them that were repaired, to one caller alone."""
    rows = await connection.fetch(_DROP, *_columns(keys))
    return {(row[0], UUID(int=row[1].int)) for row in rows if row[2]}


class Which(NamedTuple):
    """Which mismatches are to be repaired; None: whichever."""

    tenant: UUID | None = None
    collection: str | None = None
    """A namespace, logical or real."""
    seen_for: float | None = None
    """Seen as they are for so many seconds."""
    not_repaired_for: float | None = None
    """Seconds."""
    fewer_repairs: int | None = None
    row_id: UUID | None = None


async def count_repairable(connection: Connection, which: Which) -> int:
    """Return how many mismatches are real and could be mended by an event."""
    count: Any = await connection.fetchval(_COUNT_REPAIRABLE, *which)
    return count


async def repairable(connection: Connection, which: Which, most: int) -> list[Key]:
    """Return the keys of at most so many of them, in order."""
    rows = await connection.fetch(_REPAIRABLE_KEYS, *which, most)
    return [(row[0], UUID(int=row[1].int)) for row in rows]


async def of(connection: Connection, keys: Sequence[Key]) -> list[MismatchRow]:
    """Return those of these mismatches that are still kept, in order of collection and row id."""
    return list(map(_plain, await connection.fetch(_OF, *_columns(keys))))


async def note_repair(connection: Connection, keys: Sequence[Key]) -> None:
    """Note that these are about to be sent anew. In a transaction."""
    await lock(connection, keys)
    await connection.execute(_NOTE_REPAIR, *_columns(keys))


async def lock(connection: Connection, keys: Sequence[Key]) -> None:
    """Lock those that are still kept until the transaction ends."""
    await connection.execute(_LOCK, *_columns(keys))


def _columns(keys: Sequence[Key]) -> tuple[list[str], list[UUID]]:
    return [key[0] for key in keys], [key[1] for key in keys]


async def documents(connection: Connection) -> int:
    """Return how many documents the last full generation compared."""
    count: Any = await connection.fetchval(_DOCUMENTS)
    return count


async def read(
    connection: Connection,
    after: tuple[str, UUID] = ("", UUID(int=0)),
    *,
    tenant: UUID | None = None,
    namespace: str | None = None,
    state: str | None = None,
    row_id: UUID | None = None,
    limit: int = 1000,
) -> list[MismatchRow]:
    """Return mismatches in order of collection and row id; of a tenant, also those that may be its."""
    rows = await connection.fetch(_PAGE, *after, tenant, namespace, state, row_id, limit)
    return list(map(_plain, rows))


def _plain(row: asyncpg.Record) -> MismatchRow:
    one = dict(row)
    one["fields"] = orjson.loads(one["fields"])
    for name in ("mongo_digest", "postgres_digest"):
        one[name] = None if one[name] is None else int(one[name])
    for name in ("row_id", "tenant_id", "row_tenant_id"):
        one[name] = None if one[name] is None else UUID(int=one[name].int)
    return one


async def counts(connection: Connection, tenant: UUID | None = None) -> list[tuple[str, str, int, Any]]:
    """Return state, kind, number and first moment of the mismatches there are."""
    return [tuple(row) for row in await connection.fetch(_COUNT, tenant)]


def _texts(rows: Iterable[MismatchRow]) -> bytes:
    told = [
        {
            **row,
            "document_id": None if row["document_id"] is None else "\\x" + row["document_id"].hex(),
            "mongo_digest": None if row["mongo_digest"] is None else str(row["mongo_digest"]),
            "postgres_digest": None if row["postgres_digest"] is None else str(row["postgres_digest"]),
        }
        for row in rows
    ]
    return orjson.dumps(told) if told else b""
