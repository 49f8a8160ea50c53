"""Ids of rows born in PostgreSQL, where a collection's ids are ObjectIds: by a default of the column.

It makes what an ObjectId becomes, so that the way back can name the document as the application's code for
MongoDB expects. Only a column without any default gets it. The catalog tells which have it, and so that there
was none before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from worker.postgres.connect import Connection
from worker.postgres.target import quoted


class IdColumn(NamedTuple):
    """A table's id, or a partition's. ``default``: SQL, of an identity or generated column what it is."""

    table: str
    column: str
    default: str | None
    ours: bool


_OURS = """EXISTS (
    SELECT FROM pg_catalog.pg_depend p WHERE p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
        AND p.refclassid = 'pg_proc'::regclass AND p.refobjid = to_regprocedure('crossfade.objectid_uuid()')
)"""
_COLUMNS = f"""
WITH RECURSIVE named AS (
    SELECT to_regclass(quote_ident(k.name))::oid AS oid, k.id
    FROM unnest($1::text[], $2::text[]) AS k(name, id)
    UNION
    SELECT i.inhrelid, n.id FROM named n JOIN pg_catalog.pg_inherits i ON i.inhparent = n.oid
)
SELECT n.oid::regclass::text, a.attname::text,
    CASE WHEN a.attidentity <> '' THEN 'an identity'
        ELSE coalesce(pg_get_expr(d.adbin, d.adrelid), t.typdefault) END,
    {_OURS}
FROM named n JOIN pg_catalog.pg_attribute a ON a.attrelid = n.oid AND a.attname = n.id AND NOT a.attisdropped
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
ORDER BY 1
"""  # noqa: S608 - our own text
_INSTALLED = f"""
SELECT d.adrelid::regclass::text, a.attname::text FROM pg_catalog.pg_attrdef d
JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
WHERE {_OURS} ORDER BY 1, 2
"""  # noqa: S608


async def columns(connection: Connection, ids: Sequence[tuple[str, str]]) -> list[IdColumn]:
    """Return these id columns, (table, column), with those of the tables' partitions."""
    rows = await connection.fetch(_COLUMNS, [table for table, _ in ids], [column for _, column in ids])
    return [IdColumn(*row) for row in rows]


async def install(connection: Connection, ids: Sequence[tuple[str, str]]) -> list[IdColumn]:
    """Give columns that have no default ours, as the tables' owner; return all as they were before.

    Each table is locked for an instant: set a lock_timeout.
    """
    found = await columns(connection, ids)
    for one in found:
        if one.default is None:
            await connection.execute(
                f"ALTER TABLE ONLY {one.table} ALTER COLUMN {quoted(one.column)} "
                "SET DEFAULT crossfade.objectid_uuid()"
            )
    return found


async def installed(connection: Connection) -> list[tuple[str, str]]:
    """Return the columns, (qualified table, column), whose default is ours."""
    return [(row[0], row[1]) for row in await connection.fetch(_INSTALLED)]


async def remove(connection: Connection) -> None:
    """Take our defaults away: as before, these columns have none."""
    for table, column in await installed(connection):
        await connection.execute(f"ALTER TABLE ONLY {table} ALTER COLUMN {quoted(column)} DROP DEFAULT")
