"""The documents that a live writer knows of: a bounded sample of each collection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

from examples.spaces.shapes import Document

DocumentId = Any
# Which field says when a document was last written. Every write moves it on, so it also tells states apart.
STAMPS = {"passwords": "changedAt"}
# Users of this role and forms whose slug begins so were made by a live writer. Nothing refers to them, so
# they may be deleted without leaving a reference to nowhere.
LOOSE_ROLE = "guest"
LOOSE_SLUG = "draft"


def stamp_of(collection: str) -> str:
    """Return the name of the field that every write of the collection moves on."""
    return STAMPS.get(collection, "updatedAt")


@dataclass(slots=True)
class Known:
    """One document as a writer last saw it: enough to write it again without reading it first."""

    collection: str
    id: DocumentId
    tenant: UUID
    stamp: datetime
    has_array: bool = False
    loose: bool = False
    password: Known | None = None
    """The password that lives and dies with a loose user; it is in no pool of its own."""

    def see(self, document: Document) -> None:
        """Take note of the document's newest state."""
        self.tenant = document["_id"] if self.collection == "tenants" else document["tenantId"]
        self.stamp = document[stamp_of(self.collection)]
        self.has_array = isinstance(document.get("activities"), list)


class Pool:
    """At most ``limit`` known documents. A document that is taken is nobody else's until it is given back."""

    def __init__(self, rng: Random, limit: int) -> None:
        self._rng = rng
        self._limit = limit
        self._free: list[Known] = []

    def __len__(self) -> int:
        return len(self._free)

    def take(self, fits: Callable[[Known], bool] = lambda known: True) -> Known | None:
        """Take a random document that fits out of the pool, or None when a few tries found none."""
        for _ in range(min(16, 4 * len(self._free))):
            at = int(self._rng.random() * len(self._free))
            if fits(self._free[at]):
                self._free[at], self._free[-1] = self._free[-1], self._free[at]
                return self._free.pop()
        return None

    def give(self, known: Known) -> None:
        """Put a document into the pool; when the pool is full, a random one is forgotten."""
        if len(self._free) >= self._limit:
            self._free[int(self._rng.random() * len(self._free))] = known
        else:
            self._free.append(known)


async def sample(database: Any, collection: str, size: int) -> list[Known]:
    """Return about ``size`` random documents of a collection as they are now."""
    stamp = stamp_of(collection)
    pipeline: list[Document] = [
        {"$sample": {"size": size}},
        {
            "$project": {
                "tenantId": {"$ifNull": ["$tenantId", "$_id"]},
                stamp: 1,
                "role": 1,
                "slug": 1,
                "hasArray": {"$isArray": "$activities"},
            }
        },
    ]
    found = await database[collection].aggregate(pipeline).to_list(None)
    # $sample may return a document twice.
    return list({document["_id"]: _known(collection, stamp, document) for document in found}.values())


async def sample_all(database: Any, collections: Iterable[str], size: int) -> dict[str, list[Known]]:
    """Return ``sample`` of each of ``collections``."""
    names = list(collections)
    found = await asyncio.gather(*(sample(database, name, size) for name in names))
    return dict(zip(names, found, strict=True))


def _known(collection: str, stamp: str, document: Document) -> Known:
    return Known(
        collection,
        document["_id"],
        document["tenantId"],
        document.get(stamp) or datetime(1970, 1, 1, tzinfo=UTC),
        has_array=document["hasArray"],
        loose=document.get("role") == LOOSE_ROLE or str(document.get("slug")).startswith(f"{LOOSE_SLUG}-"),
    )
