"""Documents that do not fit, as the reconciler keeps them in PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import orjson

from worker.postgres.connect import Connection

CONCERNS = (
    "({0} IS NULL OR tenant_id = {0} OR mongo_tenant_id = {0} "
    "OR num_nonnulls(tenant_id, mongo_tenant_id) = 0)"
)
"""Whether a mismatch is a tenant's, or may be: nobody can tell whose it is. {0} NULL: all."""
ANY = "'00000000-0000-0000-0000-000000000000'::uuid"
"""Stands for a tenant that none can tell."""
WHOSE = (
    f"unnest(CASE WHEN num_nonnulls(tenant_id, mongo_tenant_id) = 0 THEN ARRAY[{ANY}] "
    "ELSE array_remove(ARRAY[tenant_id, mongo_tenant_id], NULL) END) AS tenant"
)
"""The tenants of a mismatch: of its rows and of its document."""
KINDS = ("missing", "extra", "different", "tenant", "orphan", "duplicate", "unreadable")
STATES = ("settling", "real")

_COLUMNS = (
    "namespace, row_id, collection, document_id, tenant_id, state, kind, reason, fields, generation, "
    "first_seen_at, since, checked_at, changes, observed_time, version_time, version_order, mongo_digest, "
    "postgres_digest, repaired_at, repairs, mongo_tenant_id"
)
_CHANGED = (
    *("collection", "document_id", "tenant_id", "state", "kind", "reason", "fields", "since", "checked_at"),
    *("changes", "observed_time", "version_time", "version_order", "mongo_digest", "postgres_digest"),
    "mongo_tenant_id",
)
# What was seen before, by a recheck, stands: a walk that comes across it again knows less.
_ADD = f"""
INSERT INTO crossfade.mismatch ({_COLUMNS})
SELECT {_COLUMNS} FROM jsonb_to_recordset($1::jsonb) AS r(namespace text, row_id uuid, collection text,
    document_id bytea, tenant_id uuid, state text, kind text, reason text, fields jsonb, generation bigint,
    first_seen_at timestamptz, since timestamptz, checked_at timestamptz, changes integer,
    observed_time bigint,
    version_time bigint, version_order integer, mongo_digest numeric, postgres_digest numeric,
    repaired_at timestamptz, repairs integer, mongo_tenant_id uuid)
"""  # noqa: S608 - names of our own columns
_ADD_NEW = _ADD + "ON CONFLICT (namespace, row_id) DO NOTHING"
_SAVE = (
    _ADD
    + "ON CONFLICT (namespace, row_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _CHANGED)
)
_DROP = """
DELETE FROM crossfade.mismatch m USING unnest($1::text[], $2::uuid[]) AS k(namespace, row_id)
WHERE m.namespace = k.namespace AND m.row_id = k.row_id
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

MismatchRow = dict[str, Any]
"""A row of ``crossfade.mismatch``, its columns by name; digests are integers, ``fields`` a list."""


async def add(connection: Connection, rows: Iterable[MismatchRow]) -> None:
    """Add what does not fit; what is known already stays as it is."""
    if text := _texts(rows):
        await connection.execute(_ADD_NEW, text)


async def save(connection: Connection, rows: Iterable[MismatchRow]) -> None:
    """Save what a recheck has found."""
    if text := _texts(rows):
        await connection.execute(_SAVE, text)


async def drop(connection: Connection, keys: Sequence[tuple[str, UUID]]) -> None:
    """Forget documents that fit now."""
    await connection.execute(_DROP, [key[0] for key in keys], [key[1] for key in keys])


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
    found: list[MismatchRow] = []
    for row in rows:
        one = dict(row)
        one["fields"] = orjson.loads(one["fields"])
        for name in ("mongo_digest", "postgres_digest"):
            one[name] = None if one[name] is None else int(one[name])
        for name in ("row_id", "tenant_id", "mongo_tenant_id"):
            one[name] = None if one[name] is None else UUID(int=one[name].int)
        found.append(one)
    return found


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
