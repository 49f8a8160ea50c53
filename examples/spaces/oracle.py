"""Every document against its rows, both ways, by code that shares nothing with the program."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple
from uuid import UUID

import asyncpg
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion

from examples.spaces.exact import differing_paths
from examples.spaces.rebuild import ACTIVITIES, TABLES, document_id, rebuild, row_id
from examples.spaces.shapes import Document

Kind = Literal["missing", "extra", "different", "tenant", "orphan"]
_CHUNK = 1000
_CODEC: CodecOptions[Document] = CodecOptions(
    uuid_representation=UuidRepresentation.STANDARD,
    tz_aware=True,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)


class Difference(NamedTuple):
    """One document and its rows that do not agree: where, never what.

    ``missing``: no row. ``extra``: a row without a document. ``different``: other values at ``paths``.
    ``tenant``: a row, or a child row, of another tenant. ``orphan``: child rows without a parent row.
    """

    collection: str
    id: Any
    kind: Kind
    paths: tuple[str, ...] = ()


@dataclass(slots=True)
class Comparison:
    """What a comparison has seen. ``differences`` holds the first ``limit`` of ``differing``."""

    limit: int = 20
    documents: int = 0
    rows: int = 0
    differing: int = 0
    differences: list[Difference] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Tell whether every document has its rows and every row its document."""
        return self.differing == 0

    def add(self, collection: str, key: Any, kind: Kind, paths: Iterable[str] = ()) -> None:
        """Count a difference, and keep it while there are few."""
        self.differing += 1
        if len(self.differences) < self.limit:
            self.differences.append(Difference(collection, key, kind, tuple(paths)))


async def compare(
    mongo_database: Any,
    postgres_connection: asyncpg.Connection,
    *,
    on_progress: Callable[[int], None] | None = None,
    limit: int = 20,
) -> Comparison:
    """Compare every document with its rows, and look for rows that have no document.

    Both databases must have settled: nobody writes meanwhile. The connection's role must see the rows of all
    tenants. Memory does not grow with the data. ``on_progress`` is told the number of documents compared so
    far.
    """
    comparison = Comparison(limit)
    begun = time.monotonic()
    for collection in TABLES:
        await _Walk(comparison, collection, mongo_database, postgres_connection).run(
            on_progress or (lambda done: None)
        )
    comparison.seconds = time.monotonic() - begun
    return comparison


class _Walk:
    """One collection: each document by its rows, then, when there are more rows than that, the rows."""

    def __init__(
        self, comparison: Comparison, collection: str, mongo: Any, postgres: asyncpg.Connection
    ) -> None:
        self._comparison = comparison
        self._name = collection
        self._documents = mongo.get_collection(collection, codec_options=_CODEC)
        self._postgres = postgres
        self._table = TABLES[collection]
        self._matched = 0
        self._matched_children = 0

    async def run(self, on_progress: Callable[[int], None]) -> None:
        cursor = self._documents.find({}, batch_size=_CHUNK)
        reading = asyncio.ensure_future(cursor.to_list(_CHUNK))
        try:
            while documents := await reading:
                # While these are compared, the next ones are read.
                reading = asyncio.ensure_future(cursor.to_list(_CHUNK))
                await self._compare(documents)
                self._comparison.documents += len(documents)
                on_progress(self._comparison.documents)
        finally:
            await asyncio.gather(reading, return_exceptions=True)
            await cursor.close()
        await self._look_for_extra()
        if self._name == "leads":
            await self._look_for_orphans()

    async def _compare(self, documents: Sequence[Document]) -> None:
        ids = [row_id(document["_id"]) for document in documents]
        wanted = sorted(key for key in ids if key is not None)
        rows = {row["id"]: row for row in await self._postgres.fetch(self._table.query("id"), wanted)}
        children = await self._children(list(rows))
        self._matched += len(rows)
        for document, key in zip(documents, ids, strict=True):
            if key is None or (row := rows.get(key)) is None:
                self._comparison.add(self._name, document["_id"], "missing")
            else:
                self._judge(document, row, children.get(key, []))

    async def _children(self, ids: Sequence[UUID]) -> dict[UUID, list[asyncpg.Record]]:
        if self._name != "leads":
            return {}
        found = await self._postgres.fetch(f"{ACTIVITIES.query('lead_id')} ORDER BY lead_id, position", ids)
        self._matched_children += len(found)
        return {key: list(rows) for key, rows in groupby(found, itemgetter("lead_id"))}

    def _judge(self, document: Document, row: asyncpg.Record, children: list[asyncpg.Record]) -> None:
        rebuilt = rebuild(self._name, row, children)
        paths = [*differing_paths(document, rebuilt.document), *rebuilt.faults]
        if paths:
            wrong_tenant = any(path.split(".")[-1] == "tenantId" for path in paths)
            self._comparison.add(
                self._name, document["_id"], "tenant" if wrong_tenant else "different", sorted(paths)
            )

    async def _look_for_extra(self) -> None:
        """Find the rows without a document. There are some if there are more rows than documents led to."""
        if await self._count(self._table.name) == self._matched:
            return
        query = f"SELECT id FROM {self._table.name} WHERE id > $1 ORDER BY id LIMIT {_CHUNK}"  # noqa: S608
        last = UUID(int=0)  # which is nobody's id
        while rows := await self._postgres.fetch(query, last):
            last = rows[-1]["id"]
            ids = [document_id(row["id"]) for row in rows]
            found = await self._documents.find({"_id": {"$in": ids}}, {"_id": 1}).to_list(None)
            present = {document["_id"] for document in found}
            for key in ids:
                if key not in present:
                    self._comparison.add(self._name, key, "extra")

    async def _count(self, table: str) -> int:
        count: int = await self._postgres.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 # type: ignore
        self._comparison.rows += count
        return count

    async def _look_for_orphans(self) -> None:
        """Find the child rows without a parent row, of at most 1,000 parents."""
        if await self._count(ACTIVITIES.name) == self._matched_children:
            return
        query = """SELECT DISTINCT lead_id FROM lead_activities AS activity
            WHERE NOT EXISTS (SELECT FROM leads WHERE leads.id = activity.lead_id) LIMIT 1000"""
        for row in await self._postgres.fetch(query):
            self._comparison.add("leads", row["lead_id"], "orphan", ["activities"])
