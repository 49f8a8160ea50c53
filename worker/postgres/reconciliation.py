"""What the reconciler keeps in PostgreSQL, generations, their sums and mismatches; and what it asks there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from topics import Version
from worker.errors import SchemaError, Transient
from worker.postgres.connect import Connection
from worker.postgres.faults import Action, action_for, describe
from worker.postgres.mismatches import ANY, CONCERNS, WHOSE
from worker.postgres.target import quoted

MODULUS = 1 << 128
"""Sums of digests are taken modulo this."""
KEPT = 1000  # generations
MOST_TOLD = 1000
"""Unclean tenants that a generation tells; where there are more, it is clean for none."""

_APPLIED = """
SELECT min(heartbeat_time) FROM crossfade.partition_progress WHERE topic = $1
HAVING count(heartbeat_time) >= $2
"""
_VERSIONS = """
SELECT d.row_id, d.version_time, d.version_order FROM crossfade.document d
JOIN crossfade.collection c USING (collection_id) WHERE c.namespace = $1 AND d.row_id = ANY($2::uuid[])
"""
FORWARD = "phase IN ('mongo', 'draining', 'aborting', 'opening')"
"""Phases in which a tenant's rows follow MongoDB."""
_SWITCHED = f"SELECT tenant_id FROM crossfade.tenant WHERE NOT {FORWARD}"  # noqa: S608
_COPYING = """
SELECT namespace FROM crossfade.collection WHERE namespace = ANY($1::text[]) AND copy_state <> 'copied'
UNION
SELECT k.namespace FROM unnest($2::text[], $3::text[], $4::integer[], $5::bigint[])
    AS k(namespace, topic, partition, ends)
LEFT JOIN crossfade.partition_progress p USING (topic, partition) WHERE coalesce(p.next_offset, 0) < k.ends
"""


async def applied(reader: Connection, topic: str, partitions: int) -> int | None:
    """Return the clusterTime up to which all changes of a stream topic are applied; None: not known yet."""
    return await reader.fetchval(_APPLIED, topic, partitions)


async def versions(reader: Connection, namespace: str, ids: Sequence[UUID]) -> dict[UUID, Version]:
    """Return the ledger's versions of documents, to tell whether something came in between two looks."""
    rows = await reader.fetch(_VERSIONS, namespace, ids)
    return {row[0]: Version(row[1], row[2]) for row in rows}


_DOCUMENT_IDS = """
SELECT d.row_id, d.document_id FROM crossfade.document d
JOIN crossfade.collection c USING (collection_id)
WHERE c.namespace = $1 AND d.row_id = ANY($2::uuid[])
"""


async def document_ids(
    connection: Connection, namespace: str, row_ids: Sequence[UUID]
) -> dict[UUID, bytes | None]:
    """Return the ids of a logical collection's documents that the ledger knows; None: the row id tells it."""
    rows = await connection.fetch(_DOCUMENT_IDS, namespace, row_ids)
    return {UUID(int=row[0].int): row[1] for row in rows}


_PARKED = """
SELECT row_id FROM crossfade.dead_letter
WHERE row_id = ANY($2::uuid[]) AND state = 'parked' AND namespace = $1
"""


async def parked(connection: Connection, namespace: str, row_ids: Sequence[UUID]) -> set[UUID]:
    """Return which of a real collection's documents have an event that waits for another one."""
    rows = await connection.fetch(_PARKED, namespace, row_ids)
    return {UUID(int=row[0].int) for row in rows}


async def tenants(
    reader: Connection, table: str, key: str, column: str, ids: Sequence[UUID]
) -> dict[UUID, UUID]:
    """Return the tenants of rows of a table."""
    key = quoted(key)
    query = f"SELECT {key}, {quoted(column)} FROM {quoted(table)} WHERE {key} = ANY($1::uuid[])"  # noqa: S608
    return {row[0]: UUID(int=row[1].int) for row in await reader.fetch(query, ids) if row[1] is not None}


async def switched(reader: Connection) -> set[UUID]:
    """Return the tenants whose writes do not go to MongoDB: there PostgreSQL is right."""
    return {UUID(int=row[0].int) for row in await reader.fetch(_SWITCHED)}


