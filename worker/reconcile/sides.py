"""Both sides of a collection: documents from MongoDB, and documents that PostgreSQL's rows make."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
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
from worker.mapping import CollectionPlan, Plans, Rebuilder, Unmappable, Unrebuildable, rebuilder
from worker.mapping import Mapping as MappingFile
from worker.mapping.ids import HASHED
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
_AT_ONCE = 4 << 20  # bytes of documents that are decoded at once: what they become is ten times as large
_UNREADABLE = (InvalidBSON, Unrebuildable, KeyError, TypeError, ValueError, OverflowError, RecursionError)


class _Unreadable(NamedTuple):
    """A document in MongoDB that cannot be read, but for its id."""

    id: Any
    told: str


_Read = dict[str, Any] | _Unreadable
_Told = Mapping[UUID, tuple[Identity, _Read | None, Stored | None]]


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
        """Return the identity of a document of this collection.

        A row id that is a hash may be taken for the id where nothing tells that; then it stays to be found.
        """
        if document_id == row_id and row_id.version == HASHED:
            return self.nameless(row_id)
        return self.nameless(row_id)._replace(document_id=id_to_bson(document_id))

    def nameless(self, row_id: UUID) -> Identity:
        """Return an identity without the document's id, for what may need none."""
        return Identity(self.namespace, row_id, str(self.collection), None)


class Both(NamedTuple):
    """A document as each side has it; None also where it is there and cannot be read."""

    look: Look
    in_mongo: bool
    document: dict[str, Any] | None
    in_postgres: bool
    rebuilt: dict[str, Any] | None


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
        back = rebuilder(self._mapping, planned.name, tenant)
        documents = TargetDocuments(planned.plan.tables, back)
        return Source(
            Collection.parse(namespace), str(planned.logical), mapping, planned.plan, back, documents
        )

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
        looks: list[Look] = []
        for some in _by_size(documents):
            by_row = {source.plan.row_id(_id(one)): one for one in map(_read, some)}
            async with _snapshot(reader):
                stored = await source.documents.rows(reader, list(by_row))
                told = {
                    row_id: (source.nameless(row_id), one, stored.get(row_id))
                    for row_id, one in by_row.items()
                }
                for look in await self._looks(reader, source, told):
                    row_id = look.identity.row_id
                    named = look.kind and replace(look, identity=source.identity(row_id, _id(by_row[row_id])))
                    looks.append(named or look)
        return looks

    async def without(self, reader: Connection, source: Source, identities: Sequence[Identity]) -> list[Look]:
        """Look at rows whose documents MongoDB was seen not to have."""
        async with _snapshot(reader):
            stored = await source.documents.rows(reader, [one.row_id for one in identities])
        return [_look(source, one, None, stored.get(one.row_id), None) for one in identities]

    async def both(self, reader: Connection, source: Source, identity: Identity) -> Both:
        """Look at one document, and return what each side has of it."""
        async with _snapshot(reader):
            stored = (await source.documents.rows(reader, [identity.row_id])).get(identity.row_id)
            versions = await reconciliation.versions(reader, source.namespace, [identity.row_id])
            id_ = _id_of(source, identity, stored)
            key = document_key(id_)
            read = _shown(
                await in_snapshot(self._client, source.collection, {key: id_}, await self.now()), key
            )
            (look,) = await self._looks(reader, source, {identity.row_id: (identity, read, stored)}, versions)
        document = without_ignored(source.mapping, read) if isinstance(read, dict) else None
        rebuilt: dict[str, Any] | None = None
        if stored is not None and stored.row is not None:
            with suppress(*_UNREADABLE):
                rebuilt = source.documents.rebuild(stored)
        return Both(look, read is not None, document, stored is not None, rebuilt)

    async def look(
        self, reader: Connection, source: Source, identities: Sequence[Identity], copying: bool
    ) -> tuple[list[Look], list[Identity], Moment]:
        """Look at documents of one real collection, PostgreSQL first; return those not looked at yet too."""
        async with _snapshot(reader):
            applied = await reconciliation.applied(reader, *self._topics[source.namespace])
            by_row = {one.row_id: one for one in identities}
            stored = await source.documents.rows(reader, list(by_row))
            versions = await reconciliation.versions(reader, source.namespace, list(by_row))
            nameless = [one.row_id for one in identities if one.document_id is None]
            known = await reconciliation.document_ids(reader, source.namespace, nameless) if nameless else {}
            ids = {
                one.row_id: _id_of(source, one, stored.get(one.row_id), known.get(one.row_id))
                for one in identities
            }
            keys = {row_id: document_key(id_) for row_id, id_ in ids.items()}
            wanted = {keys[row_id]: id_ for row_id, id_ in ids.items()}
            shown = await in_snapshot(self._client, source.collection, wanted, await self.now())
            told = {
                row_id: (one, _shown(shown, keys[row_id]), stored.get(row_id))
                for row_id, one in by_row.items()
                if keys[row_id] not in shown.left
            }
            looks = await self._looks(reader, source, told, versions)
            unfit = [look.identity.row_id for look in looks if look.kind is not None]
            parked = await reconciliation.parked(reader, str(source.collection), unfit) if unfit else ()
            looks = [replace(one, parked=True) if one.identity.row_id in parked else one for one in looks]
        left = [one for row_id, one in by_row.items() if keys[row_id] in shown.left]
        moment = Moment(datetime.now(UTC), shown.at.time << 32 | shown.at.inc, applied, copying)
        return looks, left, moment

    async def _looks(
        self,
        reader: Connection,
        source: Source,
        told: _Told,
        versions: Mapping[UUID, Any] | None = None,
    ) -> list[Look]:
        looks: list[Look] = []
        for row_id, (identity, read, stored) in told.items():
            version = versions.get(row_id) if versions else None
            looks.append(_look(source, identity, read, stored, version))
        if source.mapping.tenant is not None and source.mapping.tenant.parent is not None:
            looks = await self._by_parents(reader, source, looks, told)
        return looks

    async def _by_parents(
        self,
        reader: Connection,
        source: Source,
        looks: list[Look],
        told: _Told,
    ) -> list[Look]:
        """Look whether rows have the tenant of their parent document's row."""
        parents: dict[UUID, UUID] = {}
        name = ""
        for row_id, (_, read, _) in told.items():
            if not isinstance(read, dict):
                continue
            try:
                parent = source.plan.owner(read)[1]
            except Unmappable:
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
            if own is not None and look.tenant is None:
                look = replace(look, tenant=own)
            elif own is not None and look.tenant != own:
                why = "a row has another tenant than its parent document's row"
                look = replace(look, tenant=own, row_tenant=look.tenant)
                look = replace(look, kind="tenant", told=why) if look.kind in (None, "different") else look
            result.append(look)
        return result


