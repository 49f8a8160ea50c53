"""Triggers that note in the outbox which documents the application's statements touch.

Three to a table, one for each kind of statement, with its rows as transition tables: one insertion a
statement, whatever it changes. They look at nothing but who writes. The sync's own sessions are replicas, for
which they do not fire, and where that cannot be had they know its role by name; but for what apply replays
into PostgreSQL, which it says in `crossfade.replay`. They never look at the phase,
for a look could miss what the fence let through; and never NOTIFY, for which all commits would queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from worker.mapping import CollectionPlan, TablePlan
from worker.mapping import Mapping as MappingFile
from worker.postgres.connect import Connection
from worker.postgres.target import quoted

PREFIX = "crossfade_capture"
"""What the names of these triggers begin with."""
_LONGEST = 63  # bytes of a name

_KINDS = {
    "insert": "REFERENCING NEW TABLE AS after",
    "update": "REFERENCING OLD TABLE AS before NEW TABLE AS after",
    "delete": "REFERENCING OLD TABLE AS before",
}


class _Captured(NamedTuple):
    """A table whose rows are part of a collection's documents. ``tenant``: SQL, of its row."""

    name: str
    namespace: str
    row_id: str
    tenant: str

    @property
    def function(self) -> str:
        return "crossfade." + quoted(function_name(self.name))


def function_name(table: str) -> str:
    """Return the name of a table's function: one of its own, however long the table's is."""
    name = f"capture_{table}"
    if len(name.encode()) > _LONGEST:  # PostgreSQL would cut it, and two tables' functions be one
        name = f"capture_{blake2b(table.encode(), digest_size=16).hexdigest()}"
    return name


def _captured(mapping: MappingFile) -> Iterator[_Captured]:
    """Yield the tables of tenants; those whose rows all tenants share are switched otherwise."""
    for name, one in mapping.collections.items():
        if one.tenant is None:
            continue
        plan, namespace = CollectionPlan(one), str(mapping.logical(name))
        for table in plan.tables:
            yield _Captured(table.table, namespace, quoted(table.key[0]), _tenant(table))


def _tenant(table: TablePlan) -> str:
    # Where a child row does not say, it is the one that the fence has let through.
    return (
        quoted(table.tenant)
        if table.tenant
        else "nullif(current_setting('app.current_tenant_id', true), '')::uuid"
    )


_FUNCTION = """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $capture$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
        SELECT {number}, d.row_id, d.tenant_id, coalesce(t.epoch, 0)
        FROM (SELECT DISTINCT {row_id}, {tenant} FROM after) AS d (row_id, tenant_id)
        LEFT JOIN crossfade.tenant t USING (tenant_id);
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
        SELECT {number}, d.row_id, d.tenant_id, coalesce(t.epoch, 0)
        FROM (SELECT {row_id}, {tenant} FROM before UNION SELECT {row_id}, {tenant} FROM after)
            AS d (row_id, tenant_id)
        LEFT JOIN crossfade.tenant t USING (tenant_id);
    ELSE
        INSERT INTO crossfade.outbox (collection_id, row_id, tenant_id, epoch)
        SELECT {number}, d.row_id, d.tenant_id, coalesce(t.epoch, 0)
        FROM (SELECT DISTINCT {row_id}, {tenant} FROM before) AS d (row_id, tenant_id)
        LEFT JOIN crossfade.tenant t USING (tenant_id);
    END IF;
    RETURN NULL;
END
$capture$;
REVOKE ALL ON FUNCTION {function}() FROM PUBLIC
"""
_TRIGGER = """
CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table} {referencing}
    FOR EACH STATEMENT
    WHEN (session_user <> 'crossfade_sync' OR current_setting('crossfade.replay', true) = 'on')
    EXECUTE FUNCTION {function}()
"""


async def install_capture(connection: Connection, mapping: MappingFile, numbers: Mapping[str, int]) -> None:
    """Install the triggers, or mend them; as a role that owns the tables and is a member of crossfade_owner.

    ``numbers``: those of the collections in the ledger's keys, by logical namespace. One transaction for each
    table, which is locked against writers for as long as making its triggers takes: set a lock_timeout.
    """
    for one in _captured(mapping):
        async with connection.transaction():
            await connection.execute("SET LOCAL ROLE crossfade_owner")
            await connection.execute(
                _FUNCTION.format(
                    function=one.function,
                    number=int(numbers[one.namespace]),
                    row_id=one.row_id,
                    tenant=one.tenant,
                )
            )
            await connection.execute("RESET ROLE")
            for kind, referencing in _KINDS.items():
                await connection.execute(
                    _TRIGGER.format(
                        trigger=f"{PREFIX}_{kind}",
                        event=kind.upper(),
                        table=quoted(one.name),
                        referencing=referencing,
                        function=one.function,
                    )
                )


_OURS = """
SELECT t.tgrelid::regclass::text, t.tgname::text FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
WHERE t.tgname LIKE 'crossfade\\_capture%' AND p.pronamespace = 'crossfade'::regnamespace
    AND NOT t.tgisinternal
"""
_FUNCTIONS = """
SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc p
WHERE p.pronamespace = 'crossfade'::regnamespace AND p.proname LIKE 'capture\\_%'
    AND p.prorettype = 'trigger'::regtype
"""


async def remove_capture(connection: Connection) -> None:
    """Take all of these triggers away, with their functions."""
    async with connection.transaction():
        for table, trigger in await connection.fetch(_OURS):
            await connection.execute(f"DROP TRIGGER {quoted(trigger)} ON {table}")
        for (function,) in await connection.fetch(_FUNCTIONS):
            await connection.execute(f"DROP FUNCTION {function}")


_STATES = """
SELECT k.name, to_regclass(quote_ident(k.name)) IS NOT NULL,
    EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = to_regclass(quote_ident(k.name))),
    ARRAY(
        SELECT t.tgname || ' ' || t.tgenabled::text FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        WHERE t.tgrelid = to_regclass(quote_ident(k.name)) AND p.pronamespace = 'crossfade'::regnamespace
            AND p.prosecdef AND p.proowner = 'crossfade_owner'::regrole
    )
FROM unnest($1::text[]) AS k(name)
"""


async def capture_faults(connection: Connection, mapping: MappingFile) -> list[str]:
    """Return what keeps the application's writes from being captured, a line each; nothing: all is well."""
    names = [one.name for one in _captured(mapping)]
    faults: list[str] = []
    for table, there, parts, triggers in await connection.fetch(_STATES, names):
        if not there:
            faults.append(f"table {table} is missing")
            continue
        if parts:
            faults.append(
                f"table {table} has partitions, and what is written to one directly is not captured"
            )
        for kind in _KINDS:
            if f"{PREFIX}_{kind} O" in triggers:
                continue
            off = any(one.startswith(f"{PREFIX}_{kind} ") for one in triggers)
            faults.append(f"trigger {PREFIX}_{kind} of {table} is {'switched off' if off else 'missing'}")
    return faults
