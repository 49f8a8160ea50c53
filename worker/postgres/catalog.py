"""What PostgreSQL says of the tables that the mapping names, as the role that asks sees and may use them.

Names are found as in a statement without a schema: by the role's search_path. A column of a domain is told
as the type below it, with the domain's NOT NULL and default.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from worker.postgres.connect import Connection

WRITES = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""What apply does to a table, as privileges and policies name it."""

TABLE, PARTITIONED = "r", "p"
KINDS = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "S": "a sequence",
    "i": "an index",
}
"""Relations that are no table."""


class LiveColumn(NamedTuple):
    """A column. ``type`` is PostgreSQL's internal name, of the elements where it is an array."""

    name: str
    shown: str  # the type as SQL writes it
    type: str
    builtin: bool
    modifier: int  # -1: none; a varchar's length + 4, a timestamptz's digits
    array: bool
    labels: tuple[str, ...] | None  # of an enumerated type
    visible: bool  # whether the type's name alone, without a schema, finds it
    not_null: bool
    filled: bool  # where an INSERT leaves it out, by a default, an identity or an expression
    always: str  # what forbids writing it: "generated", "identity", or nothing


class LiveKey(NamedTuple):
    """A unique index over whole rows and plain columns."""

    columns: frozenset[str]
    immediate: bool


class LivePolicy(NamedTuple):
    """A row-level security policy for the role that asks."""

    name: str
    commands: tuple[str, ...]
    permissive: bool
    reads_all: bool  # USING (true)
    writes_all: bool  # WITH CHECK (true)


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A relation that a name finds."""

    qualified: str  # as SQL reads it
    kind: str
    unlogged: bool
    secured: bool
    forced: bool
    walled: bool  # row-level security binds the role that asks
    lacks: Sequence[str]  # privileges among WRITES
    columns: dict[str, LiveColumn] = field(default_factory=dict)
    keys: list[LiveKey] = field(default_factory=list)
    policies: list[LivePolicy] = field(default_factory=list)

    def all_seen(self) -> bool:
        """Whether the role that asks reads the rows of every tenant."""
        if "SELECT" in self.lacks:
            return False
        reading = [policy for policy in self.policies if "SELECT" in policy.commands]
        return not self.walled or (
            all(policy.permissive or policy.reads_all for policy in reading)
            and any(policy.permissive and policy.reads_all for policy in reading)
        )


@dataclass(frozen=True, slots=True)
class Catalog:
    """The tables that were found, and what may help with those that were not."""

    role: str
    unwalled: bool  # the role passes by every row-level security
    tables: Mapping[str, LiveTable]
    elsewhere: Mapping[str, Sequence[str]]
    """Of names that the search_path does not find: the schemas that have them."""
    others: Sequence[str]
    """Further tables that the search_path finds."""

    def unseen(self, *tables: str) -> str | None:
        """Return what to tell where the role does not see all rows of these tables, as SQL writes them."""
        live = {table.qualified: table for table in self.tables.values()}
        for table in tables:
            if table not in live or not live[table].all_seen():
                return f"{self.role} does not see all rows of {table}"
        return None


_ROLE = """
SELECT current_user::text, rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user
"""
_TABLES = """
SELECT w.name, c.oid, c.oid::regclass::text AS qualified, c.relkind::text AS kind,
    c.relpersistence = 'u' AS unlogged, c.relrowsecurity AS secured, c.relforcerowsecurity AS forced,
    row_security_active(c.oid) AS walled,
    ARRAY(SELECT p FROM unnest($2::text[]) AS p WHERE NOT has_table_privilege(c.oid, p)) AS lacks
