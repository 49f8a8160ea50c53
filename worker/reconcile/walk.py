"""A full generation: every document against its rows, then every row against MongoDB, in bounded chunks.

Documents are read in ``_id`` order, each chunk in one snapshot. Rows are walked through by their key, for
those of documents that MongoDB no longer has; child rows for those whose parent row is not there. What does
not fit is only seen for the first time here (see ``judge``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from bson import ObjectId

from topics import Collection, document_key, id_to_bson, key_to_id
from worker.mapping import Mapping as MappingFile
from worker.mapping.ids import row_id, uuid_to_objectid
from worker.mapping.model import CollectionMapping
from worker.mapping.sources import Sources, named_tenant
from worker.mapping.values import back_to_id
from worker.mongo.client import Client
from worker.mongo.collections import fitting
from worker.mongo.lookup import absent
from worker.mongo.preference import ReadPreference
from worker.mongo.snapshot import After, Reply, read_chunk
from worker.postgres import row_keys
from worker.postgres.connect import Connection
from worker.postgres.reconciliation import Sum, SumKey
from worker.publish.real_collections import RealCollections
from worker.reconcile.judge import Look
from worker.reconcile.recheck import left_out, look_at
from worker.reconcile.sides import Sides, Source

Place = dict[str, Any]
DOCUMENTS, ROWS, CHILDREN = "documents", "rows", "children"


class Step(NamedTuple):
    """What one chunk showed, and where to go on after it."""

    place: Place
    looks: Sequence[Look]
    """Of what does not fit."""
    sums: Mapping[SumKey, Sum]
    documents: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of a collection's own table, by its key alone. ``document_id`` None: its rest cannot be read."""

    row_id: UUID
    tenant_id: UUID | None
    document_id: Any = field(compare=False)