async def copying(
    reader: Connection, namespaces: Sequence[str], ends: Mapping[tuple[str, str, int], int]
) -> set[str]:
    """Return the collections whose copy is not made, or not applied up to ``ends``.

    ``ends``: by collection, copy topic and partition, asked of Kafka before.
    """
    keys = list(ends)
    columns = [[key[place] for key in keys] for place in range(3)]
    return {row[0] for row in await reader.fetch(_COPYING, namespaces, *columns, list(ends.values()))}


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation under way. ``place``: where a full one goes on."""

    number: int
    kind: str
    tenant_id: UUID | None
    incarnation: UUID | None
    mapping_changes: int
    copies: int
    place: dict[str, Any]
    documents: int
    rows: int


class Sum(NamedTuple):
    """What was read of one collection and tenant: documents and digests of each side."""

    mongo_documents: int = 0
    mongo_hash: int = 0
    postgres_documents: int = 0
    postgres_hash: int = 0

    def plus(self, mongo: int | None, postgres: int | None) -> Sum:
        """Return the sum with a document's digests; None: that side has none."""
        return Sum(
            self.mongo_documents + (mongo is not None),
            (self.mongo_hash + (mongo or 0)) % MODULUS,
            self.postgres_documents + (postgres is not None),
            (self.postgres_hash + (postgres or 0)) % MODULUS,
        )


SumKey = tuple[str, UUID | None]

_COPIES = "(SELECT coalesce(sum(copies), 0)::bigint FROM crossfade.collection)"
_STANDING = f"""
SELECT (SELECT incarnation FROM crossfade.checkpoint WHERE publisher = $1),
    (SELECT changes FROM crossfade.mapping), {_COPIES}
"""  # noqa: S608 - names of our own columns
STANDS = f"""
NOT given_up AND incarnation IS NOT DISTINCT FROM
    (SELECT incarnation FROM crossfade.checkpoint WHERE publisher = {{0}})
AND mapping_changes = (SELECT changes FROM crossfade.mapping) AND copies = {_COPIES}
"""  # noqa: S608
"""Whether a generation is about the rows that there are now; {0} is the publisher."""
_FIELDS = "generation, kind, tenant_id, incarnation, mapping_changes, copies, place, documents, rows"
_OPEN = f"""
SELECT {_FIELDS} FROM crossfade.generation
WHERE kind = $1 AND tenant_id IS NOT DISTINCT FROM $2 AND finished_at IS NULL AND NOT given_up
ORDER BY generation DESC LIMIT 1
"""  # noqa: S608
_GIVE_UP = """
UPDATE crossfade.generation SET given_up = true
WHERE kind = $1 AND tenant_id IS NOT DISTINCT FROM $2 AND finished_at IS NULL
"""
_BEGIN = f"""
INSERT INTO crossfade.generation (kind, tenant_id, incarnation, mapping_changes, copies, place, began_time)
VALUES ($1, $2, $3, $4, $5, $6::jsonb, $7) RETURNING {_FIELDS}
"""  # noqa: S608
_FORGET = "UPDATE crossfade.generation SET given_up = true WHERE generation <> $1 AND NOT given_up"


class Standing(NamedTuple):
    """What a generation is about: whatever of it changes may have written rows that were compared before."""

    incarnation: UUID | None
    mapping_changes: int
    copies: int
    """Begun so far, of all collections."""


async def standing(connection: Connection, publisher: str) -> Standing:
    """Return what a generation that begins now is about."""
    row = await connection.fetchrow(_STANDING, publisher)
    assert row is not None
    return Standing(*row)


async def resume_or_begin(
    connection: Connection,
    publisher: str,
    kind: str,
    tenant: UUID | None,
    *,
    afresh: bool = False,
    place: Mapping[str, Any] | None = None,
    began_time: int | None = None,
) -> Generation:
    """Return the generation that was left under way, if it still proves something; else begin one.

    ``place``: where the new one begins. ``began_time``: a clusterTime that MongoDB has reached.
    """
    async with connection.transaction():
        now = await standing(connection, publisher)
        row = await connection.fetchrow(_OPEN, kind, tenant)
        if row is not None and not afresh and (row[3], row[4], row[5]) == now:
            return _generation(row)
        await connection.execute(_GIVE_UP, kind, tenant)
        row = await connection.fetchrow(_BEGIN, kind, tenant, *now, orjson.dumps(place or {}), began_time)
        assert row is not None
        return _generation(row)