FROM unnest($1::text[], $3::text[]) AS w(name, written)
JOIN pg_catalog.pg_class c ON c.oid = to_regclass(w.written)
"""
_COLUMNS = """
WITH RECURSIVE columns AS (
    SELECT attrelid, attnum, attname, atttypid AS type, atttypmod AS modifier, attnotnull AS not_null,
        atthasdef OR attidentity <> '' AS filled, format_type(atttypid, atttypmod) AS shown,
        CASE WHEN attgenerated <> '' THEN 'generated' WHEN attidentity = 'a' THEN 'identity' ELSE '' END
            AS always
    FROM pg_catalog.pg_attribute WHERE attrelid = ANY($1::oid[]) AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT attrelid, attnum, attname, typbasetype, typtypmod, not_null OR typnotnull,
        filled OR typdefault IS NOT NULL, shown, always
    FROM columns JOIN pg_catalog.pg_type t ON t.oid = columns.type AND t.typtype = 'd'
)
SELECT attrelid, attname, shown, e.typname, e.typnamespace = 'pg_catalog'::regnamespace, modifier,
    t.oid <> e.oid,
    CASE WHEN e.typtype = 'e' THEN ARRAY(
        SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = e.oid ORDER BY enumsortorder) END,
    pg_type_is_visible(e.oid), not_null, filled, always
FROM columns JOIN pg_catalog.pg_type t ON t.oid = columns.type AND t.typtype <> 'd'
JOIN pg_catalog.pg_type e ON e.oid = CASE t.typcategory WHEN 'A' THEN t.typelem ELSE t.oid END
ORDER BY attrelid, attnum
"""
_KEYS = """
SELECT indrelid, indimmediate, ARRAY(
    SELECT attname::text FROM pg_catalog.pg_attribute
    WHERE attrelid = indrelid AND attnum = ANY((indkey::smallint[])[0:indnkeyatts - 1]))
FROM pg_catalog.pg_index
WHERE indrelid = ANY($1::oid[]) AND indisunique AND indisvalid AND indpred IS NULL AND indexprs IS NULL
"""
_POLICIES = """
SELECT polrelid, polname::text, CASE polcmd
    WHEN 'r' THEN '{SELECT}' WHEN 'a' THEN '{INSERT}' WHEN 'w' THEN '{UPDATE}' WHEN 'd' THEN '{DELETE}'
    ELSE '{SELECT,INSERT,UPDATE,DELETE}' END::text[], polpermissive,
    coalesce(pg_get_expr(polqual, polrelid) = 'true', false),
    coalesce(pg_get_expr(polwithcheck, polrelid) = 'true', false)
FROM pg_catalog.pg_policy
WHERE polrelid = ANY($1::oid[])
    AND EXISTS (SELECT FROM unnest(polroles) AS r WHERE r = 0 OR pg_has_role(r, 'USAGE'))
ORDER BY polname
"""
_ELSEWHERE = """
SELECT relname::text, nspname::text
FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
WHERE relname = ANY($1::text[]) AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1, 2
"""
_OTHERS = """
SELECT relname::text FROM pg_catalog.pg_class
WHERE relkind IN ('r', 'p') AND relnamespace <> 'pg_catalog'::regnamespace AND pg_table_is_visible(oid)
    AND relname <> ALL($1::text[])
"""


async def read_catalog(connection: Connection, names: Mapping[str, str]) -> Catalog:
    """Return what the connection's role finds, in a few queries for all of them.

    ``names`` has each name as SQL writes it; the tables are told by the name.
    """
    role, unwalled = await connection.fetchrow(_ROLE)  # pyright: ignore[reportGeneralTypeIssues]
    tables: dict[int, LiveTable] = {}
    live: dict[str, LiveTable] = {}
    for name, oid, *table in await connection.fetch(_TABLES, list(names), WRITES, list(names.values())):
        live[name] = tables.setdefault(oid, LiveTable(*table))
    oids = list(tables)
    for oid, *column in await connection.fetch(_COLUMNS, oids):
        found = LiveColumn._make(column)
        labels = None if found.labels is None else tuple(found.labels)
        tables[oid].columns[found.name] = found._replace(labels=labels)
    for oid, immediate, columns in await connection.fetch(_KEYS, oids):
        tables[oid].keys.append(LiveKey(frozenset(columns), immediate))
    for oid, name, commands, *more in await connection.fetch(_POLICIES, oids):
        tables[oid].policies.append(LivePolicy(name, tuple(commands), *more))
    elsewhere: dict[str, list[str]] = defaultdict(list)
    others: list[str] = []
    if missing := [name for name in names if name not in live]:
        for name, schema in await connection.fetch(_ELSEWHERE, missing):
            elsewhere[name].append(schema)
        others = [row[0] for row in await connection.fetch(_OTHERS, list(names))]
    return Catalog(role, unwalled, live, elsewhere, others)
