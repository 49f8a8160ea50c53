"""The target's deferrable constraints: which events of a set cannot be among those that fit together.

PostgreSQL names one row that breaks a constraint, and then the transaction is lost. Asked by a query instead,
it names all of them, so that a set of events is split by what is wrong, not by halves, which would part
those that only fit together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from worker.mapping import TablePlan
from worker.postgres.connect import Connection
from worker.postgres.target import quoted


class Refused(NamedTuple):
    """A document that cannot be written, given the rows that are not of the set."""

    table: str
    row_id: UUID
    kind: str  # the dead letter's: foreign_key, unique
    constraint: str


_TABLES = "tables AS (SELECT n AS name, to_regclass(quote_ident(n)) AS oid FROM unnest($1::text[]) AS n)"
_COLUMNS = """ARRAY(
    SELECT a.attname::text FROM unnest({key}) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = {table} AND a.attnum = k.number ORDER BY k.place)"""
_CATALOG = f"""
WITH {_TABLES}
SELECT c.conname::text, c.contype::text, t.name, p.name,
    {_COLUMNS.format(key="c.conkey", table="c.conrelid")},
    {_COLUMNS.format(key="c.confkey", table="c.confrelid")}
FROM pg_constraint c JOIN tables t ON t.oid = c.conrelid LEFT JOIN tables p ON p.oid = c.confrelid
WHERE c.condeferrable AND c.contype IN ('u', 'f')
ORDER BY c.contype DESC, 1
"""  # noqa: S608 - names of catalog columns
_SKIPPED = f"""
WITH {_TABLES}
SELECT DISTINCT format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', t.oid, g.tgname)
FROM pg_constraint c JOIN tables t ON t.oid = c.conrelid JOIN pg_trigger g ON g.tgconstraint = c.oid
WHERE c.condeferrable AND c.contype IN ('u', 'p', 'x') AND g.tgenabled NOT IN ('A', 'R')
"""  # noqa: S608


async def skipped_by_replica(connection: Connection, tables: Sequence[str]) -> list[str]:
    """Return what a superuser must do for `session_replication_role` = replica to skip no unique constraint.

    A deferrable one is checked by a trigger that is skipped unless it is ENABLE ALWAYS: duplicates would get
    in, silently.
    """
    return [row[0] for row in await connection.fetch(_SKIPPED, tables)]


class Constraints:
    """The deferrable unique constraints and foreign keys between the target's tables."""

    def __init__(self, queries: Iterable[_Query]) -> None:
        self._queries = list(queries)

    @classmethod
    async def read(
        cls, connection: Connection, plans: Collection[TablePlan], *, foreign_keys: bool
    ) -> Constraints:
        """Read them from the catalog; without foreign keys where the session does not check them."""
        by_name = {plan.table: plan for plan in plans}
        queries: list[_Query] = []
        for name, type_, table, parent, columns, parents in await connection.fetch(_CATALOG, list(by_name)):
            if type_ == "u":
                queries.append(_unique(name, by_name[table], columns))
            elif foreign_keys and parent is not None:
                queries += _references(name, by_name[table], by_name[parent], columns, parents)
        return cls(queries)

    async def refused(self, connection: Connection, ids: Mapping[str, Sequence[UUID]]) -> list[Refused]:
        """Return which documents of a written set break a constraint, however the rest of it is reduced.

        ``ids``: the set's row ids by table. Rows that break one only because of others of the set are not
        told.
        """
        return [
            Refused(query.table, row[0], query.kind, query.constraint)
            for query in self._queries
            if any(ids.get(table) for table in query.tables)
            for row in await connection.fetch(query.sql, *(ids.get(table, []) for table in query.tables))
        ]


class _Query(NamedTuple):
    sql: str  # its parameters: the set's row ids in each of ``tables``
    tables: tuple[str, ...]
    table: str  # whose row ids it returns
    kind: str
    constraint: str


def _unique(name: str, plan: TablePlan, columns: list[str]) -> _Query:
    table, first = quoted(plan.table), quoted(plan.key[0])
    same = " AND ".join(f"o.{quoted(column)} = m.{quoted(column)}" for column in columns)
    sql = (
        f"SELECT DISTINCT m.{first} FROM {table} m JOIN {table} o ON {same} "  # noqa: S608 - identifiers
        f"WHERE m.{first} = ANY($1::uuid[]) AND o.{first} <> ALL($1::uuid[])"
    )
    return _Query(sql, (plan.table,), plan.table, "unique", name)


def _references(
    name: str, child: TablePlan, parent: TablePlan, columns: list[str], parents: list[str]
) -> list[_Query]:
    if parent.key[0] not in parents:
        return []
    table, first = quoted(child.table), quoted(child.key[0])
    refers = quoted(columns[parents.index(parent.key[0])])
    given = " AND ".join(f"m.{quoted(column)} IS NOT NULL" for column in columns)
    same = " AND ".join(f"o.{quoted(p)} = m.{quoted(c)}" for c, p in zip(columns, parents, strict=True))
    orphans = (
        f"FROM {table} m WHERE {given} AND NOT EXISTS (SELECT FROM {quoted(parent.table)} o WHERE {same})"
    )
    tables = (child.table, parent.table)
    # The parent is not there, and none of the set has removed it. Another tenant's would not be seen: the
    # ledger knows it.
    missing = (
        f"SELECT DISTINCT m.{first} {orphans} "  # noqa: S608
        f"AND m.{first} = ANY($1::uuid[]) AND m.{refers} <> ALL($2::uuid[]) "
        f"AND NOT EXISTS (SELECT FROM crossfade.document d WHERE d.row_id = m.{refers} AND d.state = 'live' "
        f"AND d.collection_id = ANY(ARRAY(SELECT collection_id FROM crossfade.collection)))"
    )
    # The set has removed a parent of rows that are not of the set.
    needed = (
        f"SELECT DISTINCT m.{refers} {orphans} "
        f"AND m.{refers} = ANY($2::uuid[]) AND m.{first} <> ALL($1::uuid[])"
    )
    return [
        _Query(missing, tables, child.table, "foreign_key", name),
        _Query(needed, tables, parent.table, "foreign_key", name),
    ]