def _look(
    source: Source,
    identity: Identity,
    read: _Read | None,
    stored: Stored | None,
    version: Any,
) -> Look:
    stands = _stored_tenant(source, stored)
    document = without_ignored(source.mapping, read) if isinstance(read, dict) else None
    tenant = (_tenant(source, document) if document is not None else None) or _plain(stands)
    elsewhere = stands != tenant
    row_tenant = _plain(stands) if elsewhere else None

    def look(
        kind: str | None, mongo: int | None, postgres: int | None, told: str = "", fields: Any = ()
    ) -> Look:
        return Look(identity, kind, mongo, postgres, tenant, version, fields, told, row_tenant)

    if isinstance(read, _Unreadable):
        return look("unreadable", None, None, read.told)
    if document is not None and source.plan.row_id(document["_id"]) != identity.row_id:
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
    kind = "different" if compared.differences else None
    seen = look(kind, compared.mongo, compared.postgres, "", compared.differences)
    # Who can read a row matters more than what it says: so this is told first, with all that differs.
    if elsewhere:
        return replace(seen, kind="tenant", told="its row stands under another tenant")
    for table, rows in zip(source.plan.children, stored.children, strict=True):
        for row in rows if table.tenant is not None else ():
            if row[table.tenant] != tenant:
                why = f"a row of {table.table} stands under another tenant"
                return replace(seen, kind="tenant", told=why, row_tenant=_plain(row[table.tenant]))
    return seen


def _tenant(source: Source, document: dict[str, Any]) -> UUID | None:
    try:
        return source.plan.tenant(document)
    except Unmappable:
        return None


def _stored_tenant(source: Source, stored: Stored | None) -> Any:
    """Return the tenant that a document's rows stand under, as asyncpg has it."""
    column = source.plan.table.tenant
    if stored is None or column is None:
        return None
    if stored.row is not None:
        return stored.row[column]
    for table, rows in zip(source.plan.children, stored.children, strict=True):
        if table.tenant is not None and rows:
            return rows[0][table.tenant]
    return None


def _shown(shown: Shown, key: bytes) -> _Read | None:
    raw = shown.documents.get(key)
    return None if raw is None else _read(raw)


def _read(raw: RawBSONDocument) -> _Read:
    try:
        return bson.decode(raw.raw, _DECODED)
    except _UNREADABLE as error:
        return _Unreadable(_id_in(bytes(raw.raw)), f"the document cannot be read ({type(error).__name__})")


def _id_in(raw: bytes) -> Any:
    """Return the id of a document of which something cannot be decoded: of its first field alone."""
    lenient: CodecOptions[dict[str, Any]] = _DECODED.with_options(unicode_decode_error_handler="replace")
    return bson.decode(raw, lenient)["_id"]


def _id(read: _Read) -> Any:
    return read.id if isinstance(read, _Unreadable) else read["_id"]


def _by_size(documents: Sequence[RawBSONDocument]) -> Iterator[Sequence[RawBSONDocument]]:
    """Yield them in parts that memory holds decoded; a part is one document at least."""
    start = size = 0
    for place, document in enumerate(documents):
        size += len(document.raw)
        if size > _AT_ONCE and place > start:
            yield documents[start:place]
            start, size = place, len(document.raw)
    yield documents[start:]


def _id_of(source: Source, identity: Identity, stored: Stored | None, known: bytes | None = None) -> Any:
    """Return the id to ask MongoDB for: the one known, else the rows', else the ledger's, else what the row
    id is made of.
    """
    if identity.document_id is not None:
        return key_to_id(identity.document_id)
    if stored is not None and stored.row is not None:
        try:
            return source.rebuilder.document_id(stored.row)
        except _UNREADABLE:
            pass
    return back_to_id(identity.row_id) if known is None else key_to_id(known)


def _plain(value: Any) -> UUID | None:
    """Return a UUID of the standard class: asyncpg's are of one of their own."""
    return None if value is None else UUID(int=value.int)


@asynccontextmanager
async def _snapshot(reader: Connection) -> AsyncIterator[None]:
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        yield