async def forget(connection: Connection, but: int) -> None:
    """Let no generation but one prove anything any more: what was changed since is not known."""
    await connection.execute(_FORGET, but)


def _generation(row: asyncpg.Record) -> Generation:
    place = orjson.loads(row[6]) if row[6] is not None else {}
    return Generation(row[0], row[1], row[2], row[3], row[4], row[5], place, row[7], row[8])


_ADVANCE = f"""
UPDATE crossfade.generation SET place = $2::jsonb, documents = documents + $3, rows = rows + $4,
    seconds = seconds + $5
WHERE generation = $1 AND finished_at IS NULL AND {STANDS.format("$6")} RETURNING true
"""  # noqa: S608
_SUMS = """
INSERT INTO crossfade.generation_sum AS s (generation, namespace, tenant_id, mongo_documents, mongo_hash,
    postgres_documents, postgres_hash)
SELECT $1, * FROM unnest($2::text[], $3::uuid[], $4::bigint[], $5::numeric[], $6::bigint[], $7::numeric[])
ON CONFLICT (generation, namespace, tenant_id) DO UPDATE SET
    mongo_documents = s.mongo_documents + excluded.mongo_documents,
    mongo_hash = mod(s.mongo_hash + excluded.mongo_hash, 2::numeric ^ 128),
    postgres_documents = s.postgres_documents + excluded.postgres_documents,
    postgres_hash = mod(s.postgres_hash + excluded.postgres_hash, 2::numeric ^ 128),
    last_read_at = clock_timestamp()
"""
# At the end of a generation, what is wrong and whose it is: no clock, and nothing that is looked up later.
_FINISH = f"""
WITH open AS (
    SELECT state, tenant_id, row_tenant_id FROM crossfade.mismatch WHERE {CONCERNS.format("$2::uuid")}
), held AS (
    SELECT tenant_id FROM crossfade.document
    WHERE state = 'refetch' AND ($2::uuid IS NULL OR coalesce(tenant_id, $2) = $2)
), wrong AS (
    SELECT {WHOSE} FROM open WHERE state = 'real' UNION SELECT coalesce(tenant_id, {ANY}) FROM held
)
UPDATE crossfade.generation SET finished_at = clock_timestamp(), documents = documents + $3,
    seconds = seconds + $4,
    settling = (SELECT count(*) FROM open WHERE state = 'settling'),
    mismatches = (SELECT count(*) FROM open WHERE state = 'real'), held = (SELECT count(*) FROM held),
    ended_moment = nextval('crossfade.moment'),
    unclean = (SELECT CASE WHEN count(*) > {MOST_TOLD} THEN ARRAY[{ANY}]
        ELSE coalesce(array_agg(tenant), '{{}}') END FROM wrong)
WHERE generation = $1 AND finished_at IS NULL AND {STANDS.format("$5")}
RETURNING settling, mismatches, held
"""  # noqa: S608
_FORGET_OLD = """
DELETE FROM crossfade.generation g WHERE generation <= (SELECT max(generation) FROM crossfade.generation) - $1
    AND generation NOT IN (
        SELECT max(generation) FROM crossfade.generation WHERE kind = 'full' AND finished_at IS NOT NULL
        GROUP BY tenant_id)
    AND (finished_at IS NOT NULL OR given_up)
"""


async def advance(
    connection: Connection,
    generation: int,
    place: Mapping[str, Any],
    sums: Mapping[SumKey, Sum],
    *,
    publisher: str,
    documents: int = 0,
    rows: int = 0,
    seconds: float = 0.0,
) -> bool:
    """Save how far a generation is, with what it read since. In one transaction with its mismatches.

    False: it is no longer wanted, as what it is about has changed or another process has begun it anew.
    """
    args = (generation, orjson.dumps(place), documents, rows, seconds, publisher)
    if not await connection.fetchval(_ADVANCE, *args):
        return False
    if sums:
        keys = list(sums)
        columns = zip(*sums.values(), strict=True)
        await connection.execute(
            _SUMS, generation, [key[0] for key in keys], [key[1] for key in keys], *map(list, columns)
        )
    return True


