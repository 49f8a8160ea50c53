"""Both sides of a collection: documents from MongoDB, and documents that PostgreSQL's rows make."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

import bson
from bson import Timestamp
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from topics import Collection, document_key, id_to_bson, key_to_id
from worker.mapping import CollectionPlan, Plans, Rebuilder, Unmappable, Unrebuildable, scopes
from worker.mapping import Mapping as MappingFile
from worker.mapping.ignored import without_ignored
from worker.mapping.model import CollectionMapping
from worker.mapping.values import back_to_id
from worker.mongo.client import RAW, Client
from worker.mongo.lookup import Shown, in_snapshot
from worker.postgres import reconciliation
from worker.postgres.connect import Connection
from worker.postgres.documents import Stored, TargetDocuments
from worker.reconcile.compare import compare, digest
from worker.reconcile.judge import Identity, Look, Moment

_DECODED: CodecOptions[dict[str, Any]] = RAW.with_options(document_class=dict)  # pyright: ignore
_UNREADABLE = (InvalidBSON, Unrebuildable, KeyError, TypeError, ValueError, OverflowError, RecursionError)


class Source(NamedTuple):
    """A real collection, the plan of its rows, and what reads them back."""

    collection: Collection
    namespace: str
    """The logical collection's."""
    mapping: CollectionMapping
    plan: CollectionPlan
    rebuilder: Rebuilder
    documents: TargetDocuments

    def identity(self, row_id: UUID, document_id: Any) -> Identity:
        """Return the identity of a document of this collection."""
        return Identity(self.namespace, row_id, str(self.collection), id_to_bson(document_id))


class Sides:
    """Reads both sides. ``reader``: a connection whose role sees the rows of every tenant.

    ``topics``: the stream topic of each collection, and its number of partitions.
    """

    def __init__(self, client: Client, mapping: MappingFile, topics: Mapping[str, tuple[str, int]]) -> None:
        self._client = client
        self._mapping = mapping
        self._plans = Plans(mapping)
        self._topics = topics
        self._parents = {
            name: (plan.table.table, plan.table.key[0], plan.table.tenant or "")
            for name, plan in ((name, CollectionPlan(one)) for name, one in mapping.collections.items())
        }
        self.planned = self._plans.find
        """Return the plan of a namespace, or None where it is not mapped."""
        self.source = lru_cache(maxsize=10_000)(self._source)
        """Return the source of a real namespace; it must be mapped."""

    def _source(self, namespace: str) -> Source:
        planned = self.planned(namespace)
        assert planned is not None, "the collection is not mapped"
        found = self._mapping.sources().find(namespace)
        tenant = found.tenant if found else None
        mapping = self._mapping.collections[planned.name]
        rebuilder = Rebuilder(mapping, tenant, scopes(self._mapping, tenant))
        plan = planned.plan
        documents = TargetDocuments([plan.table, *plan.children], rebuilder)
        return Source(Collection.parse(namespace), str(planned.logical), mapping, plan, rebuilder, documents)

    async def named(self, reader: Connection, source: Source, row_id: UUID) -> Identity:
        """Return the identity of the document that a row id stands for, as far as its row tells that."""
        unknown = Identity(source.namespace, row_id, str(source.collection), None)
        async with _snapshot(reader):
            stored = await source.documents.rows(reader, [row_id])
        return source.identity(row_id, _id_of(source, unknown, stored.get(row_id)))

    async def now(self) -> Timestamp:
        """Return a clusterTime that MongoDB has reached."""
        return (await self._client.admin.command("ping"))["operationTime"]

    async def beside(
        self, reader: Connection, source: Source, documents: Sequence[RawBSONDocument]
    ) -> list[Look]:
        """Compare documents, as they were read, with their rows as they are now."""
        by_row = {source.plan.row_id(one["_id"]): one for one in documents}
        async with _snapshot(reader):
            stored = await source.documents.rows(reader, list(by_row))
            return await self._looks(
                reader,
                source,
                {
                    row_id: (source.identity(row_id, one["_id"]), one, stored.get(row_id))
                    for row_id, one in by_row.items()
                },
            )

    async def without(self, reader: Connection, source: Source, identities: Sequence[Identity]) -> list[Look]:
        """Look at rows whose documents MongoDB was seen not to have."""
        async with _snapshot(reader):
            stored = await source.documents.rows(reader, [one.row_id for one in identities])
        return [_look(source, one, None, stored.get(one.row_id), None) for one in identities]

    async def look(
        self, reader: Connection, source: Source, identities: Sequence[Identity], copying: bool
    ) -> tuple[list[Look], list[Identity], Moment]:
        """Look at documents of one real collection, PostgreSQL first; return those not looked at yet too."""
        async with _snapshot(reader):
            applied = await reconciliation.applied(reader, *self._topics[source.namespace])
            by_row = {one.row_id: one for one in identities}
            stored = await source.documents.rows(reader, list(by_row))
            versions = await reconciliation.versions(reader, source.namespace, list(by_row))
            ids = {one.row_id: _id_of(source, one, stored.get(one.row_id)) for one in identities}
            keys = {row_id: document_key(id_) for row_id, id_ in ids.items()}
            wanted = {keys[row_id]: id_ for row_id, id_ in ids.items()}
            shown = await in_snapshot(self._client, source.collection, wanted, await self.now())
            told = {
                row_id: (one, _document(shown, keys[row_id]), stored.get(row_id))
                for row_id, one in by_row.items()
                if keys[row_id] not in shown.left
            }
            looks = await self._looks(reader, source, told, versions)
        left = [one for row_id, one in by_row.items() if keys[row_id] in shown.left]
        moment = Moment(datetime.now(UTC), shown.at.time << 32 | shown.at.inc, applied, copying)
        return looks, left, moment

    async def _looks(
        self,
        reader: Connection,
        source: Source,
        told: Mapping[UUID, tuple[Identity, RawBSONDocument | None, Stored | None]],
        versions: Mapping[UUID, Any] | None = None,
    ) -> list[Look]:
        looks: list[Look] = []
        for row_id, (identity, raw, stored) in told.items():
            version = versions.get(row_id) if versions else None
            looks.append(_look(source, identity, raw, stored, version))
        if source.mapping.tenant is not None and source.mapping.tenant.parent is not None:
            looks = await self._by_parents(reader, source, looks, told)
        return looks

    async def _by_parents(
        self,
        reader: Connection,
        source: Source,
        looks: list[Look],
        told: Mapping[UUID, tuple[Identity, RawBSONDocument | None, Stored | None]],
    ) -> list[Look]:
        """Look whether rows have the tenant of their parent document's row."""
        parents: dict[UUID, UUID] = {}
        name = ""
        for row_id, (_, raw, _) in told.items():
            if raw is None:
                continue
            try:
                parent = source.plan.owner(bson.decode(raw.raw, _DECODED))[1]
            except (Unmappable, *_UNREADABLE):
                continue
            if parent is not None:
                parents[row_id], name = parent.row_id, parent.collection
        if not parents:
            return looks
        tenants = await reconciliation.tenants(reader, *self._parents[name], list(set(parents.values())))
        result: list[Look] = []
        for look in looks:
            row_id = look.identity.row_id
            own = tenants.get(parents[row_id]) if row_id in parents else None
            if own is not None:
                look = replace(look, tenant=look.tenant or own, mongo_tenant=own)
                if look.kind is None and look.tenant != own:
                    look = _of_tenant(look, "a row has another tenant than its parent document's row")
            result.append(look)
        return result


