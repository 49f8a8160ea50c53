"""The fence in PostgreSQL: triggers on the application's tables (docs/protocol.md, Where decisions live).

Installed once, by an administrator; which tenants they refuse, their phases say. A table's partitions have
them too, for a statement's trigger fires only for the table that the statement names.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from worker.mapping import Mapping, Plans
from worker.postgres.connect import Connection
from worker.postgres.target import quoted

FENCE, FENCE_ALL, FENCE_TRUNCATE = "!crossfade_fence", "!crossfade_fence_all", "!crossfade_fence_truncate"
"""The triggers of a table: named so that they fire before the application's own."""

_SYNC = "session_user <> 'crossfade_sync'"
_NAMED = """
WITH RECURSIVE named AS (
    SELECT t.name, to_regclass(quote_ident(t.name))::oid AS oid, t.walled
    FROM unnest($1::text[], $2::boolean[]) AS t(name, walled)
    UNION
    SELECT n.name, i.inhrelid, n.walled FROM named n JOIN pg_catalog.pg_inherits i ON i.inhparent = n.oid
)"""
_TABLES = f"""
{_NAMED}
SELECT name, oid::regclass::text AS qualified, oid, walled,
    ARRAY(SELECT g.tgname::text FROM pg_catalog.pg_trigger g WHERE g.tgrelid = named.oid
        AND g.tgname LIKE '!crossfade%' AND g.tgenabled = 'O')
FROM named ORDER BY name, oid
"""  # noqa: S608 - our own text
# A column is enough, or a partition; and SET ROLE gives what NOINHERIT does not.
_ROLES = f"""
{_NAMED}, classes AS (
    SELECT named.name, c.oid, c.relowner FROM named JOIN pg_catalog.pg_class c ON c.oid = named.oid
), able AS MATERIALIZED (
    SELECT m.oid, array_agg(DISTINCT c.name) AS names FROM classes c CROSS JOIN pg_catalog.pg_roles m
    WHERE m.oid = c.relowner OR has_table_privilege(m.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
        OR has_any_column_privilege(m.oid, c.oid, 'INSERT, UPDATE')
    GROUP BY m.oid
), past AS MATERIALIZED (
    SELECT oid, rolsuper FROM pg_catalog.pg_roles m
    WHERE rolsuper OR has_parameter_privilege(m.oid, 'session_replication_role', 'SET')
), owner AS MATERIALIZED (SELECT DISTINCT relowner AS oid FROM classes)
SELECT r.rolname::text,
    (SELECT string_agg(DISTINCT name, ', ' ORDER BY name) FROM able, unnest(able.names) AS name
        WHERE pg_has_role(r.oid, able.oid, 'MEMBER')),
    EXISTS (SELECT FROM past WHERE rolsuper AND pg_has_role(r.oid, past.oid, 'MEMBER')),
    EXISTS (SELECT FROM past WHERE pg_has_role(r.oid, past.oid, 'MEMBER')),
    EXISTS (SELECT FROM owner WHERE pg_has_role(r.oid, owner.oid, 'MEMBER')), r.rolbypassrls
FROM pg_catalog.pg_roles r
WHERE r.rolcanlogin AND r.rolname <> 'crossfade_sync'
    AND EXISTS (SELECT FROM able WHERE pg_has_role(r.oid, able.oid, 'MEMBER'))
ORDER BY 1
"""  # noqa: S608


class Fenced(NamedTuple):
    """A table, or a partition of one, and the fence's triggers that are on. ``walled``: has tenants' rows."""

    table: str
    qualified: str
    walled: bool
    triggers: frozenset[str]

    @property
    def missing(self) -> list[str]:
        """The triggers that it lacks."""
        wanted = [FENCE, FENCE_ALL, FENCE_TRUNCATE] if self.walled else [FENCE_ALL, FENCE_TRUNCATE]
        return [one for one in wanted if one not in self.triggers]