class Ended(NamedTuple):
    """What there was at a generation's end: documents that settle, mismatches, and documents held."""

    settling: int
    mismatches: int
    held: int


async def finish(
    connection: Connection, generation: Generation, publisher: str, documents: int = 0, seconds: float = 0.0
) -> Ended | None:
    """End a generation; return what of all, or of its tenant, does not fit. None: it is no longer wanted."""
    args = (generation.number, generation.tenant_id, documents, seconds, publisher)
    row = await connection.fetchrow(_FINISH, *args)
    await connection.execute(_FORGET_OLD, KEPT)
    return None if row is None else Ended(*row)


_HISTORY = """
SELECT generation, kind, tenant_id, started_at, finished_at, given_up, documents, rows, seconds, settling,
    mismatches, held, cardinality(unclean) > 0 AS unclean
FROM crossfade.generation WHERE $2::text IS NULL OR kind = $2 ORDER BY generation DESC LIMIT $1
"""
_SUMS_OF = """
SELECT namespace, tenant_id, mongo_documents, mongo_hash, postgres_documents, postgres_hash, first_read_at,
    last_read_at
FROM crossfade.generation_sum WHERE generation = $1 ORDER BY namespace, tenant_id
"""
_LAST_FULL = f"""
SELECT max(finished_at) FROM crossfade.generation
WHERE kind = 'full' AND tenant_id IS NULL AND {STANDS.format("$1")}
"""  # noqa: S608
_READY = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('crossfade.generation')
    AND attname = 'ended_moment')
"""  # the newest column that we need
_SEES_ALL = """
SELECT c.relname FROM unnest($1::text[]) AS t(name)
JOIN pg_class c ON c.oid = to_regclass(quote_ident(t.name))
WHERE c.relrowsecurity AND NOT (SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user)
    AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd IN ('r', '*')
        AND p.polpermissive AND pg_get_expr(p.polqual, p.polrelid) = 'true'
        AND (p.polroles = '{0}' OR EXISTS (
            SELECT FROM unnest(p.polroles) r WHERE pg_has_role(current_user, r, 'USAGE'))))
ORDER BY 1
"""


async def last_full(connection: Connection, publisher: str) -> Any:
    """Return when the last full generation ended that still proves something, or None."""
    return await connection.fetchval(_LAST_FULL, publisher)


async def require(store: Connection, reader: Connection, tables: Sequence[str]) -> None:
    """Raise `SchemaError` where the control schema is too old, or the reader would not see every row.

    `Transient` where PostgreSQL went away meanwhile.
    """
    try:
        if not await store.fetchval(_READY):
            raise SchemaError("the control schema is too old", remedy="run `crossfade schema apply`")
        hidden = [row[0] for row in await reader.fetch(_SEES_ALL, tables)]
    except asyncpg.PostgresError as error:
        if action_for(error)[0] is Action.RETRY:
            raise Transient(f"PostgreSQL does not answer ({describe(error)})", remedy="try again") from None
        raise SchemaError(
            f"PostgreSQL refuses the reconciler ({describe(error)})", remedy="run `crossfade schema apply`"
        ) from None
    if hidden:
        raise SchemaError(
            f"row-level security may hide rows of {', '.join(hidden)} from the reader",
            remedy="let CROSSFADE_POSTGRES_READER_DSN name crossfade_reader, which has a policy to see all",
        )


async def history(connection: Connection, limit: int, kind: str | None = None) -> list[asyncpg.Record]:
    """Return the newest generations, of a kind or of both, newest first."""
    return await connection.fetch(_HISTORY, limit, kind)


async def sums(connection: Connection, generation: int) -> list[asyncpg.Record]:
    """Return the sums of a full generation."""
    return await connection.fetch(_SUMS_OF, generation)
