"""Tables walked through by their keys alone: which rows there are, and child rows without a parent row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from worker.mapping import Rebuilder, TablePlan, Unrebuildable
from worker.mapping.model import CollectionMapping
from worker.mapping.values import back_to_id
from worker.postgres.connect import Connection
from worker.postgres.target import quoted


class RowKey(NamedTuple):
    """A row's key and tenant, and the note of its document's id as the rest column's JSON; None: no note."""

    row_id: UUID
    tenant_id: UUID | None
    note: bytes | None


async def page(
    reader: Connection, table: TablePlan, rest: str, after: UUID | None, tenant: UUID | None, limit: int
) -> list[RowKey]:
    """Return rows in order of their key, after one, of all tenants or of one."""
    key, note = quoted(table.key[0]), f"{quoted(rest)} #> '{{$notes,_id}}'"
    of = quoted(table.tenant) if table.tenant else "NULL::uuid"
    only = f"AND {of} = $3" if tenant is not None and table.tenant else "AND ($3::uuid IS NULL OR true)"
    query = (
        f"SELECT {key}, {of}, CASE WHEN {note} IS NOT NULL "  # noqa: S608 - checked identifiers
        f"THEN jsonb_build_object('$notes', jsonb_build_object('_id', {note})) END "
        f"FROM {quoted(table.table)} WHERE ($1::uuid IS NULL OR {key} > $1) {only} ORDER BY {key} LIMIT $2"
    )
    rows = await reader.fetch(query, after, limit, tenant)
    return [RowKey(UUID(int=row[0].int), row[1] and UUID(int=row[1].int), row[2]) for row in rows]


def document_id(rebuilder: Rebuilder, mapping: CollectionMapping, row: RowKey) -> Any:
    """Return the id of a row's document; of what its note cannot tell, that which the row id is made of."""
    if row.note is None:
        return back_to_id(row.row_id)
    try:
        return rebuilder.document_id({mapping.id: row.row_id, mapping.rest: row.note})
    except (Unrebuildable, KeyError, TypeError, ValueError):
        return back_to_id(row.row_id)


async def orphans(
    reader: Connection, parent: TablePlan, child: TablePlan, after: UUID | None, limit: int
) -> list[UUID]:
    """Return row ids, after one, that rows of a child table have and no row of the parent's table."""
    first, key = quoted(child.key[0]), quoted(parent.key[0])
    query = (
        f"SELECT DISTINCT c.{first} FROM {quoted(child.table)} c "  # noqa: S608 - checked identifiers
        f"WHERE ($1::uuid IS NULL OR c.{first} > $1) "
        f"AND NOT EXISTS (SELECT FROM {quoted(parent.table)} p WHERE p.{key} = c.{first}) "
        f"ORDER BY 1 LIMIT $2"
    )
    return [UUID(int=row[0].int) for row in await reader.fetch(query, after, limit)]


async def tenants_of_rows(
    reader: Connection, tables: Sequence[TablePlan], row_ids: Sequence[UUID]
) -> dict[UUID, set[UUID]]:
    """Return the tenants under which rows of documents stand, child rows too, by row id."""
    found: dict[UUID, set[UUID]] = {}
    for table in tables:
        if table.tenant is None:
            continue
        key, tenant = quoted(table.key[0]), quoted(table.tenant)
        query = (
            f"SELECT DISTINCT {key}, {tenant} FROM {quoted(table.table)} "  # noqa: S608 - checked identifiers
            f"WHERE {key} = ANY($1::uuid[]) AND {tenant} IS NOT NULL"
        )
        for row_id, seen in await reader.fetch(query, row_ids):
            found.setdefault(UUID(int=row_id.int), set()).add(UUID(int=seen.int))
    return found
