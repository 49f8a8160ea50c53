"""Transactions that are open in PostgreSQL, prepared ones too: what closing a tenant's writes waits for."""

from __future__ import annotations

from typing import NamedTuple

from worker.errors import SchemaError
from worker.postgres.connect import Connection


class OpenTransaction(NamedTuple):
    """``name``: its pid, or the name under which it is prepared."""

    name: str
    role: str
    application: str
    seconds: float


# Those of our own roles are short, or are the copy's and the reconciler's reading.
_OPEN = """
SELECT pid::text, usename::text, coalesce(application_name, ''),
    extract(epoch FROM clock_timestamp() - xact_start)::float8
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    AND usename NOT LIKE 'crossfade%' AND clock_timestamp() - xact_start > make_interval(secs => $1)
UNION ALL
SELECT 'prepared ' || gid, owner::text, '', extract(epoch FROM clock_timestamp() - prepared)::float8
FROM pg_prepared_xacts WHERE database = current_database()
ORDER BY 4 DESC
"""


_MAY_SEE = "SELECT pg_has_role('pg_read_all_stats', 'USAGE')"


async def open_transactions(connection: Connection, older: float) -> list[OpenTransaction]:
    """Return transactions open for longer than ``older`` seconds, and all prepared ones, the oldest first.

    `SchemaError` when we may not see those of other roles.
    """
    if not await connection.fetchval(_MAY_SEE):
        raise SchemaError(
            "open transactions of other roles cannot be seen",
            remedy="as an administrator: GRANT pg_read_all_stats TO crossfade_control",
        )
    return [OpenTransaction(*row) for row in await connection.fetch(_OPEN, older)]


_UNANALYSED = """
SELECT t.name FROM unnest($1::text[]) AS t(name) JOIN pg_class c ON c.oid = to_regclass(quote_ident(t.name))
LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid
WHERE c.reltuples < 0 OR (s.last_analyze IS NULL AND s.last_autoanalyze IS NULL) ORDER BY 1
"""


async def unanalysed(connection: Connection, tables: list[str]) -> list[str]:
    """Return tables whose statistics were never made: the application's first queries would be slow."""
    return [row[0] for row in await connection.fetch(_UNANALYSED, tables)]
