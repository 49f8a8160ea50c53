"""Realistic multi-tenant data, the same for the same seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from bson import ObjectId
from pymongo import WriteConcern

from examples.spaces.shapes import CODEC, Document, Shapes

T = TypeVar("T")

COLLECTIONS = ("tenants", "users", "passwords", "forms", "pages", "leads")
BATCH = 1000
# Of a hundred documents; a user's password is beside these.
_SHARES = {"users": 14, "forms": 2, "pages": 34, "leads": 36}
_REFERENCES = 256


@dataclass(slots=True)
class _Tenant:
    """A tenant as far as its documents refer to it: bounded samples of its users and forms."""

    id: UUID
    users: list[UUID] = field(default_factory=list)
    forms: list[ObjectId] = field(default_factory=list)


class Generator:
    """Makes the data of the reference application. Equal seeds make equal documents in equal order."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._pages = Shapes(Random(), Random())
        self._page_tenants: list[UUID] = []

    def documents(self, tenants: int = 20, documents: int = 50_000) -> Iterator[tuple[str, Document]]:
        """Yield ``documents`` pairs of collection and document, parents before their children.

        Tenants come first, as many as asked for, and differ much in size. Memory does not grow with
        ``documents``.
        """
        make = Shapes(Random(f"{self.seed}/content"), Random(f"{self.seed}/ids"))
        owners: list[_Tenant] = []
        for _ in range(min(tenants, documents)):
            document = make.tenant()
            owners.append(_Tenant(document["_id"]))
            yield "tenants", document
        left = documents - len(owners)
        if left <= 0:
            return
        # Zipf's law: the first tenant has about five times the documents of the tenth.
        weights = [1 / (rank + 1) ** 0.7 for rank in range(len(owners))]
        counts = {name: left * share // 100 for name, share in _SHARES.items()}
        counts["leads"] = left - 2 * counts["users"] - counts["forms"] - counts["pages"]
        for name, count in counts.items():
            for start in range(0, count, BATCH):
                chosen = make.rng.choices(owners, weights, k=min(BATCH, count - start))
                for owner in chosen:
                    yield from _documents_of(make, name, owner)

    def page(self, number: int, tenants: int = 20) -> Document:
        """Return page ``number`` of about 1 KB, decided by seed and number alone, of one of ``tenants``."""
        if len(self._page_tenants) != tenants:
            rng = Random(f"{self.seed}/page-tenants")
            self._page_tenants = [UUID(int=rng.getrandbits(128), version=4) for _ in range(tenants)]
        rng = Random((self.seed << 40) ^ number)
        self._pages.reseed(rng)
        document = self._pages.page(self._page_tenants[number % tenants], None)
        document["_id"] = ObjectId(
            (0x66000000 + (number >> 24)).to_bytes(4, "big") + number.to_bytes(8, "big")
        )
        return document

    async def load(
        self,
        database: Any,
        tenants: int = 20,
        documents: int = 50_000,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Insert the data and its unique indexes into a motor database; return the number of documents.

        Batches of 1,000, unordered. When it returns, everything is acknowledged by a majority.
        ``on_progress`` is told the number of documents inserted so far.
        """
        load = _Load(database, on_progress or (lambda done: None))
        await load.create_indexes()
        for name, document in self.documents(tenants, documents):
            await load.add(name, document)
        await load.finish()
        return load.done


class _Load:
    """Batches per collection; the next batch is made while one is being inserted."""

    def __init__(self, database: Any, on_progress: Callable[[int], None]) -> None:
        self.done = 0
        self._on_progress = on_progress
        self._collections = {name: database.get_collection(name, codec_options=CODEC) for name in COLLECTIONS}
        self._waiting: dict[str, list[Document]] = {name: [] for name in COLLECTIONS}
        self._inserting: asyncio.Task[None] | None = None

    async def create_indexes(self) -> None:
        await self._collections["tenants"].create_index("subdomain", unique=True)
        await self._collections["users"].create_index([("tenantId", 1), ("email", 1)], unique=True)

    async def add(self, name: str, document: Document) -> None:
        batch = self._waiting[name]
        batch.append(document)
        if len(batch) == BATCH:
            await self._flush(name)

    async def finish(self) -> None:
        for name in COLLECTIONS:
            await self._flush(name)
        if self._inserting:
            await self._inserting
        # A write that changes nothing waits, too, until everything before it is held by a majority.
        majority = self._collections["tenants"].with_options(write_concern=WriteConcern("majority"))
        await majority.update_one({"_id": None}, {"$unset": {"none": ""}})

    async def _flush(self, name: str) -> None:
        batch, self._waiting[name] = self._waiting[name], []
        if not batch:
            return
        if self._inserting:
            await self._inserting
        self._inserting = asyncio.create_task(self._insert(name, batch))
        await asyncio.sleep(0)

    async def _insert(self, name: str, batch: list[Document]) -> None:
        collection = self._collections[name].with_options(write_concern=WriteConcern(1))
        await collection.insert_many(batch, ordered=False)
        self.done += len(batch)
        self._on_progress(self.done)


def _documents_of(make: Shapes, name: str, owner: _Tenant) -> Iterator[tuple[str, Document]]:
    """Yield the next document of a collection, and what belongs to it."""
    if name == "users":
        user = make.user(owner.id)
        _remember(make, owner.users, user["_id"])
        yield "users", user
        yield "passwords", make.password(owner.id, user["_id"])
    elif name == "forms":
        form = make.form(owner.id)
        _remember(make, owner.forms, form["_id"])
        yield "forms", form
    elif name == "pages":
        yield "pages", make.page(owner.id, make.pick(owner.users) if owner.users else None)
    else:
        form_id = make.pick(owner.forms) if owner.forms else None
        yield "leads", make.lead(owner.id, form_id, owner.users)


def _remember(make: Shapes, ids: list[T], new: T) -> None:
    """Keep ``new`` among at most ``_REFERENCES`` ids."""
    if len(ids) < _REFERENCES:
        ids.append(new)
    else:
        ids[int(make.rng.random() * _REFERENCES)] = new
