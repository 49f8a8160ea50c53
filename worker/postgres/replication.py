"""Whether apply may write as a replica, and what foreign keys do to its rows where it may not."""

from __future__ import annotations

from collections.abc import Collection

from worker.mapping import Mapping
from worker.postgres.connect import Connection
from worker.postgres.constraints import skipped_by_replica
from worker.postgres.orphans import nested

_MAY = "SELECT has_parameter_privilege(current_user, 'session_replication_role', 'SET')"
_CASCADES = """
SELECT conrelid::regclass::text, conname::text, c.relname::text, p.relname::text
FROM pg_catalog.pg_constraint
JOIN pg_catalog.pg_class c ON c.oid = conrelid JOIN pg_catalog.pg_class p ON p.oid = confrelid
WHERE contype = 'f' AND conparentid = 0 AND confdeltype IN ('c', 'n', 'd')
    AND confrelid IN (SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name)
ORDER BY 1, 2
"""


async def why_no_replica(connection: Connection, mapping: Mapping) -> tuple[str, str] | None:
    """Return why the connection may not write as a replica, and what to do; None where it may."""
    if not await connection.fetchval(_MAY):
        return (
            "the sync role may not set session_replication_role",
            "GRANT SET ON PARAMETER session_replication_role TO crossfade_sync",
        )
    names = [table for one in mapping.collections.values() for table, _ in one.tables()]
    if skipped := await skipped_by_replica(connection, names):
        fault = "session_replication_role = replica would skip unique constraints that are deferrable"
        return fault, f"as a superuser: {'; '.join(skipped)}"
    return None


async def cascades(
    connection: Connection, mapping: Mapping, below: Collection[str] | None = None
) -> list[str]:
    """Return the foreign keys that would delete or change rows whose documents are still there.

    ``below``: only where the rows of these tables are deleted.

    When apply deletes a row and is no replica, PostgreSQL follows ON DELETE CASCADE, SET NULL and SET
    DEFAULT. That of a child table to its own document does no harm: apply deletes those rows as well.
    """
    names = [table for one in mapping.collections.values() for table, _ in one.tables()]
    own = {(lower.table, upper.table) for upper, lower in nested(mapping)}
    found = await connection.fetch(_CASCADES, names if below is None else list(below))
    return [f"{table} ({name})" for table, name, *tables in found if tuple(tables) not in own]
