"""Rows that refer to rows which are not there.

apply writes as session_replication_role = replica where it may, and then PostgreSQL checks no foreign key: a
reference that dangles in MongoDB dangles here too. References are what the mapping calls so, the real foreign
keys of its tables, and each child row's document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg

from worker.errors import SchemaError, ServiceUnavailable
from worker.mapping import Mapping, Plans
from worker.mapping.model import Child, CollectionMapping
from worker.postgres.catalog import Catalog, read_catalog
from worker.postgres.connect import Connection
from worker.postgres.faults import FAULTS, describe
from worker.postgres.target import quoted


class Reference(NamedTuple):
    """Columns of a table that name a row of another; ``key``: what names the referring row itself.

    Tables as SQL writes them.
    """

    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    target: str
    target_columns: tuple[str, ...]
    array: bool = False

    def __str__(self) -> str:
        return f"{self.table} ({', '.join(self.columns)}) -> {self.target}"


@dataclass(frozen=True, slots=True)
class Orphans:
    """What was found of one reference. ``rows`` has the first keys: a row id, then positions."""

    reference: Reference
    count: int
    rows: Sequence[str]


class Found(NamedTuple):
    """Orphans by reference, how many references were looked at, and those that were not, each with why."""

    orphans: list[Orphans]
    looked_at: int
    not_looked_at: list[str]


_FOREIGN_KEYS = """
SELECT conrelid::regclass::text, confrelid::regclass::text, ARRAY(
    SELECT attname::text FROM unnest(conkey) WITH ORDINALITY AS k(number, place)
    JOIN pg_catalog.pg_attribute ON attrelid = conrelid AND attnum = k.number ORDER BY place), ARRAY(
    SELECT attname::text FROM unnest(confkey) WITH ORDINALITY AS k(number, place)
    JOIN pg_catalog.pg_attribute ON attrelid = confrelid AND attnum = k.number ORDER BY place),
    has_schema_privilege(relnamespace, 'USAGE')
FROM pg_catalog.pg_constraint JOIN pg_catalog.pg_class target ON target.oid = confrelid
WHERE contype = 'f' AND conparentid = 0
    AND conrelid IN (SELECT to_regclass(quote_ident(name)) FROM unnest($1::text[]) AS name)