@dataclass(slots=True)
class Walk:
    """Walks through all collections, or through one tenant's part of them."""

    client: Client
    reader: Connection
    sides: Sides
    mapping: MappingFile
    real: RealCollections
    preference: ReadPreference
    chunk: int
    tenant: UUID | None = None
    switched: set[UUID] = field(default_factory=set)
    """Tenants whose rows no longer follow MongoDB; may be changed between steps."""

    async def steps(self, place: Place) -> AsyncIterator[Step]:
        """Yield a step for each chunk from a place on; `{}` is the beginning."""
        phase = place.get("phase", DOCUMENTS)
        sources = self.mapping.sources()
        logicals = {name: Sources.logical(self.mapping.database, name) for name in self.mapping.collections}
        if phase == DOCUMENTS:
            async for step in self._documents(sources, logicals, place):
                yield step
            phase, place = ROWS, {"phase": ROWS}
        if phase == ROWS:
            async for step in self._rows(logicals, place):
                yield step
            place = {"phase": CHILDREN}
        async for step in self._children(logicals, place):
            yield step

    def _unfit(self, looks: Sequence[Look]) -> list[Look]:
        """Return those that do not fit, and are of the tenants that are looked at, or may be."""
        return [
            one
            for one in looks
            if one.kind is not None
            and not left_out(one, self.switched)
            and (self.tenant is None or not one.tenants or self.tenant in one.tenants)
        ]

    def _sums(self, looks: Sequence[Look]) -> dict[SumKey, Sum]:
        """Sum up each side by its own tenants."""
        sums: dict[SumKey, Sum] = {}
        for look in looks:
            for tenant, mongo, postgres in (
                (look.tenant, look.mongo, None),
                (look.row_tenant or look.tenant, None, look.postgres),
            ):
                if (mongo is not None or postgres is not None) and self._sums_up(tenant):
                    key = look.identity.namespace, tenant
                    sums[key] = sums.get(key, Sum()).plus(mongo, postgres)
        return sums

    def _sums_up(self, tenant: UUID | None) -> bool:
        return tenant not in self.switched and self.tenant in (None, tenant)

    async def _documents(
        self, sources: Sources, logicals: Mapping[str, Collection], place: Place
    ) -> AsyncIterator[Step]:
        for name, logical in logicals.items():
            if _before(logicals, name, place):
                continue
            for collection in await fitting(self.client, sources, logical):
                if place.get("name") == name and str(collection) < place.get("collection", ""):
                    continue
                same = place.get("collection") == str(collection)
                after = After(key_to_id(bytes.fromhex(place["after"]))) if same else None
                async for step in self._collection(name, collection, after):
                    yield step

    async def _collection(
        self, name: str, collection: Collection, after: After | None
    ) -> AsyncIterator[Step]:
        only = self._only(self.mapping.collections[name], collection)
        if only is _NONE:
            return
        source = self.sides.source(str(collection))
        reading = asyncio.create_task(self._read(collection, after, only))
        try:
            while (reply := await reading).documents:
                last = reply.documents[-1]["_id"]
                reading = asyncio.create_task(self._read(collection, After(last), only))
                looks = await self.sides.beside(self.reader, source, reply.documents)
                place = {
                    "phase": DOCUMENTS,
                    "name": name,
                    "collection": str(collection),
                    "after": id_to_bson(last).hex(),
                }
                yield Step(place, self._unfit(looks), self._sums(looks), len(looks))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, collection: Collection, after: After | None, only: Any) -> Reply:
        now = await self.sides.now()
        return await read_chunk(self.client, collection, after, self.chunk, now, self.preference, only)

    def _only(self, mapping: CollectionMapping, collection: Collection) -> Any:
        """Return the filter of the one tenant's documents, as far as there can be one."""
        of = mapping.tenant
        if self.tenant is None or of is None or of.parent is not None:
            return None
        if of.path is not None:
            known: list[UUID | ObjectId | str] = [self.tenant, str(self.tenant)]
            if (objectid := uuid_to_objectid(self.tenant)) is not None:
                known = [objectid, str(objectid)]
            # A tenant id of another kind cannot be told from its row id: then all documents are read.
            return {of.path: {"$in": known}} if _reversible(self.tenant) else None
        source = self.mapping.sources().find(str(collection))
        value = of.constant if of.constant is not None else source and source.tenant
        if value is None:
            return None
        return (
            None if row_id(named_tenant(value) if isinstance(value, str) else value) == self.tenant else _NONE
        )

    async def _rows(self, logicals: Mapping[str, Collection], place: Place) -> AsyncIterator[Step]:
        for name, logical in logicals.items():
            if _before(logicals, name, place):
                continue
            mapping = self.mapping.collections[name]
            after = UUID(place["after"]) if place.get("name") == name else None
            source = self.sides.source(str(logical))
            while True:
                rows = await row_keys.page(
                    self.reader, source.plan.table, mapping.rest, after, self.tenant, self.chunk
                )
                if not rows:
                    break
                after = rows[-1].row_id
                looks = await self._gone(logical, source, [self._row(source, one) for one in rows])
                at = {"phase": ROWS, "name": name, "after": str(after)}
                # Those that MongoDB has were counted with their documents, as far as these were read.
                sums = self._sums(
                    [one for one in looks if one.mongo is None or not self._read_before(mapping, one)]
                )
                yield Step(at, self._unfit(looks), sums, 0, len(rows))

    def _read_before(self, mapping: CollectionMapping, look: Look) -> bool:
        only = self._only(mapping, Collection.parse(look.identity.collection))
        return only is None or look.tenant == self.tenant

    def _row(self, source: Source, row: row_keys.RowKey) -> _Row:
        return _Row(row.row_id, row.tenant_id, row_keys.document_id(source.rebuilder, source.mapping, row))

    async def _gone(self, logical: Collection, source: Source, rows: Sequence[_Row]) -> list[Look]:
        """Return looks of rows whose documents MongoDB has not, and of those that are no document's own.

        Of one tenant's walk, of all rows: their documents may be another's, which that walk does not read.
        """
        found, lost = await self.real.find(logical, rows)
        found = {**found, logical: [*found.get(logical, ()), *lost]} if lost else found
        looks: list[Look] = []
        for collection, some in found.items():
            its = self.sides.source(str(collection))
            if self.tenant is not None:
                all_ = [its.identity(one.row_id, one.document_id) for one in some]
                looks += [look for look, _ in await look_at(self.sides, self.reader, all_, ())]
                continue
            keys = [document_key(one.document_id) for one in some]
            ids = {key: one.document_id for key, one in zip(keys, some, strict=True)}
            gone, _ = await absent(self.client, collection, ids, await self.sides.now())
            wrong = [
                one
                for key, one in zip(keys, some, strict=True)
                if key in gone or its.plan.row_id(one.document_id) != one.row_id
            ]
            if wrong:
                identities = [its.identity(one.row_id, one.document_id) for one in wrong]
                looks += await self.sides.without(self.reader, its, identities)
        return looks

    async def _children(self, logicals: Mapping[str, Collection], place: Place) -> AsyncIterator[Step]:
        for name, logical in logicals.items():
            source = self.sides.source(str(logical))
            for table in source.plan.children:
                if _before(logicals, name, place) or (
                    place.get("name") == name and _earlier(source, table.table, place)
                ):
                    continue
                after = UUID(place["after"]) if place.get("table") == table.table else None
                while ids := await row_keys.orphans(self.reader, source.plan.table, table, after, self.chunk):
                    after = ids[-1]
                    identities = [source.identity(one, back_to_id(one)) for one in ids]
                    looks = await self.sides.without(self.reader, source, identities)
                    at = {"phase": CHILDREN, "name": name, "table": table.table, "after": str(after)}
                    yield Step(at, self._unfit(looks), {}, 0, len(ids))


_NONE: Any = object()


def _reversible(tenant: UUID) -> bool:
    return tenant.version != 5


def _before(logicals: Mapping[str, Collection], name: str, place: Place) -> bool:
    """Whether a place lies behind a collection of the mapping."""
    names = list(logicals)
    return place.get("name") in names and names.index(name) < names.index(place["name"])


def _earlier(source: Source, table: str, place: Place) -> bool:
    tables = [one.table for one in source.plan.children]
    return place.get("table") in tables and tables.index(table) < tables.index(place["table"])
