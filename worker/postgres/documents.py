"""Documents as the application's tables hold them, read in sets and rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from worker.mapping import Rebuilder, TablePlan
from worker.postgres.connect import Connection
from worker.postgres.target import quoted


class Stored(NamedTuple):
    """One document's rows; ``children`` by table in the plan's order.

    ``number``: rows with its key; 0: only child rows; above 1: the key is no key.
    """

    row: Any
    children: Sequence[Sequence[Any]]
    number: int


class TargetDocuments:
    """The documents of one collection's tables; ``tables`` has its own table first, then those below it."""

    def __init__(self, tables: Sequence[TablePlan], rebuilder: Rebuilder) -> None:
        self._id = tables[0].key[0]
        self._queries = [_select(table) for table in tables]
        self._rebuilder = rebuilder

    async def read(self, connection: Connection, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
        """Return the documents that have rows, by row id.

        Several statements: the connection must be in a transaction that reads one snapshot. `Unrebuildable`
        where the rest column of a row is not what Crossfade makes.
        """
        found = await self.rows(connection, ids)
        return {id_: self.rebuild(stored) for id_, stored in found.items() if stored.number}

    async def rows(self, connection: Connection, ids: Sequence[UUID]) -> dict[UUID, Stored]:
        """Return the rows of documents by row id, in one snapshot as `read`."""
        own, *below = [await connection.fetch(query, ids) for query in self._queries]
        arrays: list[dict[UUID, list[Any]]] = []
        for rows in below:
            by_document: dict[UUID, list[Any]] = {}
            for row in rows:
                by_document.setdefault(row[0], []).append(row)
            arrays.append(by_document)
        found: dict[UUID, Stored] = {}
        for row in own:
            id_ = row[self._id]
            if (first := found.get(id_)) is None:
                found[id_] = Stored(row, [rows.get(id_, ()) for rows in arrays], 1)
            else:
                found[id_] = first._replace(number=first.number + 1)
        for id_ in {id_ for rows in arrays for id_ in rows} - found.keys():
            found[id_] = Stored(None, [rows.get(id_, ()) for rows in arrays], 0)
        return found

    def rebuild(self, stored: Stored) -> dict[str, Any]:
        """Return the document that rows make; `Unrebuildable` as for `read`."""
        return self._rebuilder.document(stored.row, stored.children)


def _select(table: TablePlan) -> str:
    key = [quoted(name) for name in table.key]
    columns = ", ".join([*key, *(quoted(name) for name in table.columns if name not in table.key)])
    order = f" ORDER BY {', '.join(key)}" if len(key) > 1 else ""
    return f"SELECT {columns} FROM {quoted(table.table)} WHERE {key[0]} = ANY($1::uuid[]){order}"  # noqa: S608
