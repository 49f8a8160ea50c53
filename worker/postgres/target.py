"""Statements on the application's tables, built once from the mapping's plan.

Rows come as one JSON document for each table, read by ``jsonb_to_recordset``: as fast as COPY at any size of
batch, and it works under row-level security.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import orjson

from worker.mapping import TablePlan
from worker.postgres.connect import Connection

_AT_ONCE = 100_000
"""Rows of one statement. A document of 16 MB may have two million elements; jsonb ends at 256 MB."""


def quoted(name: str) -> str:
    """Return an identifier, the mapping's or the catalog's, as SQL reads it."""
    return '"' + name.replace('"', '""') + '"'


class TargetTable:
    """One table of the application: upsert and delete in sets."""

    def __init__(self, plan: TablePlan) -> None:
        self.name = plan.table
        self._above = plan.key[:-1]
        names = [quoted(name) for name in plan.columns]
        key = ", ".join(quoted(name) for name in plan.key)
        typed = ", ".join(f"{quoted(name)} {type_}" for name, type_ in plan.columns.items())
        changed = [quoted(name) for name in plan.columns if name not in plan.key]
        assigned = ", ".join(f"{name} = excluded.{name}" for name in changed)
        table, first = quoted(plan.table), quoted(plan.key[0])
        self._upsert = (
            f"INSERT INTO {table} AS t ({', '.join(names)}) "  # noqa: S608 - names are checked identifiers
            f"SELECT {', '.join(names)} FROM jsonb_to_recordset($1::jsonb) AS r({typed}) "
            f"ON CONFLICT ({key}) DO UPDATE SET {assigned}"
        )
        if len(plan.key) > 1:  # a child table: leave elements that did not change alone
            before = ", ".join(f"t.{name}" for name in changed)
            after = ", ".join(f"excluded.{name}" for name in changed)
            # As text: for jsonb 5 and 5.0 are equal, for numeric 1.0 and 1.00, for float8 0 and -0.
            self._upsert += f" WHERE ROW({before})::text IS DISTINCT FROM ROW({after})::text"
            above = [quoted(name) for name in plan.key[:-1]]
            arrays = ["$2::uuid[]", *(f"${n}::integer[]" for n in range(3, len(plan.key) + 2))]
            same = " AND ".join(f"k.{name} = t.{name}" for name in above)
            self._truncate = (
                f"DELETE FROM {table} AS t WHERE t.{first} = ANY($1::uuid[]) AND NOT EXISTS ("  # noqa: S608
                f"SELECT FROM unnest({', '.join(arrays)}) AS k({', '.join(above)}, size) "
                f"WHERE {same} AND t.{quoted(plan.key[-1])} < k.size)"
            )
        self._delete = f"DELETE FROM {table} WHERE {first} = ANY($1::uuid[])"  # noqa: S608

    async def upsert(self, connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
        """Insert rows, or replace those with the same key."""
        for start in range(0, len(rows), _AT_ONCE):
            await connection.execute(self._upsert, orjson.dumps(rows[start : start + _AT_ONCE]))

    async def delete(self, connection: Connection, ids: Sequence[UUID]) -> int:
        """Delete all rows of these documents; return how many there were."""
        status = await connection.execute(self._delete, ids)
        return int(status.rpartition(" ")[2])

    async def truncate_arrays(
        self, connection: Connection, ids: Sequence[UUID], rows: Sequence[dict[str, Any]]
    ) -> None:
        """Delete the rows of these documents that lie beyond the end of each array in ``rows``."""
        sizes = Counter(tuple(row[name] for name in self._above) for row in rows)
        arrays = [list(column) for column in zip(*sizes, strict=True)] or [[] for _ in self._above]
        await connection.execute(self._truncate, ids, *arrays, list(sizes.values()))