ORDER BY conrelid::regclass::text, conname
"""


async def find_orphans(
    connection: Connection,
    mapping: Mapping,
    *,
    limit: int,
    seconds: float,
    tenants: Sequence[UUID] | None = None,
) -> Found:
    """Return the orphans of all references, in one snapshot; of each at most ``limit`` rows are named.

    ``tenants``: only rows of these refer; tables that all tenants share are left out then.

    The connection's role must see the rows of every tenant, or a reference is not looked at; nor is one whose
    search takes longer than ``seconds``. `SchemaError`, `ServiceUnavailable`: nothing could be looked at.
    """
    orphans: list[Orphans] = []
    skipped: list[str] = []
    looked_at = 0
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.execute(
                "SELECT set_config('statement_timeout', $1, true)", f"{seconds * 1000:.0f}"
            )
            catalog, references = await read_references(connection, mapping)
            columns = {
                catalog.tables[one.table].qualified: one.tenant
                for one in Plans(mapping).tables()
                if one.tenant
            }
            for reference in references:
                column = columns.get(reference.table)
                if tenants is not None and column is None:
                    continue
                if unseen := catalog.unseen(reference.table, reference.target):
                    skipped.append(f"{reference}: {unseen}")
                    continue
                try:
                    async with connection.transaction():
                        query = _query(reference, column if tenants is not None else None)
                        arguments = (limit,) if tenants is None else (limit, list(tenants))
                        count, rows = await connection.fetchrow(query, *arguments)  # pyright: ignore
                except asyncpg.QueryCanceledError:
                    skipped.append(f"{reference}: took longer than {seconds:g} s")
                    continue
                looked_at += 1
                if count:
                    orphans.append(Orphans(reference, count, rows))
    except asyncpg.UndefinedColumnError as error:
        raise SchemaError(f"the tables do not fit the mapping ({describe(error)})") from None
    except FAULTS as error:
        raise ServiceUnavailable(f"PostgreSQL does not answer ({describe(error)})") from None
    return Found(orphans, looked_at, skipped)


async def read_references(connection: Connection, mapping: Mapping) -> tuple[Catalog, list[Reference]]:
    """Return the tables that take part, and each reference once. `SchemaError`: a mapped table is missing."""
    names = [table for one in mapping.collections.values() for table, _ in one.tables()]
    foreign = await connection.fetch(_FOREIGN_KEYS, names)
    written = {name: quoted(name) for name in names} | {row[1]: row[1] for row in foreign if row[4]}
    catalog = await read_catalog(connection, written)
    if missing := [name for name in names if name not in catalog.tables]:
        raise SchemaError(f"the database lacks {', '.join(missing)}")
    return catalog, list(_references(mapping, catalog, foreign))


def _references(mapping: Mapping, catalog: Catalog, foreign: Iterable[Sequence[Any]]) -> Iterable[Reference]:
    """Return each reference once, however many ways it is told."""
    parts = [part for one in mapping.collections.values() for _, part in one.tables()]
    tables = Plans(mapping).tables()
    keys = {catalog.tables[table.table].qualified: table.key for table in tables}
    found: dict[Any, Reference] = {}
    for table, part in zip(tables, parts, strict=True):
        name = catalog.tables[table.table].qualified
        for column, told in part.columns.items():
            if told.references is not None:
                other = mapping.collections[told.references]
                target = catalog.tables[other.table].qualified
                one = Reference(name, table.key, (column,), target, (other.id,), told.parsed.array)
                found[one[:5]] = one
    for above, below in nested(mapping):
        target = catalog.tables[above.table].qualified
        name = catalog.tables[below.table].qualified
        one = Reference(name, keys[name], below.parent, target, keys[target])
        found[one[:5]] = one
    for name, target, columns, target_columns, _ in foreign:
        one = Reference(name, keys[name], tuple(columns), target, tuple(target_columns))
        found.setdefault(one[:5], one)
    return found.values()


def nested(mapping: Mapping) -> Iterator[tuple[CollectionMapping | Child, Child]]:
    """Return each child table with the one above it."""
    for collection in mapping.collections.values():
        for _, part in collection.tables():
            yield from ((part, child) for child in part.children.values())


def _query(reference: Reference, tenant: str | None) -> str:
    """Return the query for the number of referring rows, and the first of their keys as text.

    ``tenant``: the column by which rows of $2 alone are asked for.
    """
    key = ", ".join(f"t.{quoted(name)}" for name in reference.key)
    wanted = [f"t.{quoted(name)}" for name in reference.columns]
    source, distinct = f"{reference.table} AS t", ""
    if reference.array:
        source += f", unnest({wanted[0]}) AS e(id)"
        wanted, distinct = ["e.id"], "DISTINCT "
    columns = ", ".join(f"k{place}" for place in range(1, len(reference.key) + 1))
    theirs = f"t.{quoted(tenant)} = ANY($2::uuid[]) AND " if tenant else ""
    return (
        f"WITH orphan({columns}) AS MATERIALIZED (SELECT {distinct}{key} FROM {source} "  # noqa: S608
        f"WHERE {theirs}{_missing(reference, wanted)}) "
        f"SELECT (SELECT count(*) FROM orphan), "
        f"ARRAY(SELECT concat_ws('/', {columns}) FROM orphan ORDER BY {columns} LIMIT $1)"
    )


def dangles(reference: Reference) -> str:
    """Return the condition on a row, called ``t``, that it refers to one which is not there."""
    if reference.array:
        source = f"unnest(t.{quoted(reference.columns[0])}) AS e(id)"
        return f"EXISTS (SELECT FROM {source} WHERE {_missing(reference, ['e.id'])})"
    return _missing(reference, [f"t.{quoted(name)}" for name in reference.columns])


def _missing(reference: Reference, wanted: Sequence[str]) -> str:
    """Return the condition that these values are set and name no row."""
    there = " AND ".join(
        f"o.{quoted(name)} = {value}" for name, value in zip(reference.target_columns, wanted, strict=True)
    )
    set_ = " AND ".join(f"{value} IS NOT NULL" for value in wanted)
    return f"{set_} AND NOT EXISTS (SELECT FROM {reference.target} AS o WHERE {there})"