PAST = "may switch the fence off"
"""The kind of a `Writer` that need not even change anything of the application's for it."""


class Writer(NamedTuple):
    """A role that may log in and write mapped tables, by itself or by SET ROLE.

    ``past_triggers``: it may switch the fence off for itself, as every superuser may. ``owner``: it is the
    owner of such a table, or may become it, and so may switch its triggers off. ``unbound``: row-level
    security does not bind it.
    """

    role: str
    tables: str
    superuser: bool
    past_triggers: bool
    owner: bool = False
    unbound: bool = False

    @property
    def kind(self) -> str:
        """What the fence is to it, for a person."""
        if self.superuser:
            return "superusers, who may as well"
        if self.past_triggers:
            return PAST
        if self.owner:
            return "owners of tables, who may switch their triggers off"
        return "refused always, for BYPASSRLS" if self.unbound else "fenced"


async def tables(connection: Connection, mapping: Mapping) -> list[Fenced]:
    """Return every mapped table and partition, with the triggers that it has."""
    rows = await connection.fetch(_TABLES, *_plans(mapping))
    return [Fenced(row[0], row[1], row[3], frozenset(row[4])) for row in rows if row[2] is not None]


async def install(connection: Connection, mapping: Mapping) -> int:
    """Create the triggers that are missing, as the tables' owner or a superuser; return how many tables had
    to be changed. One transaction each, for which the table is locked: set a lock_timeout.
    """
    changed = 0
    for table in await tables(connection, mapping):
        if not table.missing:
            continue
        async with connection.transaction():
            await connection.execute("".join(f"{one};\n" for one in _create(table)))
        changed += 1
    return changed


async def remove(connection: Connection, mapping: Mapping) -> int:
    """Drop the triggers; return of how many tables."""
    found = [table for table in await tables(connection, mapping) if table.triggers]
    for table in found:
        await connection.execute("".join(f"{one};\n" for one in _drop(table)))
    return len(found)


async def writers(connection: Connection, mapping: Mapping) -> list[Writer]:
    """Return the roles that may log in and write a mapped table, a partition or a column, but for ours."""
    return [Writer(*row) for row in await connection.fetch(_ROLES, *_plans(mapping))]


def _plans(mapping: Mapping) -> tuple[list[str], list[bool]]:
    plans = Plans(mapping).tables()
    return [plan.table for plan in plans], [plan.tenant is not None for plan in plans]


def _drop(table: Fenced) -> Iterable[str]:
    for name in (FENCE, FENCE_ALL, FENCE_TRUNCATE):
        yield f"DROP TRIGGER IF EXISTS {quoted(name)} ON {table.qualified}"


def _create(table: Fenced) -> Iterable[str]:
    yield from _drop(table)
    writes, all_rows = "INSERT OR UPDATE OR DELETE", "crossfade.fence_all()"
    # A cascade, or a trigger of the application, acts for a statement that the fence has let through; a
    # cascade does so as the table's owner, past row-level security.
    bound = f"(row_security_active('{table.qualified}'::regclass) OR pg_trigger_depth() > 0)"
    if table.walled:
        yield (
            f"CREATE TRIGGER {quoted(FENCE)} BEFORE {writes} ON {table.qualified} FOR EACH STATEMENT "
            f"WHEN ({_SYNC} AND {bound}) EXECUTE FUNCTION crossfade.fence()"
        )
    unbound = f"{_SYNC} AND NOT {bound}" if table.walled else _SYNC
    yield (
        f"CREATE TRIGGER {quoted(FENCE_ALL)} BEFORE {writes} ON {table.qualified} FOR EACH STATEMENT "
        f"WHEN ({unbound}) EXECUTE FUNCTION {all_rows}"
    )
    yield (
        f"CREATE TRIGGER {quoted(FENCE_TRUNCATE)} BEFORE TRUNCATE ON {table.qualified} FOR EACH STATEMENT "
        f"WHEN ({_SYNC}) EXECUTE FUNCTION {all_rows}"
    )
