"""Documents as the application's tables hold them, read in sets and rebuilt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from worker.mapping import Rebuilder, TablePlan
from worker.postgres.connect import Connection
from worker.postgres.target import quoted


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
        own, *below = [await connection.fetch(query, ids) for query in self._queries]
        arrays: list[dict[UUID, list[Any]]] = []
        for rows in below:
            by_document: dict[UUID, list[Any]] = {}
            for row in rows:
                by_document.setdefault(row[0], []).append(row)
            arrays.append(by_document)
        return {
            row[self._id]: self._rebuilder.document(row, [rows.get(row[self._id], ()) for rows in arrays])
            for row in own
        }


def _select(table: TablePlan) -> str:
    key = [quoted(name) for name in table.key]
    columns = ", ".join([*key, *(quoted(name) for name in table.columns if name not in table.key)])
    order = f" ORDER BY {', '.join(key)}" if len(key) > 1 else ""
    return f"SELECT {columns} FROM {quoted(table.table)} WHERE {key[0]} = ANY($1::uuid[]){order}"  # noqa: S608