def _look(
    source: Source,
    identity: Identity,
    raw: RawBSONDocument | None,
    stored: Stored | None,
    version: Any,
) -> Look:
    column = source.plan.table.tenant
    tenant: UUID | None = None
    if stored is not None and column is not None:
        tenant = _stored_tenant(source, stored)

    own: UUID | None = None

    def look(
        kind: str | None, mongo: int | None, postgres: int | None, told: str = "", fields: Any = ()
    ) -> Look:
        return Look(identity, kind, mongo, postgres, tenant, version, fields, told, own)

    document: dict[str, Any] | None = None
    if raw is not None:
        try:
            document = without_ignored(source.mapping, bson.decode(raw.raw, _DECODED))
        except _UNREADABLE as error:
            return look("unreadable", None, None, f"the document cannot be read ({type(error).__name__})")
        own = _tenant(source, document)
        tenant = own if tenant is None else tenant
        if source.plan.row_id(document["_id"]) != identity.row_id:
            return look("duplicate", digest(document), None, "the document's own row is another one")
    alone = digest(document) if document is not None and (stored is None or stored.number != 1) else None
    if stored is not None and stored.row is None and document is None:
        return look("orphan", None, None)
    if stored is None or stored.row is None:
        return look(None if document is None else "missing", alone, None)
    if stored.number > 1:
        return look("duplicate", alone, None, f"{stored.number} rows have its key")
    try:
        rebuilt = source.documents.rebuild(stored)
    except _UNREADABLE as error:
        return look("unreadable", alone, None, f"its rows: {type(error).__name__}")
    if document is None:
        return look("extra", None, digest(rebuilt))
    compared = compare(document, rebuilt)
    if compared.differences:
        return look("different", compared.mongo, compared.postgres, "", compared.differences)
    fitting = look(None, compared.mongo, compared.postgres)
    if column is not None and own is not None and tenant != own:
        return _of_tenant(fitting, "its row stands under another tenant")
    for table, rows in zip(source.plan.children, stored.children, strict=True):
        if table.tenant is not None and any(row[table.tenant] != tenant for row in rows):
            return _of_tenant(fitting, f"a row of {table.table} stands under another tenant")
    return fitting


def _of_tenant(look: Look, told: str) -> Look:
    return replace(look, kind="tenant", told=told)


def _tenant(source: Source, document: dict[str, Any]) -> UUID | None:
    try:
        return source.plan.tenant(document)
    except Unmappable:
        return None


def _stored_tenant(source: Source, stored: Stored) -> UUID | None:
    if stored.row is not None:
        return _plain(stored.row[source.plan.table.tenant])
    for table, rows in zip(source.plan.children, stored.children, strict=True):
        if table.tenant is not None and rows:
            return _plain(rows[0][table.tenant])
    return None


def _document(shown: Shown, key: bytes) -> RawBSONDocument | None:
    return shown.documents.get(key)


def _id_of(source: Source, identity: Identity, stored: Stored | None) -> Any:
    """Return the id to ask MongoDB for: the one known, else the rows', else what the row id is made of."""
    if identity.document_id is not None:
        return key_to_id(identity.document_id)
    if stored is not None and stored.row is not None:
        try:
            return source.rebuilder.document_id(stored.row)
        except _UNREADABLE:
            pass
    return back_to_id(identity.row_id)


def _plain(value: Any) -> UUID | None:
    """Return a UUID of the standard class: asyncpg's are of one of their own."""
    return None if value is None else UUID(int=value.int)


@asynccontextmanager
async def _snapshot(reader: Connection) -> AsyncIterator[None]:
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        yield
