"""What is ours in PostgreSQL, named and removed: `crossfade finish`. As an administrator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import orjson

from worker.postgres import id_defaults
from worker.postgres.connect import Connection
from worker.postgres.target import quoted

ROLES = ("crossfade_sync", "crossfade_reader", "crossfade_control", "crossfade_owner")
"""Roles of ours. crossfade_lookup stays: it owns a function of the reference application."""

_UNFINISHED = """
SELECT phase::text, count(*) FROM crossfade.tenant WHERE phase <> 'complete' GROUP BY 1 ORDER BY 1
"""
_CONNECTED = """
SELECT application_name, count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'crossfade %' AND pid <> pg_backend_pid()
GROUP BY 1 ORDER BY 1
"""
_TRIGGERS = """
SELECT t.tgrelid::regclass::text, t.tgname::text FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE p.pronamespace = to_regnamespace('crossfade') AND NOT t.tgisinternal
    AND (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = t.tgrelid) <> p.pronamespace
ORDER BY 1, 2
"""
_POLICIES = """
SELECT p.polrelid::regclass::text, p.polname::text FROM pg_catalog.pg_policy p
WHERE p.polroles <> '{0}' AND p.polroles <@ ARRAY(SELECT oid FROM pg_roles WHERE rolname = ANY($1::text[]))
ORDER BY 1, 2
"""
_MAY_SKIP_TRIGGERS = """
SELECT to_regrole('crossfade_sync') IS NOT NULL
    AND has_parameter_privilege('crossfade_sync', 'session_replication_role', 'SET')
"""
_EXPORTED = {
    "transitions": """
SELECT tenant_id::text, from_phase::text, to_phase::text, epoch, at::text, database_user::text, os_user,
    reason, evidence::text FROM crossfade.transition ORDER BY transition_id
""",
    "audit": """
SELECT at::text, database_user::text, os_user, action, subject::text, reason
FROM crossfade.audit ORDER BY audit_id
""",
}
_JSON = frozenset({"evidence", "subject"})


class Ours(NamedTuple):
    """What would be removed: triggers, policies and defaults on the application's tables, and our schema."""

    triggers: list[tuple[str, str]]
    policies: list[tuple[str, str]]
    defaults: list[tuple[str, str]]
    schema: bool


async def unfinished(connection: Connection) -> dict[str, int]:
    """Return how many tenants are in phases other than ``complete``."""
    return {row[0]: row[1] for row in await connection.fetch(_UNFINISHED)}


async def complete(connection: Connection) -> set[UUID]:
    """Return the tenants that are complete."""
    rows = await connection.fetch("SELECT tenant_id FROM crossfade.tenant WHERE phase = 'complete'")
    return {UUID(int=row[0].int) for row in rows}


async def connected(connection: Connection) -> dict[str, int]:
    """Return processes of ours that are connected, by name."""
    return {row[0].removeprefix("crossfade "): row[1] for row in await connection.fetch(_CONNECTED)}


async def ours(connection: Connection) -> Ours:
    """Return what is ours in this database."""
    there: Any = await connection.fetchval("SELECT to_regnamespace('crossfade') IS NOT NULL")
    triggers = [(row[0], row[1]) for row in await connection.fetch(_TRIGGERS)]
    policies = [(row[0], row[1]) for row in await connection.fetch(_POLICIES, list(ROLES))]
    return Ours(triggers, policies, await id_defaults.installed(connection), bool(there))


async def export(connection: Connection, what: str) -> AsyncIterator[dict[str, Any]]:
    """Yield the rows of ``transitions`` or of the ``audit`` log, the oldest first."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        async for row in connection.cursor(_EXPORTED[what]):
            told = dict(row)
            for name in _JSON & told.keys():
                told[name] = orjson.loads(told[name])
            yield told


async def remove(connection: Connection) -> list[str]:
    """Remove it all in one transaction; return roles that are left, for other databases use them."""
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        # Of the whole cluster, where another migration may need it as well.
        may = await connection.fetchval(_MAY_SKIP_TRIGGERS)
        found = await ours(connection)
        for table, trigger in found.triggers:
            await connection.execute(f"DROP TRIGGER {quoted(trigger)} ON {table}")
        await id_defaults.remove(connection)
        await connection.execute("DROP SCHEMA IF EXISTS crossfade CASCADE")
        for role in ROLES:
            if await connection.fetchval("SELECT to_regrole($1) IS NOT NULL", role):
                await connection.execute(f"DROP OWNED BY {quoted(role)}")
    left: list[str] = []
    for role in ROLES:
        try:
            await connection.execute(f"DROP ROLE IF EXISTS {quoted(role)}")
        except (
            asyncpg.DependentObjectsStillExistError,
            asyncpg.InsufficientPrivilegeError,
            asyncpg.ObjectInUseError,
        ):
            left.append(role)
    if may and "crossfade_sync" in left:
        await connection.execute("GRANT SET ON PARAMETER session_replication_role TO crossfade_sync")
    return left
